"""Every Gaussian case of the stored reference, quantity by quantity.

lme4's default fits stop up to 2e-3 short of their own optimum in theta, so each case is
compared twice: our optimum with the polished one, and our equations *at lme4's own
theta* with everything lme4 reported there, far more strictly. Conditional modes and
their deviations at the polished optimum are not stored: they are those of our
equations, which the second comparison ties to lme4's.

``PYTHONPATH=tests/models python -m mixed.test_conformance`` prints the worst difference
of every quantity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from deepstats.models.mixed import LinearMixed, MixedResults
from deepstats.models.mixed.fitted import Fitted
from deepstats.models.mixed.search import Found

from .data import (
    CASES,
    EXACT,
    INFERENCE,
    NLME,
    fit,
    formula_of,
    level_of,
    load,
    name_of,
    sleepstudy_weights,
)

# Tolerances of the issue, at the optimum. Absolute for the criterion and correlations,
# relative for the others (of a variance at zero: of the residual's).
AT_OPTIMUM = {
    "criterion": 1e-6,
    "fixed effects": 1e-6,
    "standard errors": 1e-5,
    "SDs": 1e-4,
    "correlations": 1e-4,
    "theta": 1e-4,
    "sigma": 1e-4,
    "BLUPs": 1e-4,
    "conditional SDs": 1e-4,
    "fitted": 1e-4,
}
# At one theta there is nothing to search: only rounding, and lme4 prints 15 digits.
AT_THETA = dict.fromkeys(
    (
        "criterion", "fixed effects", "standard errors",
        "covariance of fixed effects", "SDs", "correlations", "sigma", "BLUPs",
        "conditional SDs", "fitted", "residuals", "pwrss", "wrss", "log|L|2",
        "log|RX|2", "AIC", "BIC", "logLik",
    ),
    1e-8,
)  # fmt: skip
# nlme stops at a relative tolerance of its own: its standard errors are 6e-6 off.
AT_NLME = {
    "criterion": 1e-6,
    "fixed effects": 1e-6,
    "standard errors": 1e-5,
    "sigma": 1e-5,
    "AIC": 1e-6,
    "BIC": 1e-6,
}


def off(found, stored, floor: float = 0.0) -> float:
    """Largest difference relative to the stored values, or to `floor` if larger."""
    found, stored = np.atleast_1d(found).astype(float), np.atleast_1d(stored)
    assert found.shape == stored.shape
    size = np.maximum(np.abs(stored), floor)
    return float((np.abs(found - stored) / np.where(size > 0, size, 1.0)).max())


def off_absolute(found, stored) -> float:
    found, stored = np.atleast_1d(found).astype(float), np.atleast_1d(stored)
    assert found.shape == stored.shape
    return float(np.abs(found - stored).max()) if found.size else 0.0


def spread(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations and correlations of all terms, in the formula's order."""
    sds, correlations = [], []
    for V in fitted.covariances:
        sd = np.sqrt(np.diag(V))
        sds.append(sd)
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations.append((V / sd / sd[:, None])[np.tril_indices(len(V), -1)])
    return np.concatenate(sds), np.concatenate(correlations)


def at(result: MixedResults, theta: Mapping[str, float]) -> MixedResults:
    """Everything at other covariance parameters, in lme4's order; no search."""
    labels = list(result.theta.index)
    assert [_group(n) for n in labels] == [_group(n) for n in theta]
    start = dict(zip(labels, theta.values(), strict=True))
    x = _parameters(result, start)
    criterion = result.mixed.criterion
    found = Found(criterion(x), True, 0, 0, 0.0, "given")
    return result.model.results(Fitted(found, criterion, result.mixed.compute))


def _parameters(result: MixedResults, theta: Mapping[str, float]) -> np.ndarray:
    from deepstats.models.mixed.model import parameters_of

    return parameters_of(result.mixed.structure, theta)


def _group(name: str) -> str:
    """Grouping factor of an entry of theta, whatever the order of its parts."""
    return ":".join(sorted(name.split(".")[0].split(":")))


def ordered(result: MixedResults, stored: Mapping[str, float]) -> np.ndarray:
    """Stored values by lme4's names, in the order of our fixed effects."""
    names = [name_of(n) for n in result.params.index]
    assert sorted(names) == sorted(stored)
    return np.array([stored[n] for n in names])


# -- at the optimum ------------------------------------------------------------------


def optimum_differences(case: str) -> dict[str, float]:
    """How far our optimum is from the polished one."""
    result, stored = fit(case), CASES[case]["polished"]
    polished = at(result, stored["theta"])
    sds, correlations = spread(result.mixed)
    their_sds, their_correlations = spread(polished.mixed)
    blups = _frames(result)
    their_blups = _frames(polished)
    beta, se = stored["beta"], stored["se"]
    names = [row["term"] for row in CASES[case]["fixef"]]
    by_name = beta if isinstance(beta, dict) else dict(zip(names, beta, strict=True))
    size = max(np.abs(b).max() for b, _ in their_blups)
    return {
        "criterion": abs(result.mixed.point.value - stored["objective"]),
        "fixed effects": off(result.params, ordered(result, by_name)),
        "standard errors": off(
            result.bse,
            ordered(result, dict(zip(names, np.atleast_1d(se), strict=True))),
        ),
        "SDs": off(sds, their_sds, polished.sigma),
        "correlations": off_absolute(correlations, their_correlations),
        "theta": off(result.theta, list(stored["theta"].values()), 1.0),
        "sigma": off(result.sigma, stored["sigma"]),
        "BLUPs": max(
            off(a, b, size)
            for (a, _), (b, _) in zip(blups, their_blups, strict=True)
        ),
        "conditional SDs": max(
            off(a, b, size)
            for (_, a), (_, b) in zip(blups, their_blups, strict=True)
        ),
        "fitted": off(result.fittedvalues, polished.fittedvalues, result.sigma),
    }  # fmt: skip


def _frames(result: MixedResults) -> list[tuple[np.ndarray, np.ndarray]]:
    fitted = result.mixed
    return [
        (b, np.sqrt(np.einsum("mkk->mk", v)))
        for b, v in zip(fitted.modes, fitted.mode_variances, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_optimum_is_the_polished_one(case):
    assert_within(optimum_differences(case), AT_OPTIMUM)


@pytest.mark.parametrize("case", CASES)
def test_optimum_is_no_worse_than_that_of_lme4(case):
    stored = CASES[case]
    criterion = fit(case).mixed.point.value
    # 1e-13 of the criterion is what summing 70,000 rows leaves.
    assert criterion <= stored["minus2ll_or_REMLcrit"] + 1e-13 * abs(criterion)


# -- at lme4's theta -----------------------------------------------------------------


def theta_differences(result: MixedResults, stored: dict) -> dict[str, float]:
    """How far our equations are from all that lme4 reported at its own theta."""
    here = at(result, stored["theta"])
    factorisation, weights = here.mixed.factorisation, here.model.design.weights
    fixed = {row["term"]: row["Estimate"] for row in stored["fixef"]}
    se = {row["term"]: row["Std. Error"] for row in stored["fixef"]}
    scale = ordered(here, se)
    residuals = here.resid_response.to_numpy()
    ours, theirs = varcorr_pairs(here.varcorr, stored["varcorr"])
    is_sd = np.array([row["var2"] is None for row in stored["varcorr"]])
    blups = list(effects(here, stored["ranef_first5"]))
    value, deviation, their_value, their_deviation = (
        np.array(part) for part in zip(*blups, strict=True)
    )
    size = max(np.abs(their_value).max(), their_deviation.max(), 1e-300)
    y = here.model.design.y
    return {
        "criterion": off(here.mixed.point.value, stored["minus2ll_or_REMLcrit"]),
        "fixed effects": off(
            (here.params - ordered(here, fixed)) / scale + 1.0, np.ones(len(scale))
        ),
        "standard errors": off(here.bse, scale),
        "covariance of fixed effects": covariance_difference(here, stored, scale),
        "SDs": off(ours[is_sd], theirs[is_sd], here.sigma),
        "correlations": off_absolute(ours[~is_sd], theirs[~is_sd]),
        "sigma": off(here.sigma, stored["sigma"]),
        "BLUPs": off(value, their_value, size),
        "conditional SDs": off(deviation, their_deviation, size),
        "fitted": off(here.fittedvalues.iloc[:5], stored["fitted_first5"], y.std()),
        "residuals": off(residuals[:5], stored["resid_first5"], here.sigma),
        "pwrss": off(factorisation.rss, stored["pwrss"]),
        "wrss": off(
            (residuals**2 * (1.0 if weights is None else weights)).sum(),
            stored["wrss"],
        ),
        "log|L|2": off(factorisation.logdet, stored["ldL2"], 1.0),
        "log|RX|2": off(factorisation.logdet_x, stored["ldRX2"], 1.0),
        "AIC": off(here.aic, stored["AIC"]),
        "BIC": off(here.bic, stored["BIC"]),
        "logLik": off(here.llf, stored["logLik"]),
    }


def covariance_difference(here: MixedResults, stored: dict, scale: np.ndarray) -> float:
    """Largest difference in units of standard errors; zero where none is stored."""
    if stored["vcov"] is None:
        return 0.0
    names = [row["term"] for row in stored["fixef"]]
    order = [names.index(name_of(n)) for n in here.params.index]
    V = np.array(stored["vcov"]).reshape(len(names), -1)[np.ix_(order, order)]
    return off_absolute((here.cov_params() - V) / scale / scale[:, None], 0 * V)


def varcorr_pairs(ours: pd.DataFrame, theirs: list[dict]) -> tuple[np.ndarray, ...]:
    """Standard deviations and correlations of both frames, row by row."""
    assert len(ours) == len(theirs)
    for (_, row), stored in zip(ours.iterrows(), theirs, strict=True):
        assert _group(row["grp"]) == _group(stored["grp"])
        for name in ("var1", "var2"):
            if stored[name] is None:
                assert pd.isna(row[name])
            else:
                assert name_of(row[name]) == stored[name]
    found = ours["sdcor"].to_numpy(), np.array([s["sdcor"] for s in theirs])
    return found


def effects(
    result: MixedResults, stored: Mapping[str, list[dict]]
) -> Iterator[tuple[float, float, float, float]]:
    """Our effects and deviations beside lme4's, for the levels that are stored."""
    frames = {_group(name): f for name, f in result.ranef(cond_var=True).items()}
    assert set(frames) == set(map(_group, stored))
    for group, rows in stored.items():
        frame = frames[_group(group)]
        labels = frame.index.map(str)
        names = {name_of(n): n for n in frame.columns if not n.endswith(".sd")}
        for row in rows:
            own = frame[labels == level_of(row["level"], group, frame.index.name)]
            assert len(own) == 1
            for term, value, deviation in zip(
                *(np.atleast_1d(row[k]) for k in ("term", "condval", "condsd")),
                strict=True,
            ):
                ours = own.iloc[0]
                name = names[str(term)]
                yield ours[name], ours[f"{name}.sd"], float(value), float(deviation)


@pytest.mark.parametrize("case", CASES)
def test_equations_at_lme4s_own_theta(case):
    assert_within(theta_differences(fit(case), CASES[case]), AT_THETA)


@pytest.mark.parametrize("case", CASES)
def test_counts_and_singularity(case):
    result, stored = fit(case), CASES[case]
    assert result.nobs == stored["nobs"]
    ours = {_group(name): m for name, m in result.ngroups.items()}
    assert ours == {_group(name): m for name, m in stored["ngrps"].items()}
    assert round((result.aic + 2 * result.llf) / 2) == stored["npar"]
    # lme4 stopped at 1.5e-5 of the four-factor REML fit, whose optimum is at zero.
    assert result.singular == stored["singular"]


# -- weights and offset --------------------------------------------------------------


@lru_cache
def fit_with(kind: str) -> MixedResults:
    stored = INFERENCE[f"{kind}_sleepstudy_ML"]
    data = sleepstudy_weights() if kind == "weights" else load("sleepstudy")
    weights = "w" if kind == "weights" else None
    return LinearMixed(formula_of(stored), data, weights=weights).fit(reml=False)


@pytest.mark.parametrize("kind", ("weights", "offset"))
def test_equations_with_weights_and_offset(kind):
    differences = theta_differences(fit_with(kind), INFERENCE[f"{kind}_sleepstudy_ML"])
    assert_within(differences, AT_THETA)


@pytest.mark.parametrize("kind", ("weights", "offset"))
def test_optimum_with_weights_and_offset(kind):
    """These have no polished optimum: lme4's is within what its optimiser leaves."""
    result, stored = fit_with(kind), INFERENCE[f"{kind}_sleepstudy_ML"]
    gap = stored["minus2ll_or_REMLcrit"] - result.mixed.point.value
    assert -1e-10 <= gap <= 1e-6
    fixed = {row["term"]: row["Estimate"] for row in stored["fixef"]}
    assert off(result.params, ordered(result, fixed)) <= 1e-5
    assert off(result.theta, list(stored["theta"].values()), 1.0) <= 1e-4


# -- other programs ------------------------------------------------------------------


def exact_differences(case: str) -> dict[str, float]:
    """How far our optimum is from that of an exact Newton method."""
    result, stored = fit(case), EXACT[case]
    names = [row["term"] for row in CASES[case]["fixef"]]
    beta = dict(zip(names, stored["beta"], strict=True))
    se = dict(zip(names, stored["se"], strict=True))
    theta = {n.split(".")[0]: v for n, v in result.theta.items()}
    sds = {row.grp: row.sdcor for row in result.varcorr.itertuples()}
    return {
        "criterion": abs(result.mixed.point.value - stored["objective"]),
        "fixed effects": off(result.params, ordered(result, beta)),
        "standard errors": off(result.bse, ordered(result, se)),
        "theta": off(
            [theta[k] for k in stored["theta"]], list(stored["theta"].values()), 1.0
        ),
        "SDs": off([sds[k] for k in stored["sd"]], list(stored["sd"].values())),
        "sigma": off(result.sigma, stored["sigma"]),
    }


@pytest.mark.parametrize("case", EXACT)
def test_insteval_is_at_the_exact_optimum(case):
    differences = exact_differences(case)
    assert_within(differences, {k: AT_OPTIMUM[k] for k in differences})


def nlme_differences(case: str) -> dict[str, float]:
    """How far our optimum is from nlme's.

    nlme inflates the covariance of fixed effects of an ML fit by ``n / (n - p)``, and
    counts ``n - p`` observations in the BIC of a REML fit.
    """
    result, stored = fit(case), NLME[case]
    n, p = result.nobs, len(result.params)
    fixed = {row["term"]: row["Value"] for row in stored["fixef"]}
    se = {row["term"]: row["Std.Error"] for row in stored["fixef"]}
    inflated = result.bse * (1.0 if result.reml else np.sqrt(n / (n - p)))
    npar = (result.aic + 2 * result.llf) / 2
    bic = -2 * result.llf + npar * np.log(n - p if result.reml else n)
    return {
        "criterion": abs(result.llf - stored["logLik"]),
        "fixed effects": off(result.params, ordered(result, fixed)),
        "standard errors": off(inflated, ordered(result, se)),
        "sigma": off(result.sigma, stored["sigma"]),
        "AIC": abs(result.aic - stored["AIC"]),
        "BIC": abs(bic - stored["BIC"]),
    }


@pytest.mark.parametrize("case", NLME)
def test_optimum_is_that_of_nlme(case):
    assert_within(nlme_differences(case), AT_NLME)


# -- the report ----------------------------------------------------------------------


def assert_within(differences: Mapping[str, float], tolerance: Mapping[str, float]):
    assert set(differences) == set(tolerance)
    beyond = {k: v for k, v in differences.items() if not v <= tolerance[k]}
    assert not beyond


REPORT: dict[str, tuple[Callable[[str], dict[str, float]], Mapping, Mapping]] = {
    "optimum against the polished one": (optimum_differences, CASES, AT_OPTIMUM),
    "equations at lme4's own theta": (
        lambda case: theta_differences(fit(case), CASES[case]), CASES, AT_THETA,
    ),
    "InstEval against an exact Newton method": (exact_differences, EXACT, AT_OPTIMUM),
    "optimum against nlme's": (nlme_differences, NLME, AT_NLME),
}  # fmt: skip


def worst_differences() -> pd.DataFrame:
    """Worst difference of every quantity over all cases, and the case it is of."""
    rows = []
    for title, (differences, cases, tolerance) in REPORT.items():
        found = {}
        for case in cases:
            try:
                found[case] = differences(case)
            except pytest.skip.Exception as reason:
                print(f"{case} skipped: {reason}")
        frame = pd.DataFrame(found).T
        rows += [
            (title, name, frame[name].max(skipna=False), frame[name].idxmax(),
             tolerance[name], len(frame))
            for name in frame
        ]  # fmt: skip
    return pd.DataFrame(
        rows, columns=["comparison", "quantity", "worst", "case", "tolerance", "cases"]
    )


if __name__ == "__main__":
    for title, part in worst_differences().groupby("comparison", sort=False):
        print(f"\n{title} ({part['cases'].iloc[0]} cases)")
        print(
            part.drop(columns=["comparison", "cases"]).to_string(
                index=False, float_format="{:.1e}".format
            )
        )
