"""The printed page of a deep mixed model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...summary import Notes, Pairs, Summary, Table

if TYPE_CHECKING:
    from .results import DeepMixedResults

__all__ = ["deep_summary"]

_PARTS = {"deep_fixed": "fixed part", "deep_random": "random part",
          "deep_prior": "prior mean"}  # fmt: skip


def deep_summary(results: DeepMixedResults) -> Summary:
    """Lay out a fit: header, networks, outcomes, notes.

    Parameters
    ----------
    results : DeepMixedResults

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [Pairs(tuple(_header(results)), columns=2)]
    nets = {
        _PARTS[what]: (declared.formula, " x ".join(map(str, declared.layers)))
        for what, declared in results.model.nets.items()
        if declared is not None
    }
    if nets:
        frame = pd.DataFrame(nets, index=["inputs", "hidden layers"]).T
        blocks.append(Table(frame, caption="Networks", align="ll"))
    blocks.append(Table(_outcomes(results), {"rows": "d"}, caption="Outcomes"))
    blocks.append(Notes(tuple(_notes(results))))
    text = "; ".join(r.formula.text for r in results.model.reader.outcomes)
    return Summary(results.model.title, text, tuple(blocks))


def _header(results: DeepMixedResults) -> Iterator[tuple[str, Any]]:
    sample, chosen = results.model.reader.sample, results.chosen
    likelihood = results.loglik()
    yield "Subjects", sample.n
    yield "Latent effects", results.decoder.latent
    yield "Log-likelihood", likelihood.value
    yield "Monte-Carlo error", likelihood.error
    yield "Epochs chosen", chosen.epoch
    yield "Refit on all subjects", "yes" if results.again is not None else "no"
    if np.isfinite(chosen.gain):
        yield "Held-out gain per subject", chosen.gain
        yield "Its standard error", chosen.error


def _outcomes(results: DeepMixedResults) -> pd.DataFrame:
    """Return rows and families of outcomes, residual sd at the start and now."""
    model, rows = results.model, {}
    for reading, before, now, part in zip(
        model.reader.outcomes, results.start.outcomes, results.decoder.outcomes,
        model.reader.sample.rows, strict=True,
    ):  # fmt: skip
        gaussian = before.log_sigma.requires_grad
        sd = [
            float(o.log_sigma.detach().exp()) * o.scale if gaussian else ""
            for o in (before, now)
        ]
        rows[reading.name] = (model.families[reading.name].name, len(part.y), *sd)
    columns = ["family", "rows", "residual sd: mixed", "deep"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _notes(results: DeepMixedResults) -> Iterator[str]:
    if results.left_start:
        yield (
            "The mixed model was left: held-out subjects prefer the networks. "
            "Coefficients beside networks have no standard errors in this version."
        )
    else:
        yield "This is the mixed model: held-out subjects gave no reason to leave it."
    for run in (results.chosen, results.again):
        if run is not None and run.trouble:
            yield f"Training stopped: {run.trouble}; the last good state is kept."
