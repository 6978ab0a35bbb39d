"""The model of the outcomes given the latent effects.

The linear predictor of a row is ``s (F C beta + Z K L b + m1 + m2(b))`` with b normal
of mean g and unit variance. The matrices C and K make the columns of F and Z
orthonormal on average and s is the response's own scale, so that one step length fits
every parameter whatever the units of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ...families import ExponentialFamily
from .nets import Branch, Net
from .rows import Rows, Sample

__all__ = ["Decoder", "Outcome", "Start"]


@dataclass(frozen=True, eq=False)
class Start:
    """The mixed model of one outcome, as arrays.

    Attributes
    ----------
    family : ExponentialFamily
        With its canonical link.
    beta : Tensor, shape (p,)
    root : Tensor, shape (q, q)
        Factor of the random effects' covariance.
    sigma : float or None
        Residual standard deviation; None where the family has none.
    """

    family: ExponentialFamily
    beta: Tensor
    root: Tensor
    sigma: float | None


class Outcome(nn.Module):
    """Parameters of one outcome.

    Parameters
    ----------
    start : Start
    rows : Rows
        Those of the fit: they give the columns their scale.
    at : slice
        Which latent effects are its own at the start.
    latent : int
        Number of latent effects.
    fixed, random : Net or None
    generator : torch.Generator
    """

    def __init__(
        self, start: Start, rows: Rows, at: slice, latent: int, fixed: Net | None,
        random: Net | None, generator: Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.family = start.family
        scale = 1.0 if start.sigma is None else float(rows.y.std(correction=0))
        self.scale = scale
        C, K = _orthonormal(rows.F), _orthonormal(rows.Z)
        self.register_buffer("C", C)
        self.register_buffer("K", K)
        own = torch.zeros(len(K), latent, dtype=torch.float64)
        own[:, at] = torch.linalg.solve(K, start.root / scale)
        self.beta = nn.Parameter(torch.linalg.solve(C, start.beta / scale))
        self.loading = nn.Parameter(own)
        log_sigma = (
            torch.zeros(())
            if start.sigma is None
            else torch.tensor(start.sigma / scale).log()
        )
        self.log_sigma = nn.Parameter(log_sigma.double(), start.sigma is not None)
        columns = rows.fixed.shape[1], rows.random.shape[1]
        self.m1 = None if fixed is None else Branch(0, columns[0], fixed, 1, generator)
        self.m2 = (
            None if random is None else Branch(latent, columns[1], random, 1, generator)
        )

    @property
    def dispersion(self) -> Tensor | float:
        """Variance over that of the variance function."""
        if not self.log_sigma.requires_grad:
            return 1.0
        return (2 * self.log_sigma).exp() * self.scale**2

    @property
    def is_linear(self) -> bool:
        """Whether the predictor is linear in the latent effects."""
        return self.m2 is None or self.m2.is_zero

    def fixed(self, rows: Rows) -> Tensor:
        """Part of the predictor without latent effects; (rows,)."""
        eta = rows.F @ (self.C @ self.beta)
        if self.m1 is not None:
            eta = eta + self.m1(rows.fixed)[:, 0]
        return self.scale * eta

    def random(self, rows: Rows, b: Tensor) -> Tensor:
        """Part with them; (..., rows)."""
        eta = ((rows.Z @ (self.K @ self.loading)) * b[..., rows.subject, :]).sum(-1)
        if self.m2 is not None:
            eta = eta + self.m2(rows.random, b, rows.subject)[..., 0]
        return self.scale * eta

    def tangents(self, rows: Rows, b: Tensor) -> tuple[Tensor, Tensor]:
        """Part with them, (rows,), and its derivatives in them, (rows, latent)."""
        slope = rows.Z @ (self.K @ self.loading)
        eta = (slope * b[rows.subject]).sum(-1)
        if self.m2 is not None:
            more, steeper = self.m2.tangents(rows.random, b, rows.subject)
            eta, slope = eta + more, slope + steeper
        return self.scale * eta, self.scale * slope

    def log_prob(self, rows: Rows, eta: Tensor) -> Tensor:
        """Log-density of each row; (..., rows)."""
        return self.family.log_prob(rows.y, eta, scale=self.dispersion)

    def score(self, rows: Rows, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density's slope in the predictor, and its information."""
        phi = self.dispersion
        information = self.family.expected_weight(eta) / phi
        return (rows.y - self.family.mean(eta)) / phi, information


class Decoder(nn.Module):
    """Several outcomes that share the latent effects of a subject.

    Parameters
    ----------
    starts : sequence of Start
    sample : Sample
    fixed, random, prior : Net or None
        Networks of the fixed part, the random part and the mean of the latent effects.
    seed : int
    """

    def __init__(
        self, starts: Sequence[Start], sample: Sample, fixed: Net | None,
        random: Net | None, prior: Net | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [len(s.root) for s in starts]
        self.latent = sum(sizes)
        ends = [sum(sizes[: j + 1]) for j in range(len(sizes))]
        self.outcomes = nn.ModuleList(
            Outcome(s, rows, slice(end - q, end), self.latent, fixed, random, generator)
            for s, rows, q, end in zip(starts, sample.rows, sizes, ends, strict=True)
        )
        self.g = (
            None
            if prior is None
            else Branch(0, sample.prior.shape[1], prior, self.latent, generator)
        )

    @property
    def exact(self) -> bool:
        """Whether responses are jointly normal: the likelihood is a formula."""
        gaussian = all(o.log_sigma.requires_grad for o in self.outcomes)
        return gaussian and all(o.is_linear for o in self.outcomes)

    def centre(self, sample: Sample) -> Tensor:
        """Mean of the latent effects; (subjects, latent)."""
        if self.g is None:
            return torch.zeros(sample.n, self.latent, dtype=torch.float64)
        return self.g(sample.prior)

    def fixed(self, sample: Sample) -> list[Tensor]:
        """Predictors without latent effects, by outcome."""
        return [o.fixed(r) for o, r in zip(self.outcomes, sample.rows, strict=True)]

    def log_joint(
        self, sample: Sample, b: Tensor, fixed: list[Tensor], centre: Tensor
    ) -> Tensor:
        """Log-density of responses and latent effects; (..., subjects).

        The constant of the normal density of the latent effects is left out.
        """
        total = -0.5 * (b - centre).square().sum(-1)
        for o, rows, part in zip(self.outcomes, sample.rows, fixed, strict=True):
            terms = o.log_prob(rows, part + o.random(rows, b))
            total = total.index_add(-1, rows.subject, terms)
        return total

    def normal_equations(
        self, sample: Sample, b: Tensor, fixed: list[Tensor], centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient in the latent effects and their precision by Fisher's scoring.

        Returns
        -------
        Tensor, shape (subjects, latent)
        Tensor, shape (subjects, latent, latent)
        """
        k = self.latent
        gradient = centre - b
        precision = torch.eye(k, dtype=torch.float64).expand(sample.n, k, k)
        for o, rows, part in zip(self.outcomes, sample.rows, fixed, strict=True):
            eta, slope = o.tangents(rows, b)
            score, information = o.score(rows, part + eta)
            gradient = gradient.index_add(0, rows.subject, slope * score[:, None])
            outer = slope[:, :, None] * (slope * information[:, None])[:, None, :]
            precision = precision.index_add(0, rows.subject, outer)
        return gradient, precision


def _orthonormal(columns: Tensor) -> Tensor:
    """Matrix that makes columns orthonormal, their mean squares being one."""
    if not columns.shape[1]:
        return torch.zeros(0, 0, dtype=torch.float64)
    R = torch.linalg.qr(columns / len(columns) ** 0.5, mode="r").R
    eye = torch.eye(len(R), dtype=torch.float64)
    return torch.linalg.solve_triangular(R, eye, upper=True)
