"""Marginal effects: what a change of a variable does to the mean, with its uncertainty.

Every effect is a weighted average over rows of a function of the linear predictors; its
Jacobian in the parameters comes from automatic differentiation of that average, block
of rows by block, and the standard error from the delta method with the covariance in
use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .columns import Categorical
from .compute import Compute
from .design import Batch, Design, Table
from .errors import DesignError, ModelError
from .expressions import expression_variables
from .summary import Summary, coefficient_table
from .transforms import evaluate

if TYPE_CHECKING:
    from .results import Results

__all__ = ["MarginalEffects", "margeff", "marginal_effects"]

_AT = ("overall", "mean", "median", "zero")
_METHODS = {
    "dydx": "dy/dx",
    "eyex": "d(lny)/d(lnx)",
    "dyex": "dy/d(lnx)",
    "eydx": "d(lny)/dx",
}
# Two-point differences err by h^2 and by rounding / h: least at the cube root of the
# rounding error.
_STEP = float(np.finfo(np.float64).eps ** (1 / 3))

Betas = tuple[Tensor, ...]


# -- averages over rows and their Jacobians -------------------------------------------


def _blocks(designs: Sequence[Design], compute: Compute) -> Iterator[tuple[Batch, ...]]:
    """Batches of the same rows of several designs."""
    rows = compute.block_rows(sum(d.widest() + d.X.k for d in designs))
    scratches = [d.scratches(rows, compute) for d in designs]
    for start in range(0, designs[0].n, rows):
        stop = min(start + rows, designs[0].n)
        yield tuple(
            d.batch(start, stop, s, compute)
            for d, s in zip(designs, scratches, strict=True)
        )


def _average(
    results: Results,
    designs: Sequence[Design],
    total: Callable[[Betas, tuple[Batch, ...], Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Average a function of rows, and differentiate the average in the parameters.

    Parameters
    ----------
    designs : sequence of Design
        Of the same rows; frequency weights are taken from the first.
    total : callable
        From coefficients by predictor, batches and weights to sums over the rows, (q,).

    Returns
    -------
    value : Tensor, shape (q,)
    jacobian : Tensor, shape (q, p)
        In the optimiser's parameters.
    """
    compute = results.model.compute
    matrices = [designs[0].matrices[m] for m in results.model.layout]
    x = results.fit_info.x.to(compute.device).to(compute.dtype)
    value: Any = 0.0
    jacobian: Any = 0.0
    for batches in _blocks(designs, compute):
        flat = x.clone().requires_grad_()
        betas = torch.split(flat, [m.k for m in matrices])
        weight = batches[0].freq_weights
        if weight is None:
            weight = x.new_ones(batches[0].blocks[0].dense.shape[1])
        with torch.enable_grad():
            sums = total(betas, batches, weight)
            rows = [
                torch.autograd.grad(s, flat, retain_graph=True)[0]
                for s in sums.unbind()
            ]
        value = value + sums.detach().double()
        jacobian = jacobian + torch.stack(rows).double()
    f = designs[0].freq_weights
    count = float(designs[0].n if f is None else f.sum())
    return value.cpu() / count, jacobian.cpu() / count


def _covariance(results: Results) -> Tensor:
    """Covariance in use; parameters at the edge of their range are held there."""
    V = results.covariance.matrix.clone()
    held = list(results.fit_info.at_bound)
    V[held] = 0.0
    V[:, held] = 0.0
    return V


def _etas(results: Results, betas: Betas, batch: Batch) -> tuple[Tensor, ...]:
    out = []
    for number, (m, beta) in enumerate(zip(results.model.layout, betas, strict=True)):
        eta = batch.blocks[m].columns() @ beta
        offset = batch.offset[0] if number == 0 else None
        out.append(eta if offset is None else eta + offset)
    return tuple(out)


def _mean(results: Results, etas: tuple[Tensor, ...]) -> Tensor:
    """Means, or probabilities of all levels; shape (rows, outcomes)."""
    model: Any = results.model
    value = getattr(model, "probabilities", model.mean)(*etas)
    return value[:, None] if value.ndim == 1 else value


def _mean_and_slopes(
    results: Results, etas: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Means and their derivatives in each predictor, all differentiable."""
    mean = _mean(results, etas)
    columns = [
        torch.autograd.grad(
            mean[:, k].sum(), etas, create_graph=True, allow_unused=True,
            materialize_grads=True,
        )
        for k in range(mean.shape[1])
    ]  # fmt: skip
    return mean, [torch.stack(s, dim=1) for s in zip(*columns, strict=True)]


def _outcomes(results: Results) -> tuple | None:
    """Levels of the response, where the effect is one on the probability of each."""
    if not hasattr(results.model, "probabilities"):
        return None
    model: Any = results.model
    return tuple(model.levels)


# -- effects of design columns, as statsmodels' get_margeff ---------------------------


@dataclass(frozen=True, eq=False)
class MarginalEffects:
    """Marginal effects of design columns.

    Attributes
    ----------
    margeff : Series
        Effects.
    margeff_cov : ndarray, shape (effects, effects)
        Their covariance, by the delta method.
    results : Results
    at, method : str
        As they were asked for.
    """

    margeff: pd.Series
    margeff_cov: np.ndarray
    results: Results
    at: str
    method: str

    @property
    def margeff_se(self) -> pd.Series:
        """Standard errors."""
        return pd.Series(np.sqrt(np.diag(self.margeff_cov)), self.margeff.index)

    @property
    def tvalues(self) -> pd.Series:
        """Effects over their standard errors."""
        return self.margeff / self.margeff_se

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values."""
        return 2 * self.results._survival(self.tvalues.abs())

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Return confidence intervals of level ``1 - alpha``, shape (effects, 2)."""
        half = self.results._quantile(alpha) * self.margeff_se
        return np.stack([self.margeff - half, self.margeff + half], axis=1)

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Return effects, standard errors, tests and intervals."""
        low, high = self.conf_int(alpha).T
        letter = "t" if self.results.use_t else "z"
        return pd.DataFrame(
            {
                _METHODS[self.method]: self.margeff, "Std. Err.": self.margeff_se,
                letter: self.tvalues, f"Pr(>|{letter}|)": self.pvalues,
                "Conf. Int. Low": low, "Conf. Int. Hi.": high,
            }
        )  # fmt: skip

    def summary(self, alpha: float = 0.05) -> Summary:
        """Return the printed table."""
        table = coefficient_table(
            self.margeff, self.margeff_se, self.tvalues, self.pvalues,
            self.conf_int(alpha), self.results.use_t, conf_level=1 - alpha,
        )  # fmt: skip
        title = f"Marginal effects {_METHODS[self.method]}, at {self.at}"
        return Summary(title, self.results.formula_text, (table,))

    def __repr__(self) -> str:
        return self.summary().as_text()


def margeff(
    results: Results,
    at: str = "overall",
    method: str = "dydx",
    *,
    dummy: bool = False,
    count: bool = False,
) -> MarginalEffects:
    """Effects of the columns of the design on the mean of the response.

    Parameters
    ----------
    results : Results
    at : {"overall", "mean", "median", "zero"}, default "overall"
        Average of the effects of all rows, or the effect in one row whose columns (and
        offset) are at their mean, their median, or zero.
    method : {"dydx", "eyex", "dyex", "eydx"}, default "dydx"
        Derivative, elasticity, and the two semi-elasticities.
    dummy : bool, default False
        Columns of zeros and ones: the difference of the means at one and at zero.
    count : bool, default False
        Other columns of whole numbers: half the difference between the means at one
        more and at one less.

    Returns
    -------
    MarginalEffects

    Raises
    ------
    ValueError
        For an unknown option, or elasticities of dummies and counts.

    Notes
    -----
    A column is taken by itself: where the formula has ``x`` in several terms, use
    `marginal_effects`. A column that stands in several linear predictors under the same
    name moves in all of them. Frequency weights enter averages; precision weights do
    not. Every row keeps its offset.
    """
    if at not in _AT or method not in _METHODS:
        raise ValueError(
            f"at must be one of {_AT} and method one of {tuple(_METHODS)}; got {at!r} "
            f"and {method!r}."
        )
    if method.endswith("ex") and (dummy or count):
        raise ValueError("elasticities are of continuous columns: use dydx or eydx.")
    design = results.likelihood.design
    names = _column_names(results)
    steps = _steps(design, names, dummy, count) if dummy or count else {}
    at_row = None if at == "overall" else _one_row(results, at)
    designs = (design,) if at_row is None else (_hollow_row(design),)

    def total(betas: Betas, batches: tuple[Batch, ...], weight: Tensor) -> Tensor:
        rows = _rows_of(batches[0]) if at_row is None else at_row
        return _column_effects(results, betas, rows, weight, names, method, steps)

    value, jacobian = _average(results, designs, total)
    V = _covariance(results)
    outcomes = _outcomes(results)
    labels: Any = names
    if outcomes is not None:
        labels = pd.MultiIndex.from_product([outcomes, names])
    effects = pd.Series(value.numpy(), labels, name=_METHODS[method])
    return MarginalEffects(
        effects, (jacobian @ V @ jacobian.T).numpy(), results, at, method
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Dense matrices of some rows, and the offset of the first predictor."""

    matrices: tuple[Tensor, ...]
    offset: Tensor | None


def _rows_of(batch: Batch) -> _Rows:
    return _Rows(tuple(b.columns() for b in batch.blocks), batch.offset[0])


def _column_names(results: Results) -> list[str]:
    names = dict.fromkeys(
        n for m in results.model.layout for n in results.model.design.matrices[m].names
    )
    return [n for n in names if n != "Intercept"]


def _column_effects(
    results: Results,
    betas: Betas,
    rows: _Rows,
    weight: Tensor,
    names: list[str],
    method: str,
    steps: dict[str, tuple[str, float]],
) -> Tensor:
    """Weighted sums of the effects of every column; shape (outcomes * columns,)."""
    layout, matrices = results.model.layout, results.model.design.matrices
    etas = []
    for number, (m, beta) in enumerate(zip(layout, betas, strict=True)):
        eta = rows.matrices[m] @ beta
        etas.append(eta if number or rows.offset is None else eta + rows.offset)
    mean, slopes = _mean_and_slopes(results, tuple(etas))
    out = []
    for name in names:
        places = [
            (j, m, matrices[m].names.index(name))
            for j, m in enumerate(layout)
            if name in matrices[m].names
        ]
        column = rows.matrices[places[0][1]][:, places[0][2]]
        if name in steps:
            ends = []
            for value in _ends(column, *steps[name]):
                moved = list(etas)
                for j, _, c in places:
                    moved[j] = moved[j] + betas[j][c] * (value - column)
                end = _mean(results, tuple(moved))
                ends.append(end.log() if method[0] == "e" else end)
            effect = (ends[1] - ends[0]) / (2.0 if steps[name][0] == "count" else 1.0)
        else:
            parts = [slopes[j] * betas[j][c] for j, _, c in places]
            effect = torch.stack(parts).sum(0)
            effect = effect / mean if method[0] == "e" else effect
            effect = effect * column[:, None] if method[2:] == "ex" else effect
        out.append(weight @ effect)
    return torch.stack(out).T.reshape(-1)


def _ends(column: Tensor, kind: str, step: float) -> tuple[Tensor, Tensor]:
    if kind == "dummy":
        return torch.zeros_like(column), torch.ones_like(column)
    return column - step, column + step


def _steps(
    design: Design, names: list[str], dummy: bool, count: bool
) -> dict[str, tuple[str, float]]:
    """Which columns are dummies and which counts, of those that are asked for."""
    out = {}
    for name in names:
        m = next(i for i, x in enumerate(design.matrices) if name in x.names)
        values = _column(design, m, design.matrices[m].names.index(name))
        low, high = values.min(), values.max()
        if low < 0 or low == high or (values != np.round(values)).any():
            continue
        binary = low == 0 and high == 1
        if binary and dummy:
            out[name] = ("dummy", 1.0)
        elif not binary and count:
            out[name] = ("count", 1.0)
    return out


def _column(design: Design, number: int, j: int) -> np.ndarray:
    return design.matrices[number].select([j]).to_dense()[:, 0].numpy()


def _one_row(results: Results, at: str) -> _Rows:
    """Build the row in which all columns are at their mean, median or zero."""
    design, device = results.likelihood.design, results.model.compute.device
    f = design.freq_weights

    def centre(values: np.ndarray) -> float:
        if at == "mean":
            return float(np.average(values, weights=f))
        return _median(values, f)

    rows = []
    for number, matrix in enumerate(design.matrices):
        values = [
            1.0 if name == "Intercept" else 0.0 if at == "zero"
            else centre(_column(design, number, j))
            for j, name in enumerate(matrix.names)
        ]  # fmt: skip
        rows.append(torch.tensor([values], dtype=torch.float64, device=device))
    offset = None
    if design.offset is not None and at != "zero":
        offset = torch.tensor(
            [centre(design.offset)], dtype=torch.float64, device=device
        )
    return _Rows(tuple(rows), offset)


def _median(values: np.ndarray, weights: np.ndarray | None) -> float:
    if weights is None:
        return float(np.median(values))
    order = np.argsort(values)
    reached = np.cumsum(np.asarray(weights)[order])
    middle = reached[-1] / 2
    low = values[order][np.searchsorted(reached, middle, side="left")]
    high = values[order][np.searchsorted(reached, middle, side="right")]
    return float((low + high) / 2)


def _hollow_row(design: Design) -> Design:
    """Return the design of its first row alone, for what needs only its shape."""

    def first(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[:1]

    one = design.every(design.n)
    return replace(one, freq_weights=None, weights=first(design.weights))


# -- effects of the variables of the formula ------------------------------------------


def marginal_effects(
    results: Results,
    variables: str | Sequence[str] | None = None,
    newdata: Any = None,
    *,
    conf_level: float = 0.95,
) -> pd.DataFrame:
    """Average effects of the variables of the formula on the mean of the response.

    For a numeric variable the average over rows of the derivative of the mean, through
    all terms the variable is in (polynomials, splines, interactions, further linear
    predictors, offsets). For a categorical one the average difference of the mean
    between each level, given to all rows, and the reference level.

    Parameters
    ----------
    results : Results
    variables : str or sequence of str, optional
        All variables of the formula's terms when None.
    newdata : frame or mapping, optional
        Rows to average over; those of the fit, with their frequency weights, when None.
        Precision weights do not enter averages.
    conf_level : float, default 0.95

    Returns
    -------
    DataFrame
        Columns variable, contrast, (outcome,) effect, std_error, statistic, p_value,
        conf_low, conf_high. Standard errors are by the delta method, with the
        covariance in use.

    Raises
    ------
    ValueError
        For a variable that is not in the formula.
    ModelError
        For a variable that is both a number and a category in the formula.
    """
    rows = _Data.of(results, newdata)
    known = list(rows.uses)
    chosen = (
        known
        if variables is None
        else [variables]
        if isinstance(variables, str)
        else list(variables)
    )
    if unknown := [v for v in chosen if v not in known]:
        raise ValueError(f"{unknown[0]!r} is not a variable of the formula: {known}.")
    outcomes, V = _outcomes(results), _covariance(results)
    parts = []
    for name in chosen:
        for label, value, jacobian in rows.effects(name):
            se = (jacobian @ V * jacobian).sum(1).clamp_min(0).sqrt()
            part: dict[str, Any] = {"variable": name, "contrast": label}
            if outcomes is not None:
                part["outcome"] = outcomes
            frame = pd.DataFrame({"effect": value.numpy(), "std_error": se.numpy()})
            for place, (key, entry) in enumerate(part.items()):
                frame.insert(place, key, entry)
            parts.append(frame)
    if not parts:
        raise ValueError("the formula has no variables, only a constant.")
    return _with_tests(pd.concat(parts, ignore_index=True), results, conf_level)


def _with_tests(
    frame: pd.DataFrame, results: Results, conf_level: float
) -> pd.DataFrame:
    statistic = frame["effect"] / frame["std_error"]
    half = results._quantile(1 - conf_level) * frame["std_error"]
    return frame.assign(
        statistic=statistic,
        p_value=2 * results._survival(statistic.abs()),
        conf_low=frame["effect"] - half,
        conf_high=frame["effect"] + half,
    )


@dataclass(frozen=True, eq=False)
class _Data:
    """The rows to average over, from which designs with changed variables are made.

    Attributes
    ----------
    results : Results
    columns : dict of str to Series
        The variables of the formula, rows used.
    base : Design
    extra : ndarray or None
        Offset given as values, beside what the formula and named columns say.
    uses : dict of str to list of str
        Variables of the terms, and the factors that use each.
    """

    results: Results
    columns: dict[str, pd.Series]
    base: Design
    extra: np.ndarray | None
    uses: dict[str, list[str]]

    @classmethod
    def of(cls, results: Results, newdata: Any) -> _Data:
        fitted = (results.likelihood if newdata is None else results.model).design
        spec = fitted.spec
        table = Table(spec.table if newdata is None else newdata)
        rhs = (spec.formula.rhs, *spec.parts)
        uses: dict[str, list[str]] = {}
        for expression in (e for r in rhs for t in r.terms for e in t.factors):
            for variable in expression_variables(expression):
                if variable not in spec.context or variable in table.columns:
                    uses.setdefault(variable, []).append(expression)
        offsets = [e for r in rhs for e in r.offsets]
        offsets += [e for e in (spec.offset, spec.exposure) if e is not None]
        needed = dict.fromkeys(
            [*uses, *(v for e in offsets for v in expression_variables(e))]
        )
        columns = {}
        for name in needed:
            if name not in table.columns:
                if name in spec.context:
                    continue
                raise DesignError(f"there is no column {name!r} in the data given.")
            columns[name] = pd.Series(table.full(name)).reset_index(drop=True)
        if newdata is None and fitted.rows is not None:
            columns = {
                k: v.iloc[fitted.rows].reset_index(drop=True)
                for k, v in columns.items()
            }
        elif newdata is not None:
            complete = ~pd.DataFrame(columns).isna().any(axis=1).to_numpy()
            columns = {
                k: v[complete].reset_index(drop=True) for k, v in columns.items()
            }
        if not columns:
            return cls(results, {}, fitted, None, {})
        base = spec.rebuild(columns, **(spec.neutral() if newdata is None else {}))
        extra = None
        if newdata is None:
            if fitted.offset is not None:
                extra = fitted.offset - (0.0 if base.offset is None else base.offset)
            base = replace(base, freq_weights=fitted.freq_weights)
        return cls(results, columns, _plus(base, extra), extra, uses)

    def moved(self, name: str, values: pd.Series) -> Design:
        """Return the design with one variable changed."""
        spec = self.results.model.design.spec
        # The rows of the fit keep their own offset: `extra`.
        given = {} if self.extra is None else spec.neutral()
        design = spec.rebuild({**self.columns, name: values}, **given)
        if design.n != self.base.n:
            raise ModelError(
                f"changing {name} makes missing values in {self.base.n - design.n} "
                "rows; its effect is not defined there."
            )
        return _plus(design, self.extra)

    def effects(self, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Label, values and Jacobians of the effects of a variable."""
        if self._is_categorical(name):
            yield from self._differences(name)
        else:
            yield "dY/dX", *self._derivative(name)

    def _is_categorical(self, name: str) -> bool:
        states = self.results.model.design.spec.states
        kinds = {
            states.get(e, {}).get("kind") == "categorical" for e in self.uses[name]
        }
        column = self.columns[name]
        number = pd.api.types.is_numeric_dtype(column.dtype)
        if not number or pd.api.types.is_bool_dtype(column.dtype):
            return True
        if len(kinds) == 2:
            raise ModelError(
                f"{name} is a number in one term and a category in another "
                f"({', '.join(dict.fromkeys(self.uses[name]))}): it has no derivative "
                "and no levels of its own. Ask for others with variables=[...]."
            )
        return kinds == {True}

    # -- categorical variables

    def _differences(self, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
        column = self.columns[name]
        levels, reference = self._levels(name)
        low = self.moved(name, _constant(column, reference))
        for level in levels:
            if level == reference:
                continue
            high = self.moved(name, _constant(column, level))

            def total(
                betas: Betas, batches: tuple[Batch, ...], weight: Tensor
            ) -> Tensor:
                one, other = (
                    _mean(self.results, _etas(self.results, betas, b))
                    for b in batches[1:]
                )
                return weight @ (one - other)

            value, jacobian = _average(self.results, (self.base, high, low), total)
            yield f"{level} - {reference}", value, jacobian

    def _levels(self, name: str) -> tuple[list[Any], Any]:
        """Levels of a variable, those of the fit where they are known, and its base."""
        spec, expression = self.results.model.design.spec, self.uses[name][0]
        stored = spec.states.get(expression, {})
        lookup = self.columns.__getitem__
        value = evaluate(
            expression, lookup, deepcopy(stored.get("state", {})), spec.context
        )
        if isinstance(value, Categorical) and expression_variables(expression) == (
            name,
        ):
            seen = set(pd.unique(self.columns[name]).tolist())
            levels = list(value.levels)
            if seen <= set(levels):
                base = dict(value.contrast.options).get("base", levels[0])
                if value.contrast.kind == "SAS" and "base" not in dict(
                    value.contrast.options
                ):
                    base = levels[-1]
                return levels, base if base in levels else levels[0]
        levels = sorted(pd.unique(self.columns[name]).tolist())
        return levels, levels[0]

    # -- numeric variables

    def _derivative(self, name: str) -> tuple[Tensor, Tensor]:
        points, weights = self._stencil(name)
        results = self.results

        def total(betas: Betas, batches: tuple[Batch, ...], weight: Tensor) -> Tensor:
            etas = _etas(results, betas, batches[0])
            _, slopes = _mean_and_slopes(results, etas)
            part = batches[0].rows
            changes: list[Any] = [0.0] * len(etas)
            for batch, values in zip(batches[1:], weights, strict=True):
                w = torch.as_tensor(values[part]).to(weight)
                moved = _etas(results, betas, batch)
                changes = [c + w * e for c, e in zip(changes, moved, strict=True)]
            effect = sum(s * c[:, None] for s, c in zip(slopes, changes, strict=True))
            return weight @ effect

        return _average(results, (self.base, *points), total)

    def _stencil(self, name: str) -> tuple[list[Design], list[np.ndarray]]:
        """Designs near the rows' values, and the weights that make a derivative."""
        x = self.columns[name].to_numpy(dtype=np.float64)
        h = _STEP * max(float(np.abs(x).max()), float(x.std()), 1e-300)
        # The step that the floating-point values really make.
        up, down = x + h, x - h
        try:
            designs = [self.moved(name, pd.Series(v)) for v in (up, down)]
        except DesignError:
            return self._inside(name, x, h)
        return designs, [1 / (up - down), -1 / (up - down)]

    def _inside(
        self, name: str, x: np.ndarray, h: float
    ) -> tuple[list[Design], list[np.ndarray]]:
        """Use one-sided differences, also of second order, at the ends of the data."""
        known = self.results.model.design.spec.table
        seen = x if known is None else np.asarray(known.full(name), dtype=np.float64)
        low, high = np.nanmin(seen), np.nanmax(seen)
        shift = np.where(x - h < low, h, 0.0) - np.where(x + h > high, h, 0.0)
        points = [x + shift - h, x + shift, x + shift + h]
        side = np.sign(shift)
        weights = [
            (-1 - 2 * side) / (2 * h),
            4 * side / (2 * h),
            (1 - 2 * side) / (2 * h),
        ]
        designs = [self.moved(name, pd.Series(p)) for p in points]
        return designs, weights


def _plus(design: Design, extra: np.ndarray | None) -> Design:
    if extra is None:
        return design
    offset = extra if design.offset is None else design.offset + extra
    return replace(design, offset=offset)


def _constant(column: pd.Series, level: Any) -> pd.Series:
    """Return a column of the same type that holds one level."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.Series(pd.Categorical([level] * len(column), dtype=column.dtype))
    return pd.Series([level] * len(column), dtype=column.dtype)
