"""Tables of analysis of variance and deviance, and tests by restricted fits."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .columns import Categorical
from .errors import ContrastWarning, ConvergenceWarning, ModelError
from .inference import HypothesisTest, linear_hypotheses, score_statistic, wald
from .optimize import Derivatives, newton, solve_information
from .transforms import evaluate

if TYPE_CHECKING:
    from .results import Results

__all__ = ["anova", "lr_test", "restricted_fit", "score_test"]

_MODEL_BASED = ("nonrobust", "oim", "eim", "opg")


# -- fits under linear restrictions ---------------------------------------------------


def restricted_fit(
    results: Results, R: np.ndarray, q: np.ndarray
) -> tuple[Tensor, float, int]:
    """Maximise the likelihood under ``R params = q``.

    The restriction is solved, not penalised: ``params = b + N phi`` with N a basis of
    the null space of R, and Newton runs over phi.

    Parameters
    ----------
    results : Results
        The unrestricted fit.
    R : ndarray, shape (restrictions, p)
    q : ndarray, shape (restrictions,)

    Returns
    -------
    x : Tensor, shape (p,)
        Restricted estimates, on the optimiser's scale.
    value : float
        What the optimiser maximises, at `x`.
    rank : int
        Restrictions that are not redundant.

    Raises
    ------
    ModelError
        For restrictions of a parameter that is estimated as its logarithm.
    ValueError
        For restrictions that contradict each other.
    """
    from scipy import linalg

    likelihood, fit = results.likelihood, results.fit_info
    touched = np.flatnonzero(R.any(axis=0))
    _refuse_positive(results, touched)
    part = R[:, touched]
    base = np.linalg.lstsq(part, q, rcond=None)[0]
    size = 1 + np.abs(q).max()
    if not np.allclose(part @ base, q, rtol=1e-8, atol=1e-10 * size):
        raise ValueError(
            "the hypotheses contradict each other: nothing meets them all."
        )
    null = linalg.null_space(part)
    p, rank = R.shape[1], part.shape[1] - null.shape[1]
    others = np.setdiff1d(np.arange(p), [*touched, *fit.at_bound])
    held = torch.zeros(p, dtype=torch.float64)
    held[list(fit.at_bound)] = fit.x[list(fit.at_bound)]
    held[touched] = torch.from_numpy(base)
    N = torch.zeros(p, len(others) + null.shape[1], dtype=torch.float64)
    N[others, torch.arange(len(others))] = 1.0
    N[touched, len(others) :] = torch.from_numpy(null)
    which = fit.information

    def objective(phi: Tensor) -> Derivatives:
        found = likelihood.derivatives(held + N @ phi, which)
        information = N.T @ found.information @ N
        return Derivatives(found.value, N.T @ found.gradient, information)

    start = N.T @ (fit.x - held)
    if N.shape[1] == 0:
        return held, objective(start).value, rank
    lower = torch.full((N.shape[1],), -torch.inf, dtype=torch.float64)
    lower[: len(others)] = likelihood.parameters.lower()[others]
    optimum = newton(objective, start, lower=lower, tolerance=1e-8)
    if not optimum.converged:
        warnings.warn(
            f"the fit under the restriction did not converge: {optimum.message}.",
            ConvergenceWarning,
            stacklevel=4,
        )
    return held + N @ optimum.x, optimum.value, rank


def _refuse_positive(results: Results, touched: np.ndarray) -> None:
    blocks = results.model.parameters.blocks
    positive = [b.positive for b in blocks for _ in b.labels]
    bad = [results.names[j] for j in touched if positive[j]]
    if bad:
        raise ModelError(
            f"{', '.join(bad)} is estimated as its logarithm, and a restriction of it "
            "is not linear there (at zero it is at the edge of its range); fit the "
            "simpler model and use compare_lr_test, or use wald_test."
        )


def _twice_the_fall(results: Results, full: float, restricted: float) -> float:
    """Likelihood-ratio statistic from what the optimiser maximised.

    With a Gaussian response the variance is profiled out; other dispersions are held
    at the estimate of the larger model, as in R's ``anova.glm``.
    """
    if _is_gaussian(results):
        ratio = restricted / full
        return results.nobs * float(np.log(ratio))
    return 2 * (full - restricted) / results.scale


def _is_gaussian(results: Results) -> bool:
    family = results.model.family
    return family.name == "gaussian" and family.links[0].name == "identity"


def lr_test(results: Results, hypotheses: Any) -> HypothesisTest:
    """Likelihood-ratio test of linear hypotheses, by a fit that obeys them.

    Parameters
    ----------
    results : Results
    hypotheses : str, sequence of str or array_like
        ``"x1 = 0, x2 = x3"``; see `inference.linear_hypotheses`.

    Returns
    -------
    HypothesisTest

    Notes
    -----
    For least squares the statistic is ``n log(SSR0 / SSR1)``. GLMs with a dispersion
    use the fall of the deviance over the dispersion of the larger model.
    """
    from scipy import stats

    R, q, _ = linear_hypotheses(hypotheses, results.names)
    full = results.likelihood.derivatives(results.fit_info.x).value
    _, value, rank = restricted_fit(results, R, q)
    statistic = max(_twice_the_fall(results, full, value), 0.0)
    p = float(stats.chi2.sf(statistic, rank))
    return HypothesisTest(statistic, rank, None, p, "chi2", "likelihood ratio")


def score_test(
    results: Results, hypotheses: Any, *, information: str | None = None
) -> HypothesisTest:
    """Rao's score test of linear hypotheses.

    Only the restricted model has to fit: the statistic is ``g' I^-1 g`` with score and
    information of the larger model at the restricted estimates.

    Parameters
    ----------
    results : Results
        The larger fit.
    hypotheses : str, sequence of str or array_like
        ``"x1 = 0, x2 = 0"``; see `inference.linear_hypotheses`.
    information : {"observed", "expected"}, optional
        By default what the fit reports.

    Returns
    -------
    HypothesisTest

    Notes
    -----
    A dispersion is estimated at the restricted estimates; for a Gaussian response as
    ``SSR0 / n``, which makes the statistic n times an R-squared.

    References
    ----------
    Rao, C. R. (1948). Large sample tests of statistical hypotheses concerning several
    parameters. Proceedings of the Cambridge Philosophical Society 44, 50-57.
    """
    information = information or results.fit_info.information
    which = results.model._which_information(information)
    R, q, _ = linear_hypotheses(hypotheses, results.names)
    x, value, rank = restricted_fit(results, R, q)
    found = results.likelihood.derivatives(x, which)
    if _is_gaussian(results):
        scale = -2 * value / results.nobs
    elif getattr(results.model.family, "scale", "one") == "one":
        scale = results.scale
    else:
        scale = results.model.scale(results.likelihood, x, results.df_resid + rank)
    inverse = solve_information(found.information) / scale
    return score_statistic(found.gradient, inverse, rank)


# -- tables ---------------------------------------------------------------------------


def anova(*fits: Results, typ: int = 1, test: str | None = None) -> pd.DataFrame:
    """Analysis of variance (least squares) or of deviance (other models).

    Parameters
    ----------
    *fits : Results
        One fit, for a table of its terms, or several nested fits to the same rows, each
        compared with the one before.
    typ : {1, 2, 3}, default 1
        For one fit: terms in sequence; each term given all that do not contain it; each
        term given all others.
    test : {"F", "LR", "Wald", "Rao"}, optional
        By default "F" for least squares and for GLMs with an estimated dispersion, "LR"
        for other likelihoods, and "Wald" when the covariance of the (largest) fit is a
        robust one: the only of these that uses it. "Rao" is for nested fits.

    Returns
    -------
    DataFrame
        A row for each term or fit, with the columns of statsmodels' ``anova_lm``;
        deviances in place of sums of squares for GLMs, log-likelihoods for others.
        Mixed models have tables of their own: tests of terms with their degrees of
        freedom for one fit, lme4's table of maximum-likelihood fits for several.

    Raises
    ------
    ValueError
        For fits of different rows or responses, or an unknown option.

    Warns
    -----
    ContrastWarning
        If type 3 is asked for with interactions of factors whose coding does not sum to
        zero: what is tested then depends on the reference levels.
    """
    if not fits:
        raise ValueError("anova needs at least one fit.")
    if typ not in (1, 2, 3):
        raise ValueError(f"typ must be 1, 2 or 3, not {typ!r}.")
    if test not in (None, "F", "LR", "Wald", "Rao"):
        raise ValueError(f"test must be 'F', 'LR', 'Wald' or 'Rao', not {test!r}.")
    if len(fits) > 1 and typ != 1:
        raise ValueError("typ is for the table of one fit; leave it out for several.")
    # Models whose likelihoods are compared in another way have tables of their own.
    own: Any = next((f for f in fits if hasattr(f, "_compare")), None)
    if own is not None:
        usual = "LR" if len(fits) > 1 else "F"
        if test not in (None, usual):
            raise ValueError(f"test must be {usual!r} here, not {test!r}.")
        return own._compare(fits) if len(fits) > 1 else own.anova(typ)
    if len(fits) > 1:
        return _nested(fits, test)
    return _terms(fits[0], typ, test)


def _default_test(results: Results) -> str:
    if results.cov_type not in _MODEL_BASED:
        return "Wald"
    return "F" if _kind(results) == "ssr" or _dispersed(results) else "LR"


def _kind(results: Results) -> str:
    """Name what measures the misfit of a model: ssr, deviance or llf."""
    facts = results.fit_info.facts
    return next(k for k in ("ssr", "deviance", "llf") if k in facts)


def _dispersed(results: Results) -> bool:
    return getattr(results.model.family, "scale", "one") == "estimated"


# -- one fit --------------------------------------------------------------------------


def _terms(results: Results, typ: int, test: str | None) -> pd.DataFrame:
    test = test or _default_test(results)
    if test == "Rao":
        raise ValueError("test='Rao' is for nested fits; use score_test for one fit.")
    if typ == 3:
        _check_contrasts(results)
    columns = results._term_columns()
    if typ == 3 and "Intercept" in results.model.design.X.names:
        columns = {
            "Intercept": [results.model.design.X.names.index("Intercept")],
            **columns,
        }
    factors = {t.name: t.factors for t in results.model.design.spec.formula.rhs.terms}
    after = {t: _after(t, columns, factors, typ) for t in columns}
    if _kind(results) == "ssr" or test == "Wald":
        return _by_hypotheses(results, columns, after, typ, test)
    return _by_deviance(results, columns, after, typ, test)


def _after(
    term: str,
    columns: dict[str, list[int]],
    factors: dict[str, tuple[str, ...]],
    typ: int,
) -> list[int]:
    """Columns that are out of the model when a term is tested."""
    names = list(columns)
    if typ == 1:
        others = names[names.index(term) + 1 :]
    elif typ == 2:
        mine = set(factors[term])
        others = [o for o in names if mine < set(factors[o])]
    else:
        others = []
    return [j for o in others for j in columns[o]]


def _hypothesis(bread: np.ndarray, after: list[int], columns: list[int]) -> np.ndarray:
    """Rows R with R b the coefficients of `columns` once `after` are left out.

    With B the inverse information of (after, columns) and L its Cholesky factor, the
    last rows of ``L^-1 b`` are uncorrelated with the first and their sum of squares is
    what the columns explain: no difference of large sums.
    """
    from scipy import linalg

    chosen = [*after, *columns]
    L = np.linalg.cholesky(bread[np.ix_(chosen, chosen)])
    inverse = linalg.solve_triangular(L, np.eye(len(chosen)), lower=True)
    R = np.zeros((len(columns), len(bread)))
    R[:, chosen] = inverse[len(after) :]
    return R


def _by_hypotheses(
    results: Results,
    columns: dict[str, list[int]],
    after: dict[str, list[int]],
    typ: int,
    test: str,
) -> pd.DataFrame:
    """Tabulate sums of squares of linear hypotheses, and their F or Wald tests.

    With a robust covariance "given that later terms are left out" is read in its metric
    too, as in statsmodels and R's car.
    """
    from scipy import stats

    beta = results.params.to_numpy()
    bread = results._cov if test == "Wald" else results.fit_info.bread.numpy()
    squares = _kind(results) == "ssr"
    use_f = squares or results.use_t
    rows: dict[str, dict[str, float]] = {}
    for term, at in columns.items():
        R = _hypothesis(bread, after[term], at)
        row: dict[str, float] = {"df": float(len(at))}
        if squares and test != "Wald":
            row["sum_sq"] = float(((R @ beta) ** 2).sum())
            row["mean_sq"] = row["sum_sq"] / len(at)
        if squares and test == "LR":
            # Against the model in which `after` is left out too.
            base = results.ssr + _explained(bread, beta, after[term])  # type: ignore[attr-defined]
            row["chi2"] = results.nobs * float(np.log1p(row["sum_sq"] / base))
            row["PR(>chi2)"] = float(stats.chi2.sf(row["chi2"], len(at)))
        elif squares and test == "F":
            row["F"] = row["mean_sq"] / results.scale
            row["PR(>F)"] = float(stats.f.sf(row["F"], len(at), results.df_resid))
        else:
            df = results.df_inference if use_f else None
            found = wald(beta, results._cov, R, np.zeros(len(R)), df)
            letter = "F" if use_f else "chi2"
            row[letter], row[f"PR(>{letter})"] = found.statistic, found.pvalue
        rows[term] = row
    rest = {"df": results.df_resid}
    if squares and test != "Wald":
        ssr = results.ssr  # type: ignore[attr-defined]
        rest |= {"sum_sq": ssr, "mean_sq": ssr / results.df_resid}
    frame = pd.DataFrame.from_dict({**rows, "Residual": rest}, orient="index")
    return _ordered(frame, typ)


def _explained(bread: np.ndarray, beta: np.ndarray, columns: list[int]) -> float:
    R = _hypothesis(bread, [], columns)
    return float(((R @ beta) ** 2).sum())


def _ordered(frame: pd.DataFrame, typ: int) -> pd.DataFrame:
    """Columns in statsmodels' order: types 2 and 3 begin with the sum of squares."""
    if typ == 1 or "sum_sq" not in frame:
        return frame
    rest = [c for c in frame if c not in ("sum_sq", "df", "mean_sq")]
    return frame[["sum_sq", "df", *rest]]


def _by_deviance(
    results: Results,
    columns: dict[str, list[int]],
    after: dict[str, list[int]],
    typ: int,
    test: str,
) -> pd.DataFrame:
    """Falls of twice the log-likelihood between fits without and with a term."""
    p, known = len(results.names), {}

    def value(left_out: list[int]) -> float:
        key = tuple(sorted(left_out))
        if key not in known:
            R = np.eye(p)[list(key)]
            known[key] = restricted_fit(results, R, np.zeros(len(R)))[1]
        return known[key]

    known[()] = results.likelihood.derivatives(results.fit_info.x).value
    rows = {}
    for term, at in columns.items():
        fall = 2 * (value(after[term]) - value([*after[term], *at]))
        rows[term] = {"df": float(len(at)), **_fall(results, fall, len(at), test)}
    rest = {"df": results.df_resid}
    frame = pd.DataFrame.from_dict({**rows, "Residual": rest}, orient="index")
    if typ == 1 and _kind(results) == "deviance":
        frame.insert(2, "df_resid", _left(results, frame["df"]))
        frame.insert(3, "resid_deviance", _deviances(results, frame["deviance"]))
    return frame


def _left(results: Results, df: pd.Series) -> np.ndarray:
    later = df[:-1].sum() - df[:-1].cumsum()
    return np.append(results.df_resid + later, results.df_resid)


def _deviances(results: Results, falls: pd.Series) -> np.ndarray:
    own = results.fit_info.facts["deviance"]
    later = falls[:-1].sum() - falls[:-1].cumsum()
    return np.append(own + later, own)


def _fall(results: Results, fall: float, df: float, test: str) -> dict[str, float]:
    """Entries of a row: the fall, its statistic and its p-value."""
    from scipy import stats

    fall = max(fall, 0.0)
    out = {"deviance" if _kind(results) == "deviance" else "lr": fall}
    if test == "F":
        if not _dispersed(results):
            raise ValueError(
                f"{results.model.family.name} has no dispersion to estimate, so there "
                "is no F test; use test='LR'."
            )
        out["F"] = fall / df / results.scale
        out["PR(>F)"] = float(stats.f.sf(out["F"], df, results.df_resid))
        return out
    if _kind(results) != "deviance":
        out = {}
    out["chi2"] = fall / results.scale
    out["PR(>chi2)"] = float(stats.chi2.sf(out["chi2"], df))
    return out


def _check_contrasts(results: Results) -> None:
    """Warn of factors in interactions whose coding does not sum to zero."""
    spec = results.likelihood.design.spec
    table: Any = spec.table
    wrong = {}
    for term in spec.formula.rhs.terms:
        for expression in term.factors if len(term.factors) > 1 else ():
            stored = spec.states.get(expression, {})
            if stored.get("kind") != "categorical":
                continue
            state = dict(stored["state"])
            found = evaluate(expression, table, state, spec.context)
            if isinstance(found, Categorical):
                coding = found.contrast.matrix(found.levels, True)
                if not np.allclose(coding.sum(0), 0, atol=1e-8):
                    wrong[expression] = found.contrast.kind
    if wrong:
        listed = ", ".join(f"{e} ({kind})" for e, kind in wrong.items())
        warnings.warn(
            f"type 3 tests of main effects depend on the coding of {listed}: write "
            "C(factor, contr.sum) for tests of average effects.",
            ContrastWarning,
            stacklevel=5,
        )


# -- nested fits ----------------------------------------------------------------------


def _nested(fits: tuple[Results, ...], test: str | None) -> pd.DataFrame:
    largest = min(fits, key=lambda f: f.df_resid)
    _check_nested(fits)
    test = test or _default_test(largest)
    kind = _kind(largest)
    rows: list[dict[str, float]] = []
    for before, fit in zip((None, *fits[:-1]), fits, strict=True):
        row = {"df_resid": fit.df_resid, kind: fit.fit_info.facts[kind]}
        if before is not None:
            small, big = sorted((before, fit), key=lambda f: -f.df_resid)
            df = small.df_resid - big.df_resid
            row["df_diff"] = before.df_resid - fit.df_resid
            if kind != "llf":
                facts = before.fit_info.facts[kind] - fit.fit_info.facts[kind]
                row["ss_diff" if kind == "ssr" else "deviance_diff"] = facts
            row |= _nested_test(small, big, largest, df, test)
        rows.append(row)
    index = [f.formula_text for f in fits]
    if len(set(index)) < len(index):
        index = [f"{i}: {text}" for i, text in enumerate(index, start=1)]
    frame = pd.DataFrame(rows, index=index)
    last = [c for c in frame if "chi2" in c or "F" in c]
    return frame[[*(c for c in frame if c not in last), *last]]


def _check_nested(fits: tuple[Results, ...]) -> None:
    first = fits[0]
    for other in fits[1:]:
        if type(other.model) is not type(first.model) and _kind(other) != _kind(first):
            raise ValueError(
                f"{first.model_name} and {other.model_name} are not nested; anova "
                "compares fits of one kind of model."
            )
        if other.nobs != first.nobs or other.response_name != first.response_name:
            raise ValueError(
                f"the fits use {first.nobs:g} observations of {first.response_name} "
                f"and {other.nobs:g} of {other.response_name}; nested fits use the "
                "same rows."
            )
    for one, other in pairwise(fits):
        if one.df_resid == other.df_resid:
            raise ValueError(
                f"{one.formula_text!r} and {other.formula_text!r} have the same number "
                "of parameters: neither is nested in the other."
            )


def _nested_test(
    small: Results, big: Results, largest: Results, df: float, test: str
) -> dict[str, float]:
    """Statistic and p-value of a smaller against a larger fit."""
    from scipy import stats

    kind = _kind(big)
    if test == "Wald":
        found = big.wald_test(np.eye(len(big.names))[_extra(small, big)])
        letter = found.distribution
        return {letter: found.statistic, f"Pr(>{letter})": found.pvalue}
    if test == "Rao":
        found = _rao(small, big, largest)
        return {"chi2": found.statistic, "Pr(>chi2)": found.pvalue}
    fall = _fall_between(small, big, kind)
    if test == "F":
        if kind != "ssr" and not _dispersed(largest):
            raise ValueError(
                f"{largest.model.family.name} has no dispersion to estimate, so there "
                "is no F test; use test='LR'."
            )
        value = fall / df / largest.scale
        return {"F": value, "Pr(>F)": float(stats.f.sf(value, df, largest.df_resid))}
    value = 2 * (big.llf - small.llf) if kind != "deviance" else fall / largest.scale
    return {"chi2": value, "Pr(>chi2)": float(stats.chi2.sf(value, df))}


def _fall_between(small: Results, big: Results, kind: str) -> float:
    one, other = (f.fit_info.facts[kind] for f in (small, big))
    return 2 * (other - one) if kind == "llf" else one - other


def _extra(small: Results, big: Results) -> list[int]:
    """Parameters of the larger fit that the smaller one lacks, by name."""
    missing = [n for n in small.names if n not in big.names]
    if missing:
        raise ModelError(
            f"{missing[0]} of {small.formula_text!r} is not a parameter of "
            f"{big.formula_text!r}: this test needs the smaller fit's columns among "
            "the larger's; use test='LR'."
        )
    return [j for j, n in enumerate(big.names) if n not in small.names]


def _rao(small: Results, big: Results, largest: Results) -> HypothesisTest:
    """Score test of the larger fit at the smaller one's estimates."""
    extra = _extra(small, big)
    x = torch.zeros(len(big.names), dtype=torch.float64)
    for j, name in enumerate(big.names):
        if name in small.names:
            x[j] = small.fit_info.x[small.names.index(name)]
    found = big.likelihood.derivatives(x, big.fit_info.information)
    inverse = solve_information(found.information) / largest.scale
    return score_statistic(found.gradient, inverse, len(extra))
