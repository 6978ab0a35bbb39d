"""How far a variational bound is off: the log-likelihood by importance sampling.

With draws from q the mean of ``p(y, b) / q(b)`` is the likelihood, whatever q; its
logarithm is the bound corrected. How much the weights vary says how well q fits: the
effective number of draws, and Pareto's k, the shape of a generalised Pareto
distribution fitted to the largest weights. Above 0.7 means of them are not to be
trusted (Vehtari et al. 2024), and the correction is a lower bound that more draws
would raise further.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .blocks import apply, congruence, identity_plus
from .elimination import Factorisation
from .variational import Equations

__all__ = ["Corrected", "corrected", "deviations", "gaussian_weights", "pareto_k"]

#: Draws at a time.
_BATCH = 100
#: Above this shape the mean of the weights is not to be trusted.
_UNRELIABLE = 0.7


@dataclass(frozen=True)
class Corrected:
    """The log-likelihood by importance sampling from the variational posterior.

    Attributes
    ----------
    value : float
        Log-likelihood at the estimates (restricted, where the bound is).
    std_error : float
        Monte-Carlo error of `value`, by the delta method.
    elbo : float
        The bound.
    ess : float
        Effective number of draws.
    khat : float
        Pareto's k of the weights; above 0.7 they have no variance to speak of, and
        `value` is too low. Minus infinity where all weights are the same.
    draws : int
    """

    value: float
    std_error: float
    elbo: float
    ess: float
    khat: float
    draws: int

    @property
    def gap(self) -> float:
        """How far the bound is below the log-likelihood."""
        return self.value - self.elbo

    @property
    def reliable(self) -> bool:
        """Whether the weights let the value be trusted."""
        return self.khat <= _UNRELIABLE

    def __repr__(self) -> str:
        trust = "" if self.reliable else ": not to be trusted, too low"
        return (
            f"<log-likelihood {self.value:.3f} (se {self.std_error:.2g}), "
            f"{self.gap:.3g} above the bound; {self.draws} draws worth "
            f"{self.ess:.0f}, Pareto k {self.khat:.2f}{trust}>"
        )


def corrected(elbo: float, log_weights: np.ndarray) -> Corrected:
    """Average weights.

    Parameters
    ----------
    elbo : float
    log_weights : ndarray, shape (draws,)
        Logarithms of ``p(y, b) / q(b)``.
    """
    top = log_weights.max()
    w = np.exp(log_weights - top)
    mean = w.mean()
    error = float(w.std(ddof=1) / np.sqrt(len(w)) / mean)
    ess = float(w.sum() ** 2 / (w**2).sum())
    return Corrected(
        float(top + np.log(mean)), error, elbo, ess, pareto_k(log_weights), len(w)
    )


def checked_draws(draws: int) -> int:
    """Return a number of draws, if it is one.

    Raises
    ------
    ValueError
    """
    if isinstance(draws, bool) or not (isinstance(draws, Integral) and draws >= 25):
        raise ValueError(f"draws must be a whole number >= 25, not {draws!r}.")
    return int(draws)


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution of the largest weights.

    Parameters
    ----------
    log_weights : ndarray, shape (draws,)

    References
    ----------
    Zhang & Stephens (2009), A new and efficient estimation method for the generalized
    Pareto distribution, Technometrics 51. Vehtari, Simpson, Gelman, Yao & Gabry (2024),
    Pareto smoothed importance sampling, Journal of Machine Learning Research 25.
    """
    n = len(log_weights)
    count = int(min(0.2 * n, 3 * np.sqrt(n)))
    w = np.sort(np.exp(log_weights - log_weights.max()))
    tail = w[-count:] - w[-count - 1]
    if tail[-1] <= 1e-10 * w[-1]:
        return -np.inf
    tail = tail[tail > 0]
    count = len(tail)
    # Candidates for -k / scale, weighed by their profile likelihoods.
    points = 30 + int(np.sqrt(count))
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    quarter = tail[max(int(count / 4 + 0.5) - 1, 0)]
    b = 1 / tail[-1] + grid / (3 * quarter)
    k = np.log1p(-b[:, None] * tail).mean(1)
    profile = count * (np.log(-b / k) - k - 1)
    weight = np.exp(profile - profile.max())
    best = float((b * weight).sum() / weight.sum())
    found = float(np.log1p(-best * tail).mean())
    # A weak prior at one half, worth ten draws.
    return (count * found + 10 * 0.5) / (count + 10)


def deviations(
    own: Factorisation, draws: int, generator: np.random.Generator
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Draw large factors' effects under q about their means given all others.

    Parameters
    ----------
    own : Factorisation
        See `variational.Equations`.
    draws : int
    generator : numpy.random.Generator

    Returns
    -------
    effects, spherical : list of Tensor, each (K, m, draws)
        By stage; over sigma. Effects are the factor of V times spherical ones.
    squares : Tensor, shape (draws,)
        Sums of squares of the standard normal numbers they are made of.
    """
    effects: list[Tensor] = [torch.empty(0)] * len(own.stages)
    spherical = list(effects)
    squares = own.L.new_zeros(draws)
    order = own.products.stage_factors
    for number in range(len(own.stages) - 1, -1, -1):
        stage, root = own.stages[number], own.roots[order[number]]
        k, m = stage.D.shape[0], stage.D.shape[2]
        noise = torch.from_numpy(generator.standard_normal((k, m, draws))).to(root)
        squares += (noise**2).sum((0, 1))
        A = identity_plus(congruence(root, stage.D)).permute(2, 0, 1)
        factor = torch.linalg.cholesky(A).mT
        drawn = torch.linalg.solve_triangular(
            factor, noise.transpose(0, 1), upper=True
        ).transpose(0, 1)
        for later, E in stage.E.items():
            above = effects[later].index_select(1, stage.parent[later])
            pull = torch.einsum("ab,amc->bmc", root, apply(E, above))
            drawn = drawn - torch.cholesky_solve(
                pull.transpose(0, 1), factor.mT
            ).transpose(0, 1)
        spherical[number] = drawn
        effects[number] = torch.einsum("ab,bmc->amc", root, drawn)
    return effects, spherical, squares


def gaussian_weights(
    f: Equations, elbo: float, draws: int, with_x: bool, seed: int | None
) -> np.ndarray:
    """Logarithms of the weights of a Gaussian model, (draws,).

    Posterior and q differ in the blocks between large factors only, N: the weights are
    ``exp(ELBO - d'Nd / 2)`` with d the deviations from the means under q.

    Parameters
    ----------
    f : Equations
    elbo : float
    draws : int
    with_x : bool
        Whether the fixed effects are integrated over (REML).
    seed : int, optional
    """
    generator, out = np.random.default_rng(seed), []
    for start in range(0, draws, _BATCH):
        count = min(_BATCH, draws - start)
        d, _, _ = deviations(f.own, count, generator)
        crossed = f.products.cross(d)
        if f.products.mean_field and with_x:
            root = torch.linalg.cholesky(f.covariance(True))
            noise = generator.standard_normal((len(root), count))
            beta = root @ torch.from_numpy(noise).to(root)
            crossed = [
                c + 2 * (s.XY[:, :, :-1] @ beta)
                for c, s in zip(crossed, f.products.stages, strict=True)
            ]
        form = sum((a * b).sum((0, 1)) for a, b in zip(d, crossed, strict=True))
        out.append(elbo - 0.5 * form.cpu().numpy())
    return np.concatenate(out)
