"""Whole paths of penalties, and the choice of a strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ConvergenceWarning, ModelError, caution
from ...plots import OKABE_ITO, _axes
from .boxed import solve_boxed
from .constraints import Constraints
from .objective import Objective
from .penalties import Group, Penalty
from .plq import Kinks, kkt
from .solvers import Problem, data_kinks, minimise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .model import LossRegression

__all__ = ["LossPath", "elastic_path", "fit_path"]

Array = np.ndarray

# glmnet's stand-in for the share of the l1 part where there is none (ridge).
_NO_L1 = 1e-3
# A Hessian is made anew when a step with it leaves more than this of the residual.
_STALE = 0.2
# Share of the gradient at which a coefficient comes in that foretells that it will.
_SOON = 0.4
_STEPS = 100


@dataclass(frozen=True, eq=False)
class LossPath:
    """Coefficients at a sequence of strengths of a penalty.

    Attributes
    ----------
    names : tuple of str
    lams : ndarray, shape (L,)
        Falling.
    coefs : ndarray, shape (L, k)
    losses : ndarray, shape (L,)
        Mean loss in the sample.
    residuals : ndarray, shape (L,)
        Of the conditions of a minimum; see `solvers.Problem.residual`.
    model : LossRegression
    """

    names: tuple[str, ...]
    lams: Array
    coefs: Array
    losses: Array
    residuals: Array
    model: LossRegression
    _folds: dict[tuple[int, int], pd.DataFrame] = field(default_factory=dict)

    @property
    def params(self) -> pd.DataFrame:
        """Coefficients, one row for each strength."""
        index = pd.Index(self.lams, name="lam")
        return pd.DataFrame(self.coefs, index=index, columns=list(self.names))

    @property
    def df(self) -> Array:
        """Effective parameters at each strength: of lasso those that are not zero."""
        return np.array(
            [
                _freedom(self.model, lam, b)
                for lam, b in zip(self.lams, self.coefs, strict=True)
            ]
        )

    def table(self) -> pd.DataFrame:
        """Return strength, mean loss, coefficients not zero and residual."""
        slopes = [j for j, n in enumerate(self.names) if n != "Intercept"]
        return pd.DataFrame(
            {"lam": self.lams, "loss": self.losses,
             "nonzero": (self.coefs[:, slopes] != 0).sum(1), "residual": self.residuals}
        )  # fmt: skip

    def cross_validate(self, folds: int = 10, seed: int = 0) -> pd.DataFrame:
        """Estimate the loss outside the sample at each strength.

        Parameters
        ----------
        folds : int, default 10
            Rows are dealt at random into so many parts; each is predicted from the
            others.
        seed : int, default 0

        Returns
        -------
        DataFrame
            Columns lam, loss (mean over rows) and std_error (over folds).
        """
        n = self.model.design.n
        if not (int(folds) == folds and 2 <= folds <= n):
            raise ValueError(f"folds must be from 2 to the {n} rows, not {folds!r}.")
        if (folds, seed) not in self._folds:
            self._folds[folds, seed] = self._cross_validated(int(folds), seed)
        return self._folds[folds, seed]

    def _cross_validated(self, folds: int, seed: int) -> pd.DataFrame:
        whole = self.model.objective
        part = np.random.default_rng(seed).permutation(np.arange(len(whole.y)) % folds)
        losses, sizes = [], []
        for fold in range(folds):
            outside = whole.subset(np.flatnonzero(part == fold))
            inside = whole.subset(np.flatnonzero(part != fold))
            coefs, *_ = _coefficients(self.model, inside, self.lams, 1e-6)
            losses.append([outside.value(b) for b in coefs])
            sizes.append(outside.total)
        table, share = np.array(losses), np.array(sizes) / np.sum(sizes)
        mean = share @ table
        error = np.sqrt(share @ (table - mean) ** 2 / (folds - 1))
        return pd.DataFrame({"lam": self.lams, "loss": mean, "std_error": error})

    def gcv(self) -> pd.DataFrame:
        """Return generalised cross-validation: mean squares over ``(1 - df/n)**2``.

        References
        ----------
        Craven & Wahba (1979), Smoothing noisy data with spline functions, Numerische
        Mathematik 31.
        """
        if not self.model.composite.quadratic:
            raise ModelError(
                "GCV is for the squared loss with link='identity'; use lam='cv'."
            )
        n, df = float(self.model.design.n), self.df
        with np.errstate(divide="ignore"):
            score = np.where(df < n, self.losses / (1 - df / n) ** 2, np.inf)
        return pd.DataFrame({"lam": self.lams, "gcv": score, "df": df})

    def choose(self, rule: str = "cv", folds: int = 10, seed: int = 0) -> float:
        """Choose a strength.

        Parameters
        ----------
        rule : {"cv", "1se", "gcv"}, default "cv"
            Least cross-validated loss; the strongest within a standard error of it;
            least GCV.
        folds, seed : int
        """
        if rule == "gcv":
            table = self.gcv()
            return float(table["lam"][table["gcv"].idxmin()])
        if rule not in ("cv", "1se"):
            raise ValueError(f"rule must be 'cv', '1se' or 'gcv', not {rule!r}.")
        table = self.cross_validate(folds, seed)
        best = int(table["loss"].idxmin())
        if rule == "cv":
            return float(self.lams[best])
        near = table["loss"] <= table["loss"][best] + table["std_error"][best]
        return float(self.lams[int(np.flatnonzero(near)[0])])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each coefficient, in units of its column, against the strength."""
        ax = _axes(ax, (6.0, 3.8))
        scale = self.model.column_scale()
        shown = [j for j, n in enumerate(self.names) if n != "Intercept"]
        for number, j in enumerate(shown):
            colour = OKABE_ITO[number % len(OKABE_ITO)]
            ax.plot(self.lams, self.coefs[:, j] * scale[j], color=colour, lw=1.2)
            if self.coefs[-1, j] != 0 and len(shown) <= 20:
                ax.annotate(
                    self.names[j], (self.lams[-1], self.coefs[-1, j] * scale[j]),
                    xytext=(4, 0), textcoords="offset points", va="center",
                    fontsize=8, color=colour,
                )  # fmt: skip
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.set(xlabel="Strength of the penalty", ylabel="Coefficient × sd of column")
        return ax

    def __repr__(self) -> str:
        return f"<path of {len(self.lams)} strengths, {self.model.loss_name}>"


def fit_path(
    model: LossRegression,
    lams: Sequence[float] | None = None,
    *,
    count: int = 100,
    least: float | None = None,
    tol: float = 1e-7,
) -> LossPath:
    """Minimise at falling strengths, each from the solution of the one before.

    See `LossRegression.path`.

    Warns
    -----
    ConvergenceWarning
        With the number of strengths at which conditions of a minimum are not met.
    """
    objective = model.objective
    if lams is None:
        strengths = _strengths(model, count, least)
    else:
        strengths = np.sort(np.asarray(lams, dtype=np.float64))[::-1]
        if strengths.ndim != 1 or not len(strengths) or not (strengths >= 0).all():
            raise ValueError("lams must be numbers that are not negative.")
    coefs, residuals, losses = _coefficients(model, objective, strengths, tol)
    if bad := int((residuals > max(10 * tol, 1e-6)).sum()):
        caution(
            f"{bad} of {len(strengths)} strengths of the path did not converge: "
            f"largest residual of the conditions of a minimum {residuals.max():.2g}.",
            ConvergenceWarning,
        )
    return LossPath(model.design.X.names, strengths, coefs, losses, residuals, model)


def _strengths(model: LossRegression, count: int, least: float | None) -> Array:
    """Values from the least at which everything penalised is zero, downwards."""
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count!r}.")
    n, k = model.design.n, model.design.X.k
    ratio = (1e-4 if n > k else 1e-2) if least is None else float(least)
    if not 0 < ratio < 1:
        raise ValueError(f"least must be between 0 and 1, not {least!r}.")
    top = _largest(model)
    return np.geomspace(top, top * ratio, count) if count > 1 else np.array([top])


def _largest(model: LossRegression) -> float:
    unit = model.penalty(1.0)
    gradient = _null_gradient(model, unit)
    if unit.groups:
        forces = [_force(g, gradient) for g in unit.groups]
        return max(max(forces), 1e-300)
    weight = np.where(unit.l1 > 0, unit.l1, _NO_L1 * np.sqrt(unit.l2))
    weight = np.where((unit.l1 > 0) | (unit.l2 > 0), weight, np.inf)
    box = model.constraints.box
    pull = np.abs(gradient)
    if box is not None:
        pull = np.maximum(
            np.where(box[0] < 0, gradient, 0.0), np.where(box[1] > 0, -gradient, 0.0)
        )
    top = float((pull / weight).max(initial=0.0))
    return top if top > 0 else 1.0


def _null_gradient(model: LossRegression, unit: Penalty) -> Array:
    """Gradient where only the columns without a penalty are used."""
    objective, box = model.objective, model.constraints.box
    if objective.composite.loss.slopes is not None and objective.composite.convex:
        # Rows on the plane have the slopes that balance the free columns.
        b, rows = _null(model, objective, unit), data_kinks(objective)
        on = (unit.l1 == 0) & (unit.l2 == 0)
        few = Kinks(rows.F[:, on], rows.f, rows.up, rows.down)
        return -rows.F.T @ kkt(np.zeros(int(on.sum())), few, b[on])[1]
    if not (objective.composite.quadratic and box is not None):
        return objective.at(_null(model, objective, unit), 1).gradient
    H, r, *_ = objective.moments(*box)
    on = np.flatnonzero((unit.l1 == 0) & (unit.l2 == 0))
    b = np.zeros(len(r))
    if len(on) and not unit.groups:
        b[on] = np.linalg.lstsq(H[np.ix_(on, on)], r[on], rcond=None)[0]
        return H @ b - r
    return objective.at(_null(model, objective, unit), 1).gradient


def _force(group: Group, gradient: Array) -> float:
    return float(np.linalg.norm(gradient[group.at] / group.scale)) / group.weight


def _null(model: LossRegression, objective: Objective, unit: Penalty) -> Array:
    """Best coefficients of the columns without a penalty, all others zero."""
    k = objective.k
    on = (unit.l1 > 0) | (unit.l2 > 0)
    for group in unit.groups:
        on[group.at] = True
    eye = np.eye(k)[on]
    c = Constraints(np.zeros((0, k)), np.zeros(0), eye, np.zeros(len(eye)))
    return minimise(Problem(objective, Penalty.none(k), c), np.zeros(k)).b


def _coefficients(
    model: LossRegression, objective: Objective, lams: Array, tol: float
) -> tuple[Array, Array, Array]:
    """Coefficients, residuals and mean losses at falling strengths."""
    unit, box = model.penalty(1.0), model.constraints.box
    composite = objective.composite
    fast = composite.convex and composite.loss.smooth and not unit.groups
    if fast and box is not None and composite.closed is not None:
        return elastic_path(objective, unit.l1, unit.l2, lams, tol, box)
    b = _null(model, objective, unit)
    coefs, residuals, losses = [], [], []
    for lam in lams:
        problem = Problem(objective, model.penalty(float(lam)), model.constraints)
        found = minimise(problem, b, tol=tol)
        b = found.b
        coefs.append(b)
        residuals.append(found.residual)
        losses.append(objective.value(b))
    return np.array(coefs), np.array(residuals), np.array(losses)


def elastic_path(
    objective: Objective,
    l1: Array,
    l2: Array,
    lams: Array,
    tol: float,
    box: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Elastic nets of a convex loss with derivatives in closed form.

    Parameters
    ----------
    objective : Objective
    l1, l2 : ndarray, shape (k,)
        Penalty at strength one: ``sum(l1 |b|) + sum(l2 b**2) / 2``.
    lams : ndarray, shape (L,)
        Falling.
    tol : float
        On the residual of the conditions of a minimum.
    box : (ndarray, ndarray), optional
        Lowest and highest values of the coefficients.

    Returns
    -------
    coefs : ndarray, shape (L, k)
    residuals, losses : ndarray, shape (L,)
    """
    none = np.full(objective.k, np.inf)
    low, high = (-none, none) if box is None else box
    path = _Elastic(objective, l1, l2, low, high)
    if objective.composite.quadratic:
        return path.quadratic(lams)
    return path.newton(lams, tol)


class _Elastic:
    """Elastic nets with bounds on a convex loss of rows."""

    def __init__(
        self, objective: Objective, l1: Array, l2: Array, low: Array, high: Array
    ) -> None:
        self.objective, self.l1, self.l2 = objective, l1, l2
        self.low, self.high = low, high

    def residual(self, gradient: Array, b: Array, lam: float, size: float) -> float:
        """As `Problem.residual`, for a penalty on the axes."""
        asking = _asked(
            gradient + lam * self.l2 * b, lam * self.l1, b, self.low, self.high
        )
        scale = self.objective.scale * max(size, 1e-300)
        return float((asking / scale).max(initial=0.0))

    # -- squared loss: cross-products once, no further pass over the rows --------------

    def quadratic(self, lams: Array) -> tuple[Array, Array, Array]:
        """Coefficients, residuals and mean losses of the squared loss."""
        H, r, yy, centre, at = self.objective.moments(self.low, self.high)
        low, high = self.low, self.high
        b, coefs, residuals, losses = np.zeros(len(r)), [], [], []
        for lam in lams:
            bent = H + lam * np.diag(self.l2)
            b = solve_boxed(bent, r, lam * self.l1, b, low, high)
            gradient = H @ b - r
            # Rows have slopes -2 (y - Xb): four times the mean square in the mean.
            mean_square = max(yy - float(r @ b) + float(b @ H @ b) / 2, 0.0)
            residuals.append(self.residual(gradient, b, lam, 2 * mean_square**0.5))
            losses.append(mean_square)
            out = b.copy()
            if at is not None:  # back from centred columns
                out[at] -= float(np.delete(b, at) @ np.delete(centre, at))
            coefs.append(out)
        return np.array(coefs), np.array(residuals), np.array(losses)

    # -- other losses: steps with a Hessian that is kept while it serves ---------------

    def newton(self, lams: Array, tol: float) -> tuple[Array, Array, Array]:
        """Coefficients, residuals and mean losses of a loss with a varying Hessian.

        A step needs the gradient, two products with the matrix, and a Hessian, a
        hundred times that: the Hessian of earlier points serves until it no longer
        makes the residual fall to a fifth. It is made of the columns that matter, as
        the strong rules foretell; all others are checked at every step.

        References
        ----------
        Tibshirani et al. (2012), Strong rules for discarding predictors in lasso-type
        problems, JRSS B 74(2).
        """
        k = self.objective.k
        b = np.zeros(k)
        work, H = np.zeros(k, dtype=bool), np.zeros((0, 0))
        penalised = (self.l1 > 0) | (self.l2 > 0)
        coefs, residuals, losses, last = [], [], [], None
        found = self.objective.at(b, 1)
        for lam in lams:
            before = lam if last is None else last
            likely = np.abs(found.gradient) >= (2 * lam - before) * self.l1
            wanted = work | likely | (b != 0) | ~penalised | (self.l1 == 0)
            if (wanted & ~work).any():
                # With those that come soon after: each enlargement costs a Hessian.
                soon = np.abs(found.gradient) >= _SOON * lam * self.l1
                work = wanted | soon
                H = self.objective.gram(b, work)
            previous, value, fresh = np.inf, np.inf, False
            old, at_old = b, found
            for _ in range(_STEPS):
                residual = self.residual(found.gradient, b, lam, found.size)
                now = found.value + self._cost(b, lam)
                if residual <= tol:
                    break
                if now > value + 1e-13 * abs(value):  # too far: back, with a fresh one
                    if fresh:
                        b = (b + old) / 2
                        found = self.objective.at(b, 1)
                        continue
                    b, found, now = old, at_old, value
                    H, fresh = self.objective.gram(b, work), True
                elif residual > _STALE * previous or self._strays(found, b, lam, work):
                    asks = self._asks(found.gradient, b, lam)
                    work |= asks
                    H, fresh = self.objective.gram(b, work), True
                else:
                    fresh = False
                old, at_old, value, previous = b, found, now, residual
                b = self._step(H, found.gradient, b, lam, work)
                found = self.objective.at(b, 1)
            last = lam
            coefs.append(b)
            residuals.append(residual)
            losses.append(found.value)
        return np.array(coefs), np.array(residuals), np.array(losses)

    def _cost(self, b: Array, lam: float) -> float:
        return lam * float(self.l1 @ np.abs(b) + self.l2 @ b**2 / 2)

    def _asks(self, gradient: Array, b: Array, lam: float) -> Array:
        slope = gradient + lam * self.l2 * b
        return _asked(slope, lam * self.l1, b, self.low, self.high) > 0

    def _strays(self, found: Any, b: Array, lam: float, work: Array) -> bool:
        """Whether a column outside the working set asks to come in."""
        return bool((self._asks(found.gradient, b, lam) & ~work).any())

    def _step(
        self, H: Array, gradient: Array, b: Array, lam: float, work: Array
    ) -> Array:
        at = np.flatnonzero(work)
        bent = H + lam * np.diag(self.l2[at])
        r = H @ b[at] - gradient[at]
        out = b.copy()
        out[at] = solve_boxed(
            bent, r, lam * self.l1[at], b[at], self.low[at], self.high[at]
        )
        return out


def _asked(slope: Array, l1: Array, b: Array, low: Array, high: Array) -> Array:
    """Distance of each slope from those that a minimum may have there."""
    up = np.where(b >= 0, l1, -l1)
    down = np.where(b > 0, l1, -l1)
    rise = np.where(b < high, -(slope + up), 0.0)
    fall = np.where(b > low, slope + down, 0.0)
    return np.maximum(np.maximum(rise, fall), 0.0)


def _freedom(model: LossRegression, lam: float, b: Array) -> float:
    """Trace of the matrix that maps outcomes to fitted values, on active columns."""
    penalty = model.penalty(float(lam))
    on = b != 0
    if "Intercept" in model.design.X.names:
        on[list(model.design.X.names).index("Intercept")] = True
    if penalty.groups:
        raise ModelError("effective parameters of a group lasso are not defined here.")
    if not bool((penalty.l2 > 0).any()):
        return float(on.sum())
    at = np.flatnonzero(on)
    H = model.objective.gram(b, on)
    return float(np.trace(np.linalg.solve(H + np.diag(penalty.l2[at]), H)))
