"""The mean loss of a sample as a function of the coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import LossError
from .losses import Composite

__all__ = ["Objective", "Slopes"]

Array = np.ndarray

# Rows of a block: its columns stay in the cache between one product and the next.
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Slopes:
    """The objective and its derivatives at a point.

    Attributes
    ----------
    value : float
    gradient : ndarray, shape (k,)
    hessian : ndarray, shape (k, k), or None
    size : float
        Root mean square of the rows' derivatives in the linear predictor: what a
        gradient is compared with.
    """

    value: float
    gradient: Array
    hessian: Array | None
    size: float


class Objective:
    """Mean loss, with derivatives.

    Parameters
    ----------
    X : Tensor, shape (n, k)
    y : Tensor, shape (n,)
    composite : Composite
    weights, offset : Tensor, shape (n,), optional
    columns : mapping of str to Tensor (n,), optional
        What the loss takes besides prediction and outcome.

    Attributes
    ----------
    scale : ndarray, shape (k,)
        Root mean squares of the columns.
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        composite: Composite,
        *,
        weights: Tensor | None = None,
        offset: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.X, self.y, self.composite = X, y, composite
        self.weights, self.offset, self.columns = weights, offset, dict(columns or {})
        self._moments: dict[int | None, tuple[Array, Array, float, Array]] = {}
        self.total = float(len(y) if weights is None else weights.sum())
        squares = self._sum_squares()
        self.scale = np.where(squares > 0, np.sqrt(squares / self.total), 1.0)

    @property
    def k(self) -> int:
        """Number of coefficients."""
        return self.X.shape[1]

    def with_loss(self, composite: Composite) -> Objective:
        """Return the same sample with another loss."""
        return Objective(
            self.X, self.y, composite, weights=self.weights, offset=self.offset,
            columns=self.columns,
        )  # fmt: skip

    def subset(self, rows: Array) -> Objective:
        """Return some of the rows, in the order given, repeats allowed."""
        at = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.X.device)

        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[at]

        return Objective(
            self.X[at], self.y[at], self.composite, weights=part(self.weights),
            offset=part(self.offset),
            columns={n: v[at] for n, v in self.columns.items()},
        )  # fmt: skip

    def repeated(self, counts: Array) -> Objective:
        """Return the sample with each row so many times: by weights, where it can be.

        A loss of the whole sample that takes no weights gets the rows themselves.
        """
        loss = self.composite.loss
        if not (self._by_rows or loss.weighted):
            return self.subset(np.repeat(np.arange(len(counts)), counts))
        at = np.flatnonzero(counts)
        part = self.subset(at)
        w = torch.from_numpy(counts[at].astype(np.float64)).to(self.X)
        w = w if part.weights is None else w * part.weights
        return Objective(
            part.X, part.y, part.composite, weights=w, offset=part.offset,
            columns=part.columns,
        )  # fmt: skip

    def eta(self, b: Array) -> Tensor:
        """Linear predictors; shape (n,)."""
        return self._eta(b, slice(None))

    def value(self, b: Array) -> float:
        """Mean loss; infinite where it is not a number."""
        found = self._whole(b) if not self._by_rows else self._mean(b)
        return found if np.isfinite(found) else np.inf

    def at(self, b: Array, order: int = 2) -> Slopes:
        """Value, gradient and (with order 2) Hessian.

        Raises
        ------
        LossError
            If the loss or its derivatives are not finite.
        """
        found = self._at_rows(b, order) if self._by_rows else self._at_whole(b, order)
        finite = np.isfinite(found.value) and np.isfinite(found.gradient).all()
        if finite and found.hessian is not None:
            finite = np.isfinite(found.hessian).all()
        if not finite:
            raise LossError(
                f"the loss {self.composite.loss.name}, or its derivatives, became NaN "
                "or infinite during the fit: bound what it takes the logarithm or root "
                "of (.clamp(1e-12)), or start elsewhere (start=)."
            )
        return found

    def scores(self, b: Array) -> Tensor:
        """Gradient of each row's loss in the predictor, times its weight; (n,)."""
        if self._by_rows:
            first = self.composite.rows(self.eta(b), self.y, self.columns).first
            return first if self.weights is None else first * self.weights
        return self.slopes_of(self.eta(b)) * self.total

    def slopes_of(self, eta: Tensor) -> Tensor:
        """Gradient of a loss of the sample in the linear predictors; shape (n,)."""
        return self._slope(eta.detach().requires_grad_(), False).detach()

    def gram(self, b: Array, at: Array) -> Array:
        """Hessian in some coefficients of a loss of rows; `at` (k,) says which."""
        columns = np.flatnonzero(at)
        every = len(columns) == self.k
        total = np.zeros((len(columns), len(columns)))
        for part in self._blocks():
            extra = {n: v[part] for n, v in self.columns.items()}
            rows = self.composite.rows(self._eta(b, part), self.y[part], extra)
            w = None if self.weights is None else self.weights[part]
            second = rows.second if w is None else rows.second * w
            X = self.X[part] if every else self.X[part][:, torch.from_numpy(columns)]
            total += _gram(X, second)
        return total / self.total

    def moments(
        self, low: Array, high: Array
    ) -> tuple[Array, Array, float, Array, int | None]:
        """Cross-products of a squared loss, of columns about their means.

        With a column of ones that has no bounds the others are centred, which keeps
        the digits that squares of large means would cost.

        Returns
        -------
        H : ndarray, shape (k, k)
            Hessian.
        r : ndarray, shape (k,)
            Minus the gradient at zero.
        yy : float
            Mean loss at zero.
        centre : ndarray, shape (k,)
            What was taken from each column.
        at : int or None
            The column of ones.
        """
        X, y = self.X.cpu().numpy(), self.y.cpu().numpy()
        ones = [j for j in range(self.k) if X[0, j] == 1 and (X[:, j] == 1).all()]
        free = [j for j in ones if np.isinf(low[j]) and np.isinf(high[j])]
        at = free[0] if free else None
        if at not in self._moments:
            self._moments[at] = self._moments_about(X, y, at)
        return *self._moments[at], at

    def _moments_about(
        self, X: Array, y: Array, at: int | None
    ) -> tuple[Array, Array, float, Array]:
        if self.offset is not None:
            y = y - self.offset.cpu().numpy()
        w = None if self.weights is None else self.weights.cpu().numpy()
        centre = np.zeros(self.k)
        if at is not None:
            centre = (X.sum(0) if w is None else w @ X) / self.total
            centre[at] = 0.0
        H, r, yy = np.zeros((self.k, self.k)), np.zeros(self.k), 0.0
        for part in self._blocks():
            rows, right = X[part] - centre, y[part]
            if w is not None:
                root = np.sqrt(w[part])
                rows, right = rows * root[:, None], right * root
            H += rows.T @ rows
            r += right @ rows
            yy += float(right @ right)
        n = self.total
        return 2 * H / n, 2 * r / n, yy / n, centre

    # -- a mean of rows ----------------------------------------------------------------

    @property
    def _by_rows(self) -> bool:
        if self.composite.closed is not None:
            return True
        return self.composite.loss.decomposable and self.composite.loss.by_rows

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.y), _BLOCK):
            yield slice(start, start + _BLOCK)

    def _eta(self, b: Array, part: slice) -> Tensor:
        X = self.X[part]
        if X.device.type == "cpu":
            eta = torch.from_numpy(X.numpy() @ b)
        else:
            eta = X @ torch.as_tensor(b).to(X)
        return eta if self.offset is None else eta + self.offset[part]

    def _sum_squares(self) -> Array:
        total = torch.zeros(self.X.shape[1], dtype=torch.float64, device=self.X.device)
        for part in self._blocks():
            squares = self.X[part] ** 2
            if self.weights is not None:
                squares = squares * self.weights[part, None]
            total += squares.sum(0)
        return total.cpu().numpy()

    def _mean(self, b: Array) -> float:
        rows = self.composite.rows(self.eta(b), self.y, self.columns, order=0)
        if self.weights is not None:
            rows = rows * self.weights
        return float(rows.sum()) / self.total

    def _at_rows(self, b: Array, order: int) -> Slopes:
        k = self.k
        value, size = 0.0, 0.0
        gradient, hessian = np.zeros(k), np.zeros((k, k)) if order > 1 else None
        for part in self._blocks():
            columns = {n: v[part] for n, v in self.columns.items()}
            rows = self.composite.rows(self._eta(b, part), self.y[part], columns)
            w = None if self.weights is None else self.weights[part]
            first = rows.first if w is None else rows.first * w
            value += float(rows.value.sum() if w is None else (rows.value * w).sum())
            size += float((first * rows.first).sum())
            gradient += _left(self.X[part], first)
            if hessian is not None:
                hessian += _gram(
                    self.X[part], rows.second if w is None else rows.second * w
                )
        n = self.total
        return Slopes(
            value / n, gradient / n, None if hessian is None else hessian / n,
            float(np.sqrt(max(size, 0.0) / n)),
        )  # fmt: skip

    # -- a number of the whole sample --------------------------------------------------

    def _whole(self, b: Array) -> float:
        with torch.no_grad():
            return float(
                self.composite.whole(self.eta(b), self.y, self.columns, self.weights)
            )

    def _slope(self, eta: Tensor, again: bool) -> Tensor:
        with torch.enable_grad():
            value = self.composite.whole(eta, self.y, self.columns, self.weights)
            return torch.autograd.grad(value, eta, create_graph=again)[0]

    def _at_whole(self, b: Array, order: int) -> Slopes:
        eta = self.eta(b).detach().requires_grad_()
        value = self._whole(b)
        slope = self._slope(eta, order > 1)
        flat = slope.detach()
        gradient = _left(self.X, flat)
        size = float((flat**2).sum().sqrt()) * self.total**0.5
        hessian = self._hessian(slope, eta) if order > 1 else None
        return Slopes(value, gradient, hessian, size)

    def _hessian(self, slope: Tensor, eta: Tensor) -> Array:
        """Products of the Hessian in the predictors with every column."""

        def product(v: Tensor) -> Tensor:
            found = torch.autograd.grad(
                slope, eta, v, retain_graph=True, allow_unused=True
            )[0]
            return torch.zeros_like(v) if found is None else found

        if not slope.requires_grad:
            return np.zeros((self.k, self.k))
        if self.composite.loss.decomposable:  # diagonal: one product says it all
            return _gram(self.X, product(torch.ones_like(eta)))
        columns = self.X.T.contiguous()
        found = np.stack([_left(self.X, product(column)) for column in columns])
        return (found + found.T) / 2


def _left(X: Tensor, v: Tensor) -> Array:
    """Return ``X' v``."""
    if X.device.type == "cpu":
        return v.numpy() @ X.numpy()
    return (v @ X).cpu().numpy()


def _gram(X: Tensor, w: Tensor) -> Array:
    """Return ``X' diag(w) X``; by a symmetric product where no weight is negative."""
    if X.device.type != "cpu":
        return ((X * w[:, None]).T @ X).cpu().numpy()
    rows, weights = X.numpy(), w.numpy()
    if (weights >= 0).all():
        half = rows * np.sqrt(weights)[:, None]
        return half.T @ half
    return (rows * weights[:, None]).T @ rows
