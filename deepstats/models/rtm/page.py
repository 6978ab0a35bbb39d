"""The printed page of a risk terrain model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...results import counted
from ...summary import Notes, Pairs, Summary, Table, coefficient_table

if TYPE_CHECKING:
    from .results import RiskTerrainResults

__all__ = ["terrain_summary"]

_FAMILIES = {
    "poisson": "Poisson (log)",
    "nb1": "negative binomial, mu + alpha mu",
    "nb2": "negative binomial, mu + alpha mu^2",
}


def terrain_summary(results: RiskTerrainResults, alpha: float = 0.05) -> Summary:
    """Lay out a fit: header, risk factors, other coefficients, notes.

    Parameters
    ----------
    results : RiskTerrainResults
    alpha : float, default 0.05

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [Pairs(tuple(_header(results)), columns=2)]
    if results.rules:
        blocks.append(_risks(results, alpha))
    blocks += [_others(results, alpha), Notes(tuple(_notes(results)))]
    return Summary(results.model.title, results.model.plan.text, tuple(blocks))


def _header(results: RiskTerrainResults) -> list[tuple[str, Any]]:
    choice, model = results.choices[results.family], results.model
    return [
        ("Family", _FAMILIES[results.family]),
        ("Chosen by", f"{choice.method}, {model.plan.criterion.upper()}"),
        ("Candidates", str(sum(model.terrain.sizes))),
        ("Models", f"{len(choice.scored.choices)}"),
        ("SE", results.final.cov_description),
        ("Converged", "yes" if results.converged else "NO"),
        ("Units", str(int(results.nobs))),
        ("Crimes", f"{model.terrain.y.sum():.0f}"),
        ("Highest score", f"{results.scores()['relative_risk'].max():.2f}"),
        ("Log-likelihood", f"{results.llf:.2f}"),
        ("AIC", f"{results.aic:.2f}"),
        ("BIC", f"{results.bic:.2f}"),
    ]


def _risks(results: RiskTerrainResults, alpha: float) -> Table:
    table = results.risk_table(alpha)
    kinds = {"distance": "within", "density": "density", "column": "column"}
    tail = alpha / 2
    frame = pd.DataFrame(
        {
            "kind": [kinds[k] for k in table["kind"]],
            "size": [f"{v:g}" if np.isfinite(v) else "" for v in table["size"]],
            "coef": table["coef"].to_numpy(), "std err": table["std_error"].to_numpy(),
            "z": table["z"].to_numpy(), "P>|z|": table["p_value"].to_numpy(),
            "RRV": table["rrv"].to_numpy(),
            f"[{tail:.4g}": table["conf_low"].to_numpy(),
            f"{1 - tail:.4g}]": table["conf_high"].to_numpy(),
        },
        index=[
            f if k != "column" else f"{f}: {name}"
            for f, k, name in zip(
                table["factor"], table["kind"], table.index, strict=True
            )
        ],
    )  # fmt: skip
    formats = {c: ".3f" for c in frame.columns if c not in ("kind", "size")}
    return Table(
        frame, formats, caption="Relative risk values (RRV) and their limits",
        align="lrrrrrrrr",
    )  # fmt: skip


def _others(results: RiskTerrainResults, alpha: float) -> Table:
    """Intercept, what was forced in, and the overdispersion."""
    final, chosen = results.final, {r.label for r in results.rules}
    names = [n for n in final.names if n not in chosen]
    return coefficient_table(
        final.params[names], final.bse[names], final.tvalues[names],
        final.pvalues[names], final.conf_int(alpha).loc[names], final.use_t,
        conf_level=1 - alpha, caption="Forced in",
    )  # fmt: skip


def _notes(results: RiskTerrainResults) -> Iterator[str]:
    model, choice = results.model, results.choices[results.family]
    yield (
        "Standard errors take the choice for given; split_sample() and bootstrap() do "
        "not."
    )
    if len(results.choices) > 1:
        families = results.families()
        name = model.plan.criterion
        shown = ", ".join(f"{f} {v:.2f}" for f, v in families[name].items())
        yield f"{name.upper()} of the best model by family: {shown}."
    hopeless = model.hopeless(choice)
    for factor in model.plan.factors:
        if factor in {r.factor for r in results.rules}:
            continue
        reason = hopeless.get(
            factor, f"it does not lower the {model.plan.criterion.upper()}"
        )
        yield f"Not chosen: {factor}; {reason}."
    if model.left_out:
        yield (
            f"Left out: {counted(len(model.left_out), 'candidate')} the same at all "
            "units, or at the same units as another."
        )
    if model.uncounted:
        yield f"Not counted: {counted(model.uncounted, 'crime')} inside no unit."
    yield from results.final._notes()
