"""Choosing the penalty: generalised cross-validation, folds, restricted likelihood."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from ...errors import DesignError, ModelError, RankWarning, SingularFitWarning
from ..mixed import LinearMixed
from .problems import Gaussian, Logistic, problem_of
from .sample import Sample

__all__ = ["RULES", "Choice", "by_folds", "by_gcv", "variance_ratios"]

Array = np.ndarray

RULES = ("cv", "1se", "gcv", "reml")


@dataclass(frozen=True, eq=False)
class Choice:
    """A penalty, and the table it was chosen from.

    Attributes
    ----------
    rule : str
    penalty : float
    table : DataFrame
        By penalty: the criterion, with its standard error where there are folds.
    """

    rule: str
    penalty: float
    table: pd.DataFrame


def by_gcv(problem: Gaussian, form: str, size: int) -> Choice:
    """Minimise the generalised cross-validation over all strengths.

    Both forms have the same solutions at other values of their penalties, so that the
    choice is among ridge strengths; between two of the grid it is by Brent's method.

    Parameters
    ----------
    problem : Gaussian
    form : {"norm", "squared"}
    size : int
        Number of strengths of the grid.

    References
    ----------
    Golub, Heath & Wahba (1979), Technometrics 21.
    """
    n = problem.sample.n

    def score(log_mu: float) -> float:
        mu = float(np.exp(log_mu))
        return problem.gcv(problem.ridge(mu, mu / n))

    logs = np.log(problem.grid("squared", size) * n)
    scores = np.array([score(v) for v in logs])
    best, at = int(np.argmin(scores)), None
    if 0 < best < size - 1:
        found = minimize_scalar(
            score, bounds=(logs[best + 1], logs[best - 1]), method="bounded",
            options={"xatol": 1e-6},
        )  # fmt: skip
        at = found.x if found.fun < scores[best] else None
    mu = float(np.exp(logs[best] if at is None else at))
    if form == "squared":
        strengths, chosen = np.exp(logs) / n, mu / n
    else:
        strengths = np.array([problem.norm_strength(float(m)) for m in np.exp(logs)])
        # At the strongest of the grid the criterion wants no deviations at all.
        chosen = problem.penalty_max if best == 0 else problem.norm_strength(mu)
    table = pd.DataFrame({"gcv": scores}, index=pd.Index(strengths, name="penalty"))
    return Choice("gcv", float(chosen), table)


def by_folds(
    sample: Sample, family: str, form: str, strengths: Array, rule: str, folds: int,
    seed: int,
) -> Choice:  # fmt: skip
    """Minimise the loss in rows left out.

    Parameters
    ----------
    sample : Sample
    family, form : str
    strengths : ndarray
        The strongest first.
    rule : {"cv", "1se"}
        The least mean loss; or the strongest within a standard error of it.
    folds : int
        Parts that the rows are dealt to at random. Groups that only the part left out
        has are predicted by the population's coefficients.
    seed : int

    Raises
    ------
    DesignError
        Where the rows of all other folds do not determine the coefficients.
    """
    part = np.random.default_rng(seed).permutation(np.arange(sample.n) % folds)
    losses = np.empty((folds, len(strengths)))
    for fold in range(folds):
        inside, outside = sample.subset(part != fold), sample.subset(part == fold)
        if np.linalg.matrix_rank(inside.X) < sample.p:
            raise DesignError(
                "without one of the folds the population coefficients are not "
                "determined, a rare level is missing: use more folds or another seed."
            )
        losses[fold] = _outside(inside, outside, family, form, strengths)
    mean = losses.mean(0)
    se = losses.std(0, ddof=1) / np.sqrt(folds)
    if np.isnan(mean).all():
        raise ModelError("no penalty of the grid could be fitted in all folds.")
    best = int(np.nanargmin(mean))
    if rule == "1se":
        best = int(np.argmax(mean <= mean[best] + se[best]))
    name = "mean squared error" if family == "gaussian" else "log-loss"
    table = pd.DataFrame(
        {name: mean, "std_error": se}, index=pd.Index(strengths, name="penalty")
    )
    return Choice(rule, float(strengths[best]), table)


def _outside(
    inside: Sample, outside: Sample, family: str, form: str, strengths: Array
) -> Array:
    """Mean loss in the rows left out, at each strength; NaN from the first too weak."""
    problem: Gaussian | Logistic = problem_of(inside, family)
    out, found = np.full(len(strengths), np.nan), None
    offset = 0.0 if outside.offset is None else outside.offset
    for j, penalty in enumerate(strengths):
        try:
            found = problem.solve(float(penalty), form, found)
        except ModelError:
            if j == 0:
                raise
            break
        eta = outside.linear(found.w, found.u) + offset
        out[j] = problem.loss_of(outside, eta).mean()
    return out


def variance_ratios(model: LinearMixed) -> list[Array]:
    """Variances of random effects over that of the residual, by REML.

    Parameters
    ----------
    model : LinearMixed
        Its terms have uncorrelated effects.

    Returns
    -------
    list of ndarray, each (k,)
        By term of the formula; zero where there is no such variance.
    """
    with warnings.catch_warnings():
        # A variance of zero is an answer here: no deviations of this column.
        warnings.simplefilter("ignore", SingularFitWarning)
        warnings.simplefilter("ignore", RankWarning)  # our own design has said so
        fitted: Any = model.fit(reml=True, ddf="normal").mixed
    roots = fitted.structure.raw_roots(fitted.point.x)
    return [np.diag(root) ** 2 for root in roots]
