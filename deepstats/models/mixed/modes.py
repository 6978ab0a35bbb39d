"""Random effects and their covariances as frames."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .fitted import Fitted
from .structure import Term

__all__ = [
    "coefficient_frames", "effects_frames", "structured_values", "varcorr_frame",
]  # fmt: skip


def varcorr_frame(fitted: Fitted) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations, as lme4's frame.

    Parameters
    ----------
    fitted : Fitted

    Returns
    -------
    DataFrame
        Terms by decreasing number of levels, then "Residual". Of a structured
        covariance its standard deviations, and in rows of their own what its
        correlations are made of: var2 is then "cor", "range" ..., and sdcor the value.
    """
    rows: list[tuple] = []
    structure, covariances = fitted.structure, fitted.covariances
    for j in structure.order:
        term, V = structure.terms[j], covariances[j]
        group, sd = structure.factors[term.factor].name, np.sqrt(np.diag(V))
        if term.covariance is not None:
            rows += _structured_rows(fitted, term, group)
            continue
        for a, name in enumerate(term.names):
            rows.append((group, name, None, V[a, a], sd[a]))
        if term.kind == "diag":
            continue
        for a in range(term.k):
            for b in range(a + 1, term.k):
                with np.errstate(invalid="ignore", divide="ignore"):
                    cor = V[b, a] / (sd[a] * sd[b])
                rows.append((group, term.names[a], term.names[b], V[b, a], cor))
    rows.append(("Residual", None, None, fitted.sigma**2, fitted.sigma))
    return pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov", "sdcor"])


def structured_values(
    fitted: Fitted, term: Term
) -> tuple[list[tuple[str, float]], list[tuple[str, str, float]]]:
    """Read a structured covariance: what its parameters are called, and their values.

    Parameters
    ----------
    fitted : Fitted
    term : Term

    Returns
    -------
    deviations : list of (str, float)
        Names and standard deviations.
    shapes : list of (str, str, float)
        Names, scales ("cor" or "positive") and values of what makes the correlations.
    """
    own = term.covariance
    assert own is not None
    values = own.natural(fitted.x[term.params], term.U)
    names = own.names if own.heterogeneous else (own.label,)
    sds = (fitted.sigma * values[: own.scales]).tolist()
    shapes = values[own.scales :].tolist()
    return (
        list(zip(names, sds, strict=True)),
        list(zip(own.correlation.names, own.correlation.scales, shapes, strict=True)),
    )


def _structured_rows(fitted: Fitted, term: Term, group: str) -> list[tuple]:
    """Rows of a structured covariance: deviations, then what makes correlations."""
    assert term.covariance is not None
    label = term.covariance.label
    deviations, shapes = structured_values(fitted, term)
    rows: list[tuple] = [(group, name, None, sd**2, sd) for name, sd in deviations]
    return rows + [(group, label, name, np.nan, value) for name, _, value in shapes]


def effects_frames(fitted: Fitted, cond_var: bool) -> dict[str, pd.DataFrame]:
    """Conditional modes by grouping factor; see `MixedResults.ranef`."""
    out = {}
    for j in _factor_order(fitted):
        factor, names = fitted.structure.factors[j], _names(fitted, j)
        frame = pd.DataFrame(
            fitted.modes[j], index=pd.Index(factor.levels, name=factor.name),
            columns=names,
        )  # fmt: skip
        if cond_var:
            sd = np.sqrt(np.einsum("mkk->mk", fitted.mode_variances[j]).clip(0))
            for place, name in enumerate(names):
                frame[f"{name}.sd"] = sd[:, place]
        out[factor.name] = frame
    return out


def coefficient_frames(fitted: Fitted, fixed: pd.Series) -> dict[str, pd.DataFrame]:
    """Add fixed and random effects by level."""
    out = {}
    for j in _factor_order(fitted):
        factor = fitted.structure.factors[j]
        index = pd.Index(factor.levels, name=factor.name)
        frame = pd.DataFrame(
            np.tile(fixed.to_numpy(), (factor.m, 1)), index, list(fixed.index)
        )
        terms = fitted.structure.of(j)
        columns = [n for t in terms for n in t.names]
        for place, name in enumerate(columns):
            effect = fitted.modes[j][:, place]
            frame[name] = frame[name] + effect if name in frame else effect
        out[factor.name] = frame
    return out


def _factor_order(fitted: Fitted) -> list[int]:
    factors = fitted.structure.factors
    return sorted(range(len(factors)), key=lambda j: -factors[j].m)


def _names(fitted: Fitted, j: int) -> list[str]:
    """Names of a factor's effects; a repeated one is numbered."""
    out: list[str] = []
    for term in fitted.structure.of(j):
        for name in term.names:
            number = sum(n == name or n.startswith(f"{name}.") for n in out)
            out.append(name if not number else f"{name}.{number}")
    return out
