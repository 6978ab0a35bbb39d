"""Predictions from draws of the latent effects given what is known of a subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from .decoder import Decoder, Outcome
from .posterior import antithetic, draw
from .rows import Rows, Sample

__all__ = ["Forecast", "forecast"]

#: Numbers of a layer's values held at once; subjects are worked through in blocks.
_HELD = 20_000_000


@dataclass(frozen=True, eq=False)
class Forecast:
    """Prediction of the rows of one outcome.

    Attributes
    ----------
    mean : ndarray, shape (n,)
        Of the response.
    lower, upper : ndarray, shape (n,)
        Limits: of the subject's own mean, or of a new response.
    """

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


@torch.no_grad()
def forecast(
    decoder: Decoder, known: Sample | None, wanted: Sample, draws: int, level: float,
    new_response: bool, generator: Generator,
) -> list[Forecast]:  # fmt: skip
    """Predict rows from what is known of their subjects.

    Parameters
    ----------
    decoder : Decoder
    known : Sample or None
        Known responses of the same subjects, of any outcome; None for subjects of whom
        nothing is known: the latent effects are drawn from their distribution.
    wanted : Sample
        Rows to predict.
    draws : int
        Even.
    level : float
    new_response : bool
        Limits for a response rather than the subject's mean.
    generator : torch.Generator

    Returns
    -------
    list of Forecast
        By outcome.
    """
    outs = [np.full((3, len(r.y)), np.nan) for r in wanted.rows]
    for part in _blocks(decoder, wanted, draws):
        here = wanted.subjects(part)
        history = None if known is None else known.subjects(part)
        b, weights, picked = _effects(decoder, history, here, draws, generator)
        for out, o, rows, whole in zip(
            outs, decoder.outcomes, here.rows, wanted.rows, strict=True
        ):
            at = torch.isin(whole.subject, part).numpy()
            out[:, at] = _limits(
                o, rows, b, weights, picked, level, new_response, generator
            )
    return [Forecast(*out) for out in outs]


def _blocks(decoder: Decoder, wanted: Sample, draws: int) -> list[Tensor]:
    """Subjects in blocks whose draws of hidden layers fit into memory."""
    rows = sum(len(r.y) for r in wanted.rows) / max(wanted.n, 1)
    widths = [w.shape[0] for o in decoder.outcomes if o.m2 for w in o.m2.weights]
    width = max([decoder.latent, *widths])
    size = max(1, int(_HELD / (draws * max(rows, 1) * width)))
    return list(torch.arange(wanted.n).split(size))


def _effects(
    decoder: Decoder, known: Sample | None, wanted: Sample, draws: int,
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Draws, their weights, and which draws stand for the posterior equally."""
    if known is None:
        z = antithetic(draws, (wanted.n, decoder.latent), generator)
        weights = torch.full((draws, wanted.n), 1 / draws, dtype=torch.float64)
        which = torch.arange(draws)[:, None].expand(draws, wanted.n)
        return decoder.centre(wanted) + z, weights, which
    found = draw(decoder, known, draws, generator)
    weights = found.weights
    # Systematic resampling: one uniform a subject, the least noise.
    u = torch.rand(1, wanted.n, generator=generator, dtype=torch.float64)
    grid = (torch.arange(draws)[:, None] + u) / draws
    which = torch.searchsorted(weights.cumsum(0).T.contiguous(), grid.T.contiguous()).T
    return found.b, weights, which.clamp(max=draws - 1)


def _limits(
    outcome: Outcome, rows: Rows, b: Tensor, weights: Tensor, which: Tensor,
    level: float, new_response: bool, generator: Generator,
) -> np.ndarray:  # fmt: skip
    if not len(rows.y):
        return np.zeros((3, 0))
    eta = outcome.fixed(rows) + outcome.random(rows, b)
    mean = (weights[:, rows.subject] * outcome.family.mean(eta)).sum(0)
    eta = torch.gather(eta, 0, which[:, rows.subject])
    values = outcome.family.mean(eta)
    if new_response:
        values = outcome.family.sample(
            eta, generator=generator, scale=outcome.dispersion
        )
    tail = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    limits = torch.quantile(values.double(), tail, dim=0)
    return torch.stack([mean, *limits]).numpy()
