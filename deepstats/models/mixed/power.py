"""Power of a test of fixed effects by simulation, over a grid of designs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ...compute import one_thread
from ...errors import DesignError, ModelError, listed
from ...expressions import expression_variables
from ...formula import Formula
from ...frame import Table
from .bootstrap import parameter_frame, simulated, start_of
from .degrees import DDF
from .model import LinearMixed, parameters_of
from .refits import Refits
from .replicates import Refitted, at_once, refit_many
from .responses import RowSpace
from .results import MixedResults
from .rows import fixed_part
from .structure import Structure
from .terms import FixedColumns

__all__ = ["power"]

_WEIGHTS = "_weights_of_the_fit"


@one_thread()
def power(
    model: MixedResults | str | Formula,
    data: Any = None,
    *,
    test: str,
    effect: float | Mapping[str, float] | None = None,
    beta: Mapping[str, float] | None = None,
    random: Mapping[str, float] | None = None,
    theta: Sequence[float] | None = None,
    sigma: float | None = None,
    along: str | None = None,
    sizes: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    n_sim: int = 1000,
    alpha: float = 0.05,
    ddf: str = "satterthwaite",
    reml: bool = True,
    level: float = 0.95,
    seed: int | None = None,
) -> pd.DataFrame:
    """Simulate the power of a test in designs of several sizes.

    Parameters
    ----------
    model : MixedResults or formula
        A fit, whose estimates are taken as the truth unless others are given; or a
        formula, with `data`, `random` (or `theta`) and `sigma`.
    data : frame or mapping, optional
        With a formula: the design. The response need not be among its columns.
    test : str
        A coefficient or a term of the fixed part (then its type 3 hypothesis).
    effect : float or mapping, optional
        True value of the coefficient tested; by name for several.
    beta : mapping of str to float, optional
        True values of other coefficients; zero, or those of the fit, by default.
    random : mapping of str to float, optional
        True standard deviations and correlations, named as in
        `MixedResults.bootstrap`: ``{"sd(Intercept)|g": 2}``. Correlations not given
        are zero.
    theta : sequence of float, optional
        In place of `random`: relative covariance factors in the order of
        `MixedResults.theta`.
    sigma : float, optional
        True residual standard deviation.
    along : str, optional
        Column whose levels are multiplied or thinned; grouping columns nested in it
        get new levels too.
    sizes : sequence of int, optional
        Numbers of levels of `along`.
    rows : sequence of int, optional
        Numbers of rows for each level of `along`.
    n_sim : int, default 1000
        Simulations of each design.
    alpha : float, default 0.05
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Of the test.
    reml : bool, default True
    level : float, default 0.95
        Of the interval of the power.
    seed : int, optional

    Returns
    -------
    DataFrame
        A row a design: levels of `along`, rows a level, rows in all (n), power with
        its Clopper-Pearson interval (power_low, power_high), the mean standard error
        of the coefficient (mean_se; NaN for several), the share of singular fits
        (singular), and the number of fits left out because they failed (failed).

    Notes
    -----
    A larger design repeats levels and rows of the data, a smaller one takes them at
    even distances, so that what varies between levels keeps its shares.

    References
    ----------
    Green & MacLeod (2016), SIMR: an R package for power analysis of generalized linear
    mixed models by simulation, Methods in Ecology and Evolution 7.

    Examples
    --------
    >>> import numpy as np
    >>> data = {"g": np.repeat(np.arange(10), 4), "x": np.tile([0.0, 0, 1, 1], 10)}
    >>> table = power("y ~ x + (1 | g)", data, test="x", effect=1.0, sigma=1.0,
    ...               random={"sd(Intercept)|g": 0.5}, along="g", sizes=[5, 20],
    ...               n_sim=200, seed=1)
    >>> table["power"].tolist()
    [0.59, 0.99]
    """
    if ddf not in DDF:
        raise ValueError(f"ddf must be one of {', '.join(DDF)}; not {ddf!r}.")
    if ddf == "kenward-roger" and not reml:
        raise ModelError("Kenward-Roger degrees of freedom need reml=True.")
    for name, share in (("alpha", alpha), ("level", level)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must be between 0 and 1, not {share!r}.")
    if int(n_sim) != n_sim or n_sim < 1:
        raise ValueError(f"n_sim must be a positive whole number, not {n_sim!r}.")
    if along is None and (sizes is not None or rows is not None):
        raise ValueError("sizes= and rows= go with along=: the column they are about.")
    truth = _Truth.of(model, data, effect, beta, random, theta, sigma, test)
    given: list[list] = [list(v) if v is not None else [None] for v in (sizes, rows)]
    grid = list(product(*given))
    seeds = np.random.SeedSequence(seed).spawn(len(grid))
    out = []
    for (size, each), own in zip(grid, seeds, strict=True):
        design = truth.design(along, size, each)
        found = _Simulation(truth, design, ddf, reml, alpha)
        row = found.run(int(n_sim), np.random.default_rng(own), level)
        place = {} if along is None else {along: _levels(design, along)}
        if each is not None:
            place["rows"] = each
        out.append({**place, **row})
    return pd.DataFrame(out)


def _levels(model: LinearMixed, along: str) -> int:
    return len(model.design.grouping(along, "along"))


# -- the truth, and designs -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Truth:
    """Parameters that responses are drawn from, and the data that designs extend.

    Attributes
    ----------
    formula : Formula
    frame : DataFrame
    beta : dict of str to float
    random : dict of str to float, or None
    theta : sequence of float or None
    roots : list of ndarray or None
        Relative factors of a fit, by term: one of `random`, `theta` and `roots` is set.
    sigma : float
    known : bool
        Whether sigma is known to the fits too.
    test : str
    effect : float or mapping or None
    context : mapping
    """

    formula: Formula
    frame: pd.DataFrame
    beta: Mapping[str, float]
    random: Mapping[str, float] | None
    theta: Sequence[float] | None
    roots: list[np.ndarray] | None
    sigma: float
    known: bool
    test: str
    effect: float | Mapping[str, float] | None
    context: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: Any, data: Any, effect: Any, beta: Any, random: Any, theta: Any,
        sigma: float | None, test: str,
    ) -> _Truth:  # fmt: skip
        if random is not None and theta is not None:
            raise ValueError("give random= or theta=, not both.")
        if sigma is not None and not (np.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be positive, not {sigma!r}.")
        if isinstance(model, MixedResults):
            if data is not None:
                raise ValueError("a fit has its own data; leave data= out.")
            return cls._of_fit(model, effect, beta, random, theta, sigma, test)
        if data is None or sigma is None or (random is None and theta is None):
            raise ValueError(
                "with a formula, give data=, sigma= and the random effects by random= "
                "or theta=."
            )
        formula = Formula.parse(model) if isinstance(model, str) else model
        table = Table(data)
        frame = _frame(formula, table, None)
        return cls(formula, frame, dict(beta or {}), random, theta, None, float(sigma),
                   False, test, effect, {})  # fmt: skip

    @classmethod
    def _of_fit(
        cls, fit: MixedResults, effect: Any, beta: Any, random: Any, theta: Any,
        sigma: float | None, test: str,
    ) -> _Truth:  # fmt: skip
        model, spec = fit.model, fit.model.design.spec
        if spec.table is None:
            raise ModelError("power needs the data the model was fitted to.")
        frame = _frame(spec.formula, spec.table, model.design.rows)
        if model.design.weights is not None:
            frame[_WEIGHTS] = model.design.weights
        if fit.mixed.residual_size:
            raise ModelError(
                "power is of models with independent residuals of one variance; "
                "simulate from a fit, and refit, for others."
            )
        roots = fit.mixed.roots if random is None and theta is None else None
        if roots is not None and sigma is not None:
            # Effects keep their own size when errors get another.
            roots = [root * (fit.sigma / sigma) for root in roots]
        values = {**fit.params.to_dict(), **(beta or {})}
        return cls(
            spec.formula, frame, values, random, theta, roots,
            fit.sigma if sigma is None else float(sigma), model.sigma is not None, test,
            effect, spec.context,
        )  # fmt: skip

    def design(
        self, along: str | None, size: int | None, rows: int | None
    ) -> LinearMixed:
        """Return the model of the data extended to a size, its response yet unknown."""
        frame = self.frame
        if along is not None:
            if along not in frame:
                raise DesignError(
                    f"along={along!r} is no column the formula uses; it uses "
                    f"{listed(c for c in frame if c != _WEIGHTS)}."
                )
            frame = _extended(frame, along, size, rows, self._groups())
        name = self.formula.response.expressions[0].strip("`")
        if name.isidentifier() or name in frame:
            # Any response will do to read the design.
            noise = np.random.default_rng(0).standard_normal(len(frame))
            frame = frame.assign(**{name: noise})
        weights = frame[_WEIGHTS].to_numpy() if _WEIGHTS in frame else None
        return LinearMixed(
            self.formula, frame, weights=weights, context=self.context,
            sigma=self.sigma if self.known else None,
        )  # fmt: skip

    def _groups(self) -> list[str]:
        groups = [f for g in self.formula.rhs.groups for f in g.factors]
        return list(dict.fromkeys(v for f in groups for v in expression_variables(f)))

    def coefficients(self, names: Sequence[str], hypothesis: np.ndarray) -> np.ndarray:
        """Return the true fixed effects of a design."""
        values = dict(self.beta)
        if isinstance(self.effect, Mapping):
            values |= self.effect
        elif self.effect is not None:
            tested = np.flatnonzero(np.abs(hypothesis).max(0))
            if len(hypothesis) > 1 or (len(tested) > 1 and self.test not in names):
                raise ValueError(
                    f"{self.test} has several coefficients; give effect= as a mapping "
                    f"with names among {listed(names)}."
                )
            own = self.test if self.test in names else names[tested[0]]
            values[own] = float(self.effect)
        given = {*(self.effect if isinstance(self.effect, Mapping) else ()), *self.beta}
        known = {*names, *self.beta} if self.roots is not None else set(names)
        if unknown := given - known:
            raise ValueError(
                f"{listed(sorted(unknown))} are no coefficients; the design has "
                f"{listed(names, 20)}."
            )
        return np.array([values.get(name, 0.0) for name in names])

    def relative_roots(self, structure: Structure) -> list[np.ndarray]:
        """Lower factors of the true covariances over sigma^2, by term."""
        for term in structure.structured:
            raise ModelError(
                f"{term.text}: power here is of unstructured and diagonal covariances; "
                "simulate from a fit, and refit, for structured ones."
            )
        if self.roots is not None:
            return self.roots
        if self.theta is not None:
            return structure.raw_roots(parameters_of(structure, self.theta))
        return _from_labels(structure, self.random or {}, self.sigma)


def _from_labels(
    structure: Structure, given: Mapping[str, float], sigma: float
) -> list[np.ndarray]:
    """Relative factors from standard deviations and correlations by their names."""
    x, none = np.ones((1, structure.size)), np.ones((1, 0))
    labels = list(parameter_frame(structure, x, np.ones(1), none, [], True))
    left, out = dict(given), []
    missing = [n for n in labels if n.startswith("sd(") and n not in given]
    if missing or (unknown := [n for n in given if n not in labels]):
        what = f"lacks {listed(missing)}" if missing else f"has {listed(unknown)}"
        raise ValueError(f"random= {what}; the parameters are {listed(labels, 20)}.")
    for term in structure.terms:
        group = structure.factors[term.factor].name
        sd = np.array([left[f"sd({name})|{group}"] for name in term.names])
        C = np.eye(term.k)
        for a in range(term.k):
            for b in range(a):
                label = f"cor({term.names[a]},{term.names[b]})|{group}"
                C[a, b] = C[b, a] = left.get(label, 0.0)
        values, vectors = np.linalg.eigh(C)
        if (sd < 0).any() or values[0] < -1e-10:
            raise ValueError(
                f"the standard deviations and correlations of {term.text} are no "
                "covariance: a standard deviation must not be negative, and "
                "correlations must go together."
            )
        half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        R = np.linalg.qr(half.T, mode="r")
        out.append(structure.canonical((sd / sigma)[:, None] * R.T))
    return out


def _frame(formula: Formula, table: Table, rows: np.ndarray | None) -> pd.DataFrame:
    """Columns that a formula mentions, as far as there are any."""
    columns = {}
    for name in formula.variables:
        if name in table.columns:
            column = table.full(name)
            column = column if rows is None else column.iloc[rows]
            columns[name] = column.reset_index(drop=True)
    if not columns:
        raise DesignError(f"the data have none of the columns of {formula.text!r}.")
    return pd.DataFrame(columns)


def _spread(have: int, want: int) -> np.ndarray:
    """Positions of `want` of `have` things: whole rounds, then at even distances."""
    rounds, rest = divmod(want, have)
    last = np.floor(np.arange(rest) * (have / max(rest, 1))).astype(np.int64)
    return np.concatenate([np.tile(np.arange(have), rounds), last])


def _extended(
    frame: pd.DataFrame, along: str, size: int | None, rows: int | None,
    groups: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Repeat or thin the levels of a column, and the rows of each."""
    if along not in groups:
        raise DesignError(
            f"along={along!r} is no column of a grouping factor; these are "
            f"{listed(groups)}."
        )
    codes, levels = pd.factorize(frame[along], sort=True)
    for what, number in (("sizes", size), ("rows", rows)):
        if number is not None and (int(number) != number or number < 1):
            raise ValueError(f"{what} must be positive whole numbers, not {number!r}.")
    chosen = _spread(len(levels), len(levels) if size is None else int(size))
    copy_of, seen = [], dict.fromkeys(range(len(levels)), 0)
    for level in chosen:
        copy_of.append(seen[level])
        seen[level] += 1
    of_level = [np.flatnonzero(codes == code) for code in range(len(levels))]
    if rows is not None:
        of_level = [at[_spread(len(at), int(rows))] for at in of_level]
    positions = [of_level[level] for level in chosen]
    at = np.concatenate(positions)
    copies = np.repeat(copy_of, [len(p) for p in positions])
    out = frame.iloc[at].reset_index(drop=True)
    for name in groups:
        nested = frame.groupby(name, observed=True)[along].nunique().max() == 1
        if name == along or nested:
            label = out[name].astype(str)
            again = label + "." + pd.Series(copies + 1).astype(str)
            out[name] = label.where(copies == 0, again)
    return out


# -- one design -----------------------------------------------------------------------


class _Simulation:
    """Simulations of one design.

    Parameters
    ----------
    truth : _Truth
    model : LinearMixed
    ddf : str
    reml : bool
    alpha : float
    """

    def __init__(
        self, truth: _Truth, model: LinearMixed, ddf: str, reml: bool, alpha: float
    ) -> None:
        self.model, self.ddf, self.reml, self.alpha = model, ddf, reml, alpha
        self.structure, self.products = model.prepare()
        names = list(model.design.X.names)
        self.R = self._hypothesis(truth.test, names)
        self.beta = truth.coefficients(names, self.R)
        self.roots = truth.relative_roots(self.structure)
        self.sigma = truth.sigma

    def _hypothesis(self, test: str, names: list[str]) -> np.ndarray:
        if test in names:
            return np.eye(len(names))[[names.index(test)]]
        columns = FixedColumns(self.model.design)
        for term in columns.terms:
            if term.factors and term.name == test:
                found = columns.marginal(term)
                if len(found):
                    return found
        if not names:
            raise ModelError("the fixed part is empty: it has nothing to test.")
        terms = [t.name for t in columns.terms if t.factors]
        raise ValueError(
            f"test={test!r} is neither a coefficient ({listed(names, 20)}) nor a term "
            f"({listed(terms, 20)}) of the design."
        )

    def run(
        self, count: int, generator: np.random.Generator, level: float
    ) -> dict[str, float]:
        """Simulate, refit and test."""
        model, products = self.model, self.products
        design, compute = model.design, model.compute
        mean = fixed_part(design, self.beta, compute)
        space = RowSpace(design, products, compute)
        x = self.structure.from_raw_roots(self.roots)
        start, block = start_of(self.structure, x), at_once(products, compute)
        pvalues, parts = [], []
        for begin in range(0, count, block):
            size = min(block, count - begin)
            Y = simulated(design, mean, self.roots, self.sigma, size, generator)
            responses = space.meet(Y)
            found = refit_many(products, responses, self.reml, model.sigma, start)
            fits = Refits(model, self.reml, [(responses, found)])
            pvalues.append(fits.wald_pvalues(self.R, self.ddf))
            parts.append(found)
        found, p = Refitted.joined(parts), np.concatenate(pvalues)
        good = found.converged
        rejected, kept = int((p[good] < self.alpha).sum()), int(good.sum())
        low, high = _clopper_pearson(rejected, kept, level)
        mean_se = np.nan
        if len(self.R) == 1:
            r = self.R[0]
            variance = np.einsum("i,rij,j->r", r, found.cov_beta[good], r)
            mean_se = float(np.sqrt(variance).mean()) if kept else np.nan
        return {
            "n": design.n, "power": rejected / kept if kept else np.nan,
            "power_low": low, "power_high": high, "mean_se": mean_se,
            "singular": float(found.singular[good].mean()) if kept else np.nan,
            "failed": count - kept,
        }  # fmt: skip


def _clopper_pearson(hits: int, count: int, level: float) -> tuple[float, float]:
    """Exact interval of a probability."""
    tail = (1 - level) / 2
    if not count:
        return np.nan, np.nan
    low = special.betaincinv(hits, count - hits + 1, tail) if hits else 0.0
    high = special.betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    return float(low), float(high)
