"""Simple weights: from formula and frame to points, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...compute import one_thread
from ...errors import DesignError, InfeasibleError, ModelError
from ...formula import Formula
from ...leastsquares import aliased_columns, triangle
from ..lossreg import LossRegression
from .baselines import (
    Row,
    near_integers,
    real_coefficients,
    rounded,
    select_regress_round,
)
from .lattice import Found
from .logistic import Patterns
from .results import SimpleWeightsResults
from .tasks import ScoreTask, SquaredTask, Task, Valued

__all__ = ["SimpleWeights", "simple_weights"]

Array = np.ndarray

#: Columns that a search over whole numbers can have.
MOST_COLUMNS = 100
#: Strength of the near-integer penalty: Wheeler's, and one in the size of log-losses.
_LAM = {"squared": 0.4, "logloss": 0.01}
_TOP = 5


class SimpleWeights:
    """A linear or logistic model whose coefficients are points, times a step.

    ``y`` is predicted by ``a + step * (z1 x1 + z2 x2 + ...)``, or its sigmoid, with
    whole numbers z, the points. Whether points are simple depends on the units of the
    columns: those between zero and one, or yes and no, make score cards.

    Parameters
    ----------
    formula : str or Formula
    data : frame or mapping
    loss : {"squared", "logloss"}, default "squared"
    bounds : pair of int, or mapping of str to pair, optional
        Least and greatest points, of all columns or by column (others have the
        default). By default none for the squared loss, (-5, 5) for the log-loss.
    max_terms : int, optional
        Most columns whose points are not zero.
    step : float, optional
        What points are multiplied by. By default 1 for the squared loss; the log-loss
        chooses it, positive, with the points.
    intercept : {"free", "integer"}, default "free"
        Whether the intercept is any number or a multiple of the step.
    lam : float, optional
        Strength of the near-integer penalty that is shown beside the best points; by
        default 0.4 for the squared loss, 0.01 for the log-loss.
    weights : str or array_like, optional
        Of the rows in the mean loss.
    na_action : {"drop", "raise"}, default "drop"
    context : mapping of str to callable, optional
        Functions that the formula may call.

    Raises
    ------
    DesignError
        For outcomes that are not two values (log-loss), or not finite.
    InfeasibleError
        For bounds that no points can be within.
    ModelError
        For columns that are too many, or determine one another.

    References
    ----------
    Agrell, E., Eriksson, T., Vardy, A. and Zeger, K. (2002). Closest point search in
    lattices. IEEE Transactions on Information Theory 48, 2201-2214.
    """

    title = "Simple weights"

    def __init__(
        self,
        formula: str | Formula,
        data: Any,
        *,
        loss: str = "squared",
        bounds: Any = None,
        max_terms: int | None = None,
        step: float | None = None,
        intercept: str = "free",
        lam: float | None = None,
        weights: Any = None,
        na_action: str = "drop",
        context: Mapping[str, Callable] | None = None,
    ) -> None:
        if loss not in _LAM:
            raise ModelError(
                f"loss={loss!r} has no simple weights; use one of {tuple(_LAM)}."
            )
        if intercept not in ("free", "integer"):
            raise ValueError(
                f"intercept must be 'free' or 'integer', not {intercept!r}."
            )
        if step is not None and not (np.isscalar(step) and 0 < float(step) < math.inf):
            raise ValueError(f"step must be a positive number, not {step!r}.")
        self.loss, self.whole = loss, intercept == "integer"
        self.step = 1.0 if step is None and loss == "squared" else step
        self.regression = LossRegression(
            formula, data, loss=loss, penalty="integer",
            lam=_LAM[loss] if lam is None else lam, step=self.step or 1.0,
            weights=weights, na_action=na_action, context=context,
        )  # fmt: skip
        self.names = self._columns()
        self._check_columns()
        self.low, self.high = self._bounds(bounds)
        self.terms = self._terms(max_terms)
        self.task = self._task()

    @property
    def formula_text(self) -> str:
        """The formula as it was written."""
        return str(self.regression.design.spec.formula)

    # -- checks ------------------------------------------------------------------------

    def _columns(self) -> list[str]:
        names = list(self.regression.design.X.names)
        if "Intercept" not in names:
            raise ModelError("simple weights need an intercept: leave out 0 + or - 1.")
        names.remove("Intercept")
        if not names:
            raise ModelError("there are no columns to weigh; write some right of ~.")
        return names

    def _check_columns(self) -> None:
        p, design = len(self.names), self.regression.design
        if p > MOST_COLUMNS:
            raise ModelError(
                f"{p} columns are too many for a search over whole numbers, which "
                f"takes at most {MOST_COLUMNS}: choose some first, as by ds.lossreg("
                "..., penalty='lasso', lam='cv'), or merge levels of factors."
            )
        if design.n <= p:
            raise ModelError(
                f"{design.n} rows cannot determine the points of {p} columns; use "
                "fewer columns."
            )
        gone = aliased_columns(*triangle(design, self.regression.compute))
        if gone:
            listed = [design.X.names[j] for j in gone]
            raise ModelError(
                f"the columns {listed[:6]} are determined by those before them, so "
                "that other points say the same: leave them out of the formula."
            )

    def _bounds(self, given: Any) -> tuple[Array, Array]:
        """Read the bounds of the points; shapes (p,)."""
        default = (-_TOP, _TOP) if self.loss == "logloss" else (-math.inf, math.inf)
        pairs: dict[str, Any] = dict.fromkeys(self.names, default)
        if isinstance(given, Mapping):
            if unknown := sorted(set(given) - set(self.names)):
                raise ValueError(
                    f"bounds= names columns that are not there: {unknown}; there are "
                    f"{self.names}."
                )
            pairs |= given
        elif given is not None:
            pairs = dict.fromkeys(self.names, given)
        read = np.array([_pair(name, pair) for name, pair in pairs.items()])
        if self.loss == "logloss" and not np.isfinite(read).all():
            raise ModelError(
                "points of the log-loss need finite bounds, such as bounds=(-5, 5)."
            )
        low, high = read.T
        return low, high

    def _terms(self, most: int | None) -> int:
        p = len(self.names)
        if most is None:
            return p
        if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
            raise ValueError(f"max_terms must be 1 or more, not {most!r}.")
        without = [
            name
            for name, low, high in zip(self.names, self.low, self.high, strict=True)
            if not low <= 0 <= high
        ]
        if without and most < p:
            raise InfeasibleError(
                f"max_terms={most} sets columns to zero, which the bounds of "
                f"{without[:6]} leave out; widen these bounds."
            )
        return min(int(most), p)

    def _task(self) -> Task:
        o = self.regression.objective
        at = [list(self.regression.design.X.names).index(name) for name in self.names]
        X, y = o.X[:, at].cpu().numpy(), o.y.cpu().numpy()
        w = np.ones(len(y)) if o.weights is None else o.weights.cpu().numpy()
        if self.loss == "squared":
            assert self.step is not None
            return SquaredTask(
                X, y, w / w.sum(), self.low, self.high, self.step, self.whole,
                self.terms,
            )  # fmt: skip
        values = np.unique(y)
        if not np.array_equal(values, [0.0, 1.0]):
            name = self.regression.design.y_name
            raise DesignError(
                f"the log-loss needs an outcome of two values, 0 and 1; {name} has "
                f"{values[:6].tolist()}{' ...' if len(values) > 6 else ''}."
            )
        return ScoreTask(
            Patterns.of(X, y, w), self.low.astype(np.int64),
            self.high.astype(np.int64), self.step, self.whole, self.terms,
        )  # fmt: skip

    # -- the search --------------------------------------------------------------------

    def fit(
        self, *, restarts: int = 5, seed: int = 0, max_nodes: int | None = None
    ) -> SimpleWeightsResults:
        """Find the best points.

        Parameters
        ----------
        restarts : int, default 5
            Of the local search, where branch and bound did not finish (log-loss).
        seed : int, default 0
            Of these.
        max_nodes : int, optional
            Most partial choices of the exact search; by default a million for the
            squared loss, and for the log-loss what takes a few seconds.

        Returns
        -------
        SimpleWeightsResults
        """
        for name, value, least in (
            ("restarts", restarts, 0),
            ("max_nodes", max_nodes, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value!r}.")
        with one_thread():
            found = self._reduced(self.task.solve(restarts, seed, max_nodes))
            valued = self.task.evaluate(found.z)
            if valued.step == 0:  # a multiplier of zero: no column is of use
                found = replace(found, z=np.zeros_like(found.z))
            rows = self._rivals(valued)
        rows.append(Row("best points", found.z, valued))
        bound = min(found.bound, valued.loss)
        return SimpleWeightsResults(self, found, valued, bound, rows)

    def _reduced(self, found: Found) -> Found:
        """Divide points by what divides them all: a free multiplier takes it up."""
        common = int(np.gcd.reduce(found.z.astype(np.int64)))
        if self.step is not None or self.whole or common < 2:
            return found
        z = found.z // common
        inside = (z >= self.low).all() and (z <= self.high).all()
        return replace(found, z=z) if inside else found

    def _rivals(self, best: Valued) -> list[Row]:
        """Other ways: real numbers, rounding, the penalty, Jung et al."""
        reach = np.abs(np.r_[self.low, self.high]).max()
        top = int(min(reach, 2 * _TOP)) if math.isfinite(reach) else _TOP
        found = [real_coefficients(self.task)]
        if step := self.step or best.step:
            self.regression.step = step
            start = "ols" if self.loss == "squared" else "logit"
            near = self.regression.fit(start=start, cov_type="none")
            b = near.params[self.names].to_numpy()
            intercept = float(near.params["Intercept"])
            found += [
                Row(
                    "near-integer penalty", b / step,
                    Valued(near.loss_value, intercept, step),
                ),
                near_integers(self.task, b / step),
            ]  # fmt: skip
        found.append(rounded(self.task, top))
        found.append(select_regress_round(self.task, top))
        return found


def _pair(name: str, pair: Any) -> tuple[float, float]:
    """Read the bounds of one column."""
    try:
        low, high = (float(v) for v in pair)
    except (TypeError, ValueError):
        raise ValueError(
            f"bounds of {name} must be a pair such as (-5, 5), not {pair!r}."
        ) from None
    first = low if math.isinf(low) else np.ceil(low)
    last = high if math.isinf(high) else np.floor(high)
    if not (first <= last and first < math.inf and last > -math.inf):
        raise InfeasibleError(
            f"no whole number is within the bounds of {name}, ({low:g}, {high:g})."
        )
    return float(first), float(last)


def simple_weights(
    formula: str | Formula,
    data: Any,
    *,
    restarts: int = 5,
    seed: int = 0,
    max_nodes: int | None = None,
    **options: Any,
) -> SimpleWeightsResults:
    """Find the best whole-number coefficients of a linear or logistic model.

    Parameters
    ----------
    formula : str or Formula
        ``"y ~ x1 + x2"``.
    data : frame or mapping
        pandas, polars, pyarrow or a mapping of columns.
    restarts, seed, max_nodes : int
        Of the search; see `SimpleWeights.fit`.
    **options
        loss, bounds, max_terms, step, intercept, lam, weights, na_action, context: see
        `SimpleWeights`.

    Returns
    -------
    SimpleWeightsResults

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 2.0, 4.0, 4.0, 9.0], "x": [0.0, 1.0, 2.5, 3.0, 4.1]}
    >>> found = ds.simple_weights("y ~ x", data)
    >>> found.points.to_dict(), found.optimal
    ({'x': 2}, True)
    """
    model = SimpleWeights(formula, data, **options)
    return model.fit(restarts=restarts, seed=seed, max_nodes=max_nodes)
