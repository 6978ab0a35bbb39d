"""Other responses for a fitted mixed model: drawn from it, and fitted again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...bootstrap import replicate_interval, replicate_summary
from ...compute import Compute, one_thread
from ...design import Design
from ...errors import (
    ConvergenceWarning,
    DesignError,
    ModelError,
    SingularFitWarning,
    caution,
)
from .criterion import Criterion
from .fitted import Fitted
from .forecast import kept_effects
from .replicates import Refitted, at_once, refit_many, singular
from .responses import Responses, RowSpace
from .rows import fixed_part, random_columns, random_part
from .search import minimise
from .structure import Structure, Term, fresh_label

if TYPE_CHECKING:
    from ...results import Results
    from .results import MixedResults

__all__ = [
    "MixedBootstrap",
    "as_series",
    "collected",
    "draw",
    "kept_terms",
    "new_response",
    "parameter_frame",
    "parametric",
    "refit",
    "simulated",
    "start_of",
]

_KINDS = ("percentile", "basic", "normal")
# Elements of the responses drawn at a time: they stay near the cache.
_DRAWN = 200_000
# A start is moved this far (standardised variance) from where V is singular.
_AWAY = 1e-2


@dataclass(frozen=True, eq=False)
class MixedBootstrap:
    """Replicates of estimates, and what they say of the uncertainty.

    Attributes
    ----------
    frame : DataFrame, shape (replicates that converged, parameters)
        Standard deviations and correlations of the random effects, ``sigma``, and the
        fixed effects; or the statistic asked for.
    estimate : Series
        Of the data.
    replications : int
        Asked for.
    failed : int
        Replicates that did not converge; they are left out.
    singular : int
        Replicates with a covariance on the edge of its range; they are kept.
    """

    frame: pd.DataFrame
    estimate: pd.Series
    replications: int
    failed: int
    singular: int

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates."""
        return self.frame.std().rename("std err")

    @property
    def bias(self) -> pd.Series:
        """Mean of the replicates less the estimate."""
        return (self.frame.mean() - self.estimate).rename("bias")

    def conf_int(self, alpha: float = 0.05, kind: str = "percentile") -> pd.DataFrame:
        """Return confidence intervals; columns 0 and 1.

        Parameters
        ----------
        alpha : float, default 0.05
        kind : {"percentile", "basic", "normal"}, default "percentile"
            Quantiles of the replicates; those reflected at the estimate; or the
            estimate less the bias, and normal quantiles times `bse`, as lme4 has it.

        References
        ----------
        Davison, A. and Hinkley, D. (1997). Bootstrap methods and their application,
        chapter 5.
        """
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {_KINDS}, not {kind!r}.")
        center = self.estimate - self.bias if kind == "normal" else self.estimate
        return replicate_interval(self.frame, center, alpha, kind)

    def summary_frame(
        self, alpha: float = 0.05, kind: str = "percentile"
    ) -> pd.DataFrame:
        """Return estimate, bias, standard error and interval of each parameter."""
        return replicate_summary(self, self.conf_int(alpha, kind))

    def __repr__(self) -> str:
        return (
            f"<parametric bootstrap: {len(self.frame)} of {self.replications} "
            f"replicates, {self.singular} singular>\n{self.summary_frame()}"
        )


# -- drawing --------------------------------------------------------------------------


def draw(
    results: MixedResults,
    count: int,
    generator: np.random.Generator,
    keep: Sequence[bool] | None = None,
) -> np.ndarray:
    """Draw responses from a fit: new random effects and new errors.

    Parameters
    ----------
    results : MixedResults
    count : int
    generator : numpy.random.Generator
        One replicate is drawn after the other, so that the number drawn at a time does
        not change what is drawn.
    keep : sequence of bool, optional
        For each random term of the formula, whether its effects stay at their
        conditional modes; by default all are drawn.

    Returns
    -------
    ndarray, shape (n, count)
    """
    fitted, design = results.mixed, results.model.design
    keep = [False] * len(design.random) if keep is None else list(keep)
    compute = results.model.compute
    modes = [m if k else None for m, k in zip(fitted.term_modes, keep, strict=True)]
    mean = fixed_part(design, fitted.beta, compute)
    if any(keep):
        mean += random_part(design, modes, compute)
    roots = [None if k else r for r, k in zip(fitted.roots, keep, strict=True)]
    return simulated(design, mean, roots, fitted.sigma, count, generator)


def simulated(
    design: Design,
    mean: np.ndarray,
    roots: Sequence[np.ndarray | None],
    sigma: float,
    count: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw random effects and errors around given means.

    Parameters
    ----------
    design : Design
    mean : ndarray, shape (n,)
    roots : sequence of ndarray or None, each (K, K)
        Lower factor of each term's covariance over sigma^2; None draws none.
    sigma : float
    count : int
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, shape (n, count)
    """
    columns = random_columns(design, Compute("cpu"))
    new = [
        (random.grouping.codes, Z, sigma * root)
        for random, Z, root in zip(design.random, columns, roots, strict=True)
        if root is not None
    ]
    w = design.weights
    noise = sigma if w is None else sigma / np.sqrt(w)
    out = np.empty((count, design.n))
    step = max(1, _DRAWN // design.n)
    for start in range(0, count, step):
        part = out[start : start + step]
        part[:] = mean
        _add_noise(part, new, noise, generator)
    return out.T


def _add_noise(
    out: np.ndarray, new: list[tuple], noise: Any, generator: np.random.Generator
) -> None:
    """Add new effects and errors to means; one replicate a row."""
    sizes = [(int(codes.max()) + 1) * Z.shape[1] for codes, Z, _ in new]
    drawn = generator.standard_normal((len(out), sum(sizes) + out.shape[1]))
    out += drawn[:, sum(sizes) :] * noise
    start = 0
    for (codes, Z, root), size in zip(new, sizes, strict=True):
        part = drawn[:, start : start + size].reshape(len(out), -1, Z.shape[1])
        effects = part @ root.T
        for a, column in enumerate(Z.T):
            own = np.take(effects[:, :, a], codes, axis=1)
            out += own if (column == 1).all() else own * column
        start += size


def kept_terms(results: MixedResults, re_form: Any) -> list[bool]:
    """Which random terms keep their conditional modes, in the order of the formula.

    Parameters
    ----------
    results : MixedResults
    re_form : None, "none" or a formula
        As in `forecast.predict`, but of whole terms.

    Raises
    ------
    ModelError
        For some of the effects of a term.
    """
    keep = kept_effects(results, re_form)
    for kept, random in zip(keep, results.model.design.random, strict=True):
        if kept.any() and not kept.all():
            raise ModelError(
                f"whole terms are drawn or kept; re_form has only some effects of "
                f"{random.term.text or random.term}."
            )
    return [bool(kept.all()) for kept in keep]


# -- fitting again --------------------------------------------------------------------


@one_thread()
def refit(
    results: MixedResults, y: Any = None, reml: bool | None = None
) -> MixedResults:
    """Fit the same model to another response, or by the other criterion.

    Parameters
    ----------
    results : MixedResults
    y : array_like, shape (n,), optional
        One value for each row used, or for each row of the data; that of the fit when
        None.
    reml : bool, optional
        That of the fit when None.

    Returns
    -------
    MixedResults
        With the fit's `ddf`, except that Kenward-Roger, which needs REML, becomes
        Satterthwaite in a fit by maximum likelihood.
    """
    model, fitted = results.model, results.mixed
    reml = results.reml if reml is None else bool(reml)
    products = fitted.products
    if y is not None:
        y = new_response(results, y)
        space = RowSpace(model.design, products, model.compute)
        responses = space.meet(y[:, None])
        if not float(responses.squares[0]) > 1e-24 * max(float(y @ y), 1e-300):
            raise DesignError(
                "the fixed effects fit the new response exactly; there is nothing left "
                "for random effects."
            )
        products = responses.products(products, 0)
        model = _with_response(results, y, products)
    criterion = Criterion(products, reml, model.sigma)
    found = minimise(criterion, start_of(fitted.structure, fitted.x))
    again = Fitted(found, criterion, fitted.compute)
    model._warn_of(again)
    return model.results(again, _ddf(results, reml))


def _ddf(results: MixedResults, reml: bool) -> str:
    fallback = results.ddf == "kenward-roger" and not reml
    return "satterthwaite" if fallback else results.ddf


def new_response(results: Results, y: Any) -> np.ndarray:
    """Read a response for the rows used; refuse what is no column of numbers.

    Parameters
    ----------
    results : Results
    y : array_like, shape (n,)
        One value for each row used, or for each row of the data.
    """
    values = np.asarray(results.model.design.values(y, "y"))
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise DesignError("y must be one column of numbers.")
    out = values.astype(np.float64)
    if not np.isfinite(out).all():
        raise DesignError(
            f"y is missing or infinite in {(~np.isfinite(out)).sum()} of the rows used."
        )
    return out


def _with_response(results: MixedResults, y: np.ndarray, products: Any) -> Any:
    """Return the model with another response and the cross-products it has."""
    model = copy.copy(results.model)
    model.design = replace(model.design, y=y)
    model._prepared = (products.structure, products)
    model.cautions = ()
    return model


def start_of(structure: Structure, x: np.ndarray) -> np.ndarray:
    """Parameters to start from near others, off the points where gradients vanish."""
    x = x.copy()
    for term in structure.terms:
        if not term.by_triangle or not singular(_only(structure, term), x[None])[0]:
            continue
        root = term.root(x)
        V = root @ root.T
        V += _AWAY * max(1.0, float(np.trace(V)) / term.k) * np.eye(term.k)
        x[term.params] = np.linalg.cholesky(V)[term.triangle]
    return x


def _only(structure: Structure, term: Any) -> Structure:
    return replace(structure, terms=(term,))


# -- the bootstrap --------------------------------------------------------------------


@one_thread()
def parametric(
    results: MixedResults,
    replications: int = 1000,
    seed: int | None = None,
    statistic: Callable[[MixedResults], Any] | None = None,
    re_form: Any = "none",
) -> MixedBootstrap:
    """Refit a model to responses drawn from its fit.

    Parameters
    ----------
    results : MixedResults
    replications : int, default 1000
    seed : int, optional
        The same seed gives the same replicates.
    statistic : callable, optional
        From the `MixedResults` of a replicate to a number, an array or a Series, in
        place of the parameters.
    re_form : optional
        Random effects that keep their conditional modes, as in `MixedResults.predict`;
        by default none, so that all are drawn.

    Returns
    -------
    MixedBootstrap

    Warns
    -----
    ConvergenceWarning
        With the number of replicates left out because their fit did not converge.
    """
    if int(replications) != replications or replications < 2:
        raise ValueError(f"replications must be 2 or more, not {replications!r}.")
    fitted, model = results.mixed, results.model
    keep, generator = kept_terms(results, re_form), np.random.default_rng(seed)
    space = RowSpace(model.design, fitted.products, model.compute)
    start, parts, values = start_of(fitted.structure, fitted.x), [], []
    block = at_once(fitted.products, model.compute)
    for begin in range(0, replications, block):
        count = min(block, replications - begin)
        Y = draw(results, count, generator, keep)
        responses = space.meet(Y)
        found = refit_many(fitted.products, responses, fitted.reml, model.sigma, start)
        parts.append(found)
        if statistic is not None:
            values += _statistics(results, Y, responses, found, statistic)
    found = Refitted.joined(parts)
    if statistic is None:
        frame, estimate = _parameters(results, found)
    else:
        estimate = as_series(statistic(results))
        frame = pd.DataFrame(values, columns=estimate.index)
    return collected(frame, estimate, found.converged, found.singular)


def _parameters(
    results: MixedResults, found: Refitted
) -> tuple[pd.DataFrame, pd.Series]:
    fitted = results.mixed
    structure, names = fitted.structure, results.names
    known = results.model.sigma is not None
    own = parameter_frame(
        structure, fitted.x[None], np.array([fitted.sigma**2]), fitted.beta[None],
        names, known,
    )  # fmt: skip
    frame = parameter_frame(
        structure, found.x, found.variance, found.beta, names, known
    )
    return frame, own.iloc[0].rename("estimate")


def parameter_frame(
    structure: Structure,
    x: np.ndarray,
    variance: np.ndarray,
    beta: np.ndarray,
    names: Sequence[str],
    known: bool = False,
) -> pd.DataFrame:
    """Tabulate standard deviations, correlations, sigma and fixed effects of fits.

    Parameters
    ----------
    structure : Structure
    x : ndarray, shape (R, k)
        Covariance parameters of the search.
    variance : ndarray, shape (R,)
        Residual variances.
    beta : ndarray, shape (R, p)
    names : sequence of str
        Of the fixed effects.
    known : bool
        Whether sigma is given, not estimated.

    Returns
    -------
    DataFrame, shape (R, parameters)
        Columns named and ordered as `Profile` has them: ``"sd(Days)|Subject"``,
        ``"cor(Days,Intercept)|Subject"``, ``"sigma"``, fixed effects.
    """
    sigma, columns = np.sqrt(variance), {}
    for j in structure.order:
        term = structure.terms[j]
        group = structure.factors[term.factor].name
        if term.covariance is not None:
            columns |= _structured_columns(term, group, x, sigma)
            continue
        roots = np.zeros((len(x), term.k, term.k))
        if term.variances:
            at = np.arange(term.k)
            roots[:, at, at] = np.sqrt(np.maximum(x[:, term.params], 0.0))
        else:
            roots[:, *term.triangle] = x[:, term.params]
        roots = term.U @ roots
        V = roots @ roots.transpose(0, 2, 1)
        sd = np.sqrt(np.einsum("raa->ra", V))
        for a, b in zip(*term.triangle, strict=True):
            if a == b:
                label, values = f"sd({term.names[a]})|{group}", sigma * sd[:, a]
            elif term.variances:
                continue
            else:
                label = f"cor({term.names[a]},{term.names[b]})|{group}"
                with np.errstate(invalid="ignore", divide="ignore"):
                    values = V[:, a, b] / (sd[:, a] * sd[:, b])
            columns[fresh_label(columns, label)] = values
    if not known:
        columns["sigma"] = sigma
    for name, values in zip(names, beta.T, strict=True):
        columns[name] = values
    return pd.DataFrame(columns)


def _structured_columns(
    term: Term, group: str, x: np.ndarray, sigma: np.ndarray
) -> dict[str, np.ndarray]:
    """Tabulate a structured covariance: ``"sd(t)|g"``, ``"cor|g"``, ``"range|g"``."""
    own = term.covariance
    assert own is not None
    values = np.array([own.natural(one, term.U) for one in x[:, term.params]])
    values[:, : own.scales] *= sigma[:, None]
    return {
        f"{label}|{group}": column
        for label, column in zip(own.labels, values.T, strict=True)
    }


def _statistics(
    results: MixedResults, Y: np.ndarray, responses: Responses, found: Refitted,
    statistic: Callable[[MixedResults], Any],
) -> list[np.ndarray]:  # fmt: skip
    """Statistics of the results of each replicate that converged; else NaN."""
    out: list[np.ndarray] = []
    fitted = results.mixed
    for number, converged in enumerate(found.converged):
        if not converged:
            out.append(np.array(np.nan))
            continue
        products = responses.products(fitted.products, number)
        model = _with_response(results, Y[:, number].copy(), products)
        criterion = Criterion(products, fitted.reml, model.sigma)
        search = minimise(criterion, found.x[number])
        again = Fitted(search, criterion, fitted.compute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularFitWarning)
            value = statistic(model.results(again, results.ddf))
        out.append(as_series(value).to_numpy())
    width = max((len(v) for v in out if v.ndim), default=1)
    return [v if v.ndim else np.full(width, np.nan) for v in out]


def as_series(value: Any) -> pd.Series:
    """Label what a statistic returned: a number, an array or a Series."""
    if isinstance(value, pd.Series):
        return value.astype(float)
    values = np.atleast_1d(np.asarray(value, dtype=float))
    names = (
        ["statistic"]
        if len(values) == 1
        else [f"statistic[{j}]" for j in range(len(values))]
    )
    return pd.Series(values, index=names)


def collected(
    frame: pd.DataFrame, estimate: pd.Series, converged: np.ndarray, edge: np.ndarray
) -> MixedBootstrap:
    """Leave out the replicates that did not converge, and say how many they were.

    Parameters
    ----------
    frame : DataFrame, shape (R, parameters)
    estimate : Series
    converged, edge : ndarray of bool, shape (R,)
        Whether a replicate's fit converged, and whether a covariance is singular.

    Raises
    ------
    ModelError
        Where fewer than two did.

    Warns
    -----
    ConvergenceWarning
    """
    replications = len(converged)
    failed = int((~converged).sum())
    if failed:
        caution(
            f"{failed} of {replications} replicates did not converge and are left out: "
            "the random effects may be too many for the data.",
            ConvergenceWarning,
        )
    if replications - failed < 2:
        raise ModelError("hardly any replicate converged; use a simpler model.")
    kept = frame[converged].reset_index(drop=True)
    at_edge = int((edge & converged).sum())
    return MixedBootstrap(kept, estimate, replications, failed, at_edge)
