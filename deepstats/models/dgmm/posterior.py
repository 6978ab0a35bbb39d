"""Latent effects given the responses: modes, bounds, the marginal likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .decoder import Decoder
from .rows import Sample

__all__ = ["Draws", "Marginal", "antithetic", "bound", "draw", "marginal", "modes"]

_LOG_2PI = math.log(2 * math.pi)
#: Proposals of importance sampling: t of this many degrees of freedom, this much wider
#: than Laplace's normal.
_DF, _WIDER = 8.0, 1.1
#: A step of the variational distribution is no longer than this, in prior sd.
_TRUST = 3.0


@dataclass(frozen=True, eq=False)
class Draws:
    """Weighted draws of the latent effects.

    Attributes
    ----------
    b : Tensor, shape (draws, subjects, latent)
    log_weights : Tensor, shape (draws, subjects)
        Joint over proposal density.
    """

    b: Tensor
    log_weights: Tensor

    @property
    def weights(self) -> Tensor:
        """Weights that sum to one for each subject."""
        return torch.softmax(self.log_weights, 0)

    @property
    def ess(self) -> Tensor:
        """Effective number of draws over their number; (subjects,)."""
        return 1 / self.weights.square().sum(0) / len(self.b)


@dataclass(frozen=True, eq=False)
class Marginal:
    """Marginal log-likelihood.

    Attributes
    ----------
    values : Tensor, shape (subjects,)
    errors : Tensor, shape (subjects,)
        Monte-Carlo standard errors; zero where it is exact.
    ess : Tensor, shape (subjects,)
        Effective share of the draws; one where it is exact.
    """

    values: Tensor
    errors: Tensor
    ess: Tensor


@torch.no_grad()
def modes(
    decoder: Decoder, sample: Sample, start: Tensor | None = None, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """Find modes by damped Fisher scoring, all subjects at once.

    Parameters
    ----------
    decoder : Decoder
    sample : Sample
    start : Tensor, shape (subjects, latent), optional
        The mean of the latent effects when None.
    steps : int

    Returns
    -------
    Tensor, shape (subjects, latent)
    Tensor, shape (subjects, latent, latent)
        Cholesky factor of the precision there.
    """
    fixed, centre = decoder.fixed(sample), decoder.centre(sample)
    b = centre.clone() if start is None else start
    damping = torch.zeros(sample.n, dtype=torch.float64)
    value = decoder.log_joint(sample, b, fixed, centre)
    for _ in range(steps):
        gradient, P = decoder.normal_equations(sample, b, fixed, centre)
        diagonal = torch.diagonal(P, dim1=-2, dim2=-1)
        damped = P + torch.diag_embed(damping[:, None] * diagonal)
        step = torch.linalg.solve(damped, gradient)
        moved = b + step
        new = decoder.log_joint(sample, moved, fixed, centre)
        better = new >= value - 1e-9 * (1 + value.abs())
        b = torch.where(better[:, None], moved, b)
        value = torch.where(better, new, value)
        damping = torch.where(better, damping / 10, damping * 10 + 1e-2)
        if bool(better.all()) and float(step.abs().max()) < 1e-8:
            break
    _, P = decoder.normal_equations(sample, b, fixed, centre)
    return b, torch.linalg.cholesky(P)


def antithetic(draws: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw standard normals in pairs of opposite sign; (draws, *shape)."""
    z = torch.randn(draws // 2, *shape, generator=generator, dtype=torch.float64)
    return torch.cat([z, -z])


def bound(
    decoder: Decoder, sample: Sample, b0: Tensor, z: Tensor, importance: bool
) -> tuple[Tensor, Tensor]:
    """Bound the marginal log-likelihood from below, by one step from stored modes.

    The variational distribution is normal, its mean one scoring step from `b0` and its
    precision the information there; gradients run through both (Park, Kim & Kim 2019).
    Where the responses are normal and the predictor linear it is the posterior, from
    any `b0`, and the bound is tight.

    Parameters
    ----------
    decoder : Decoder
    sample : Sample
    b0 : Tensor, shape (subjects, latent)
    z : Tensor, shape (draws, subjects, latent)
        Standard normal.
    importance : bool
        Logarithm of the mean weight (IWAE) instead of the mean of the logarithms.

    Returns
    -------
    Tensor, shape (subjects,)
    Tensor, shape (subjects, latent)
        The new modes, without gradient.

    References
    ----------
    Park, Kim & Kim (2019), Variational Laplace autoencoders, ICML. Burda, Grosse &
    Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
    """
    fixed, centre = decoder.fixed(sample), decoder.centre(sample)
    gradient, P = decoder.normal_equations(sample, b0, fixed, centre)
    C = torch.linalg.cholesky(P)
    step = torch.cholesky_solve(gradient[..., None], C)[..., 0]
    if not decoder.exact:
        length = step.norm(dim=-1, keepdim=True)
        step = step * (_TRUST / length.clamp(min=_TRUST))
    mode = b0 + step
    away = torch.linalg.solve_triangular(C.mT, z[..., None], upper=True)[..., 0]
    joint = decoder.log_joint(sample, mode + away, fixed, centre)
    log_q = _log_det(C) - 0.5 * z.square().sum(-1)
    weights = joint - log_q
    if importance:
        return torch.logsumexp(weights, 0) - math.log(len(z)), mode.detach()
    return weights.mean(0), mode.detach()


@torch.no_grad()
def draw(decoder: Decoder, sample: Sample, draws: int, generator: Generator) -> Draws:
    """Draw latent effects by importance sampling around each subject's mode.

    Parameters
    ----------
    decoder : Decoder
    sample : Sample
        Responses that are known.
    draws : int
        Even.
    generator : torch.Generator
    """
    mode, C = modes(decoder, sample)
    k = decoder.latent
    z = antithetic(draws, (sample.n, k), generator)
    if not decoder.exact:
        # One chi-square for both of a pair keeps them antithetic.
        normal = torch.randn(
            draws // 2, sample.n, int(_DF), generator=generator, dtype=torch.float64
        )
        chi = normal.square().sum(-1).repeat(2, 1) / _DF
        z = z / chi.sqrt()[..., None]
    wider = 1.0 if decoder.exact else _WIDER
    square = z.square().sum(-1)
    if decoder.exact:
        log_q = -0.5 * square - 0.5 * k * _LOG_2PI
    else:
        constant = math.lgamma((_DF + k) / 2) - math.lgamma(_DF / 2)
        constant -= 0.5 * k * math.log(_DF * math.pi)
        log_q = constant - 0.5 * (_DF + k) * torch.log1p(square / _DF)
    log_q = log_q + _log_det(C) - k * math.log(wider)
    away = torch.linalg.solve_triangular(C.mT, (wider * z)[..., None], upper=True)
    b = mode + away[..., 0]
    fixed, centre = decoder.fixed(sample), decoder.centre(sample)
    joint = decoder.log_joint(sample, b, fixed, centre) - 0.5 * k * _LOG_2PI
    return Draws(b, joint - log_q)


@torch.no_grad()
def marginal(
    decoder: Decoder, sample: Sample, draws: int, generator: Generator
) -> Marginal:
    """Marginal log-likelihood of each subject.

    Exact where the responses are normal and linear in the latent effects; else by
    importance sampling with proposals centred and scaled for each subject.
    """
    if decoder.exact:
        mode, C = modes(decoder, sample)
        fixed, centre = decoder.fixed(sample), decoder.centre(sample)
        value = decoder.log_joint(sample, mode, fixed, centre) - _log_det(C)
        return Marginal(value, torch.zeros_like(value), torch.ones_like(value))
    found = draw(decoder, sample, draws, generator)
    top = found.log_weights.max(0).values
    ratio = (found.log_weights - top).exp()
    pairs = ratio.reshape(2, -1, sample.n).mean(0)
    mean = pairs.mean(0)
    error = pairs.std(0) / len(pairs) ** 0.5 / mean
    return Marginal(top + mean.log(), error, found.ess)


def _log_det(C: Tensor) -> Tensor:
    return torch.diagonal(C, dim1=-2, dim2=-1).log().sum(-1)
