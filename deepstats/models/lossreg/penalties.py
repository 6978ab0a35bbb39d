"""Penalties on coefficients, as numbers for each coefficient that solvers read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import LossError, ModelError

__all__ = ["PENALTIES", "Group", "Penalty", "make_penalty", "shares"]

Array = np.ndarray

#: Share of the l1 part in each penalty that elastic nets know.
PENALTIES = ("ridge", "lasso", "elasticnet", "group", "integer")


@dataclass(frozen=True, eq=False)
class Group:
    """Coefficients that a group lasso keeps or drops together.

    Attributes
    ----------
    name : str
    at : ndarray of int
        Their positions.
    weight : float
        The cost is ``weight * norm(scale * b[at])``.
    scale : ndarray, shape (len(at),)
    """

    name: str
    at: Array
    weight: float
    scale: Array


@dataclass(frozen=True, eq=False)
class Penalty:
    """What coefficients cost: ``sum(l1 |b - centre|) + sum(l2 b**2) / 2 + ...``.

    Attributes
    ----------
    l1, l2, centre : ndarray, shape (k,)
    groups : tuple of Group
        Of a group lasso; else empty.
    step : ndarray, shape (k,)
        For the integer penalty ``l1 |b - step * round(b / step)|``; zero elsewhere.
    function : callable or None
        Further cost: a torch function of the coefficients, to one number.
    text : str
        As printed.
    """

    l1: Array
    l2: Array
    centre: Array
    groups: tuple[Group, ...] = ()
    step: Array = field(default_factory=lambda: np.zeros(0))
    function: Callable[[Tensor], Tensor] | None = None
    text: str = "none"

    @classmethod
    def none(cls, k: int) -> Penalty:
        """Return no penalty on `k` coefficients."""
        zero = np.zeros(k)
        return cls(zero, zero, zero, step=zero)

    @property
    def integer(self) -> bool:
        """Whether coefficients are drawn to multiples of a step."""
        return bool((self.step > 0).any())

    @property
    def smooth(self) -> bool:
        """Whether it has a gradient everywhere."""
        return not self.groups and not bool((self.l1 > 0).any())

    @property
    def empty(self) -> bool:
        """Whether it costs nothing at all."""
        return self.smooth and self.function is None and not bool((self.l2 > 0).any())

    def centred(self, b: Array) -> Penalty:
        """Return the convex penalty above this one that touches it at `b`."""
        if not self.integer:
            return self
        steps = np.where(self.step > 0, self.step, 1.0)
        near = np.where(self.step > 0, self.step * np.round(b / steps), self.centre)
        return replace(self, centre=near, step=np.zeros_like(self.step))

    def value(self, b: Array) -> float:
        """Cost of coefficients."""
        return self.smooth_value(b) + self.rough_value(b)

    def rough_value(self, b: Array) -> float:
        """Cost of the parts without a gradient."""
        near = self.centred(b)
        total = float(near.l1 @ np.abs(b - near.centre))
        return total + sum(
            g.weight * float(np.linalg.norm(g.scale * b[g.at])) for g in self.groups
        )

    def smooth_value(self, b: Array) -> float:
        """Cost of the parts with a gradient."""
        total = float(self.l2 @ b**2) / 2
        if self.function is not None:
            with torch.no_grad():
                total += float(self._call(torch.from_numpy(b.copy())))
        return total

    def derivatives(self, b: Array) -> tuple[Array, Array]:
        """Gradient (k,) and Hessian (k, k) of the parts that have them."""
        gradient, hessian = self.l2 * b, np.diag(self.l2)
        if self.function is None:
            return gradient, hessian
        x = torch.from_numpy(b.copy()).requires_grad_()
        with torch.enable_grad():
            value = self._call(x)
            if not value.requires_grad:
                raise LossError(
                    "the penalty has no gradient: write it with smooth torch functions "
                    "of the coefficients."
                )
            slope = torch.autograd.grad(value, x, create_graph=True)[0]
            rows = torch.zeros(len(b), len(b), dtype=torch.float64)
            for j in range(len(b)):
                if slope.requires_grad:
                    found = torch.autograd.grad(
                        slope[j], x, retain_graph=True, allow_unused=True
                    )[0]
                    rows[j] = 0.0 if found is None else found
        return gradient + slope.detach().numpy(), hessian + rows.numpy()

    def _call(self, b: Tensor) -> Tensor:
        assert self.function is not None
        value = self.function(b)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise LossError(
                "the penalty must return one number, a tensor of shape (), for the "
                "vector of coefficients."
            )
        if not bool(torch.isfinite(value)):
            raise LossError("the penalty is NaN or infinite at ordinary coefficients.")
        return value


def shares(kind: str, l1_ratio: float) -> tuple[float, float]:
    """Shares of the l1 and the l2 part of an elastic net of this name."""
    if kind == "elasticnet" and not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio must be in [0, 1], not {l1_ratio!r}.")
    share = {"ridge": 0.0, "lasso": 1.0}.get(kind, l1_ratio)
    return share, 1.0 - share


def make_penalty(
    penalty: Any,
    lam: float,
    names: Sequence[str],
    scale: Array,
    *,
    l1_ratio: float = 0.5,
    groups: Mapping[str, Sequence[int]] | None = None,
    factor: Mapping[str, float] | None = None,
    step: float = 1.0,
) -> Penalty:
    """Read the penalty of a call.

    Parameters
    ----------
    penalty : str, callable, Penalty or None
        One of `PENALTIES`, or a torch function of the coefficients to one number,
        which `lam` multiplies.
    lam : float
        Strength.
    names : sequence of str
        Columns of the design; the intercept is not penalised.
    scale : ndarray, shape (k,)
        Coefficients are penalised times this: standard deviations of the columns, or
        ones.
    l1_ratio : float, default 0.5
        Share of the l1 part of an elastic net.
    groups : mapping of str to sequence of int, optional
        Positions of the coefficients of each group of a group lasso.
    factor : mapping of str to float, optional
        Multiplies the penalty of a column; zero leaves it out.
    step : float, default 1
        Of the integer penalty.

    Raises
    ------
    ValueError, ModelError
        For a name, strength or column that is not known or allowed.
    """
    k = len(names)
    if isinstance(penalty, Penalty):
        if len(penalty.l1) != k:
            raise ModelError(
                f"the penalty is of {len(penalty.l1)} coefficients, not {k}."
            )
        return penalty
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be a finite number and not negative, not {lam!r}.")
    none = Penalty.none(k)
    if penalty is None:
        return none
    if callable(penalty):
        name = getattr(penalty, "__name__", "function")
        return replace(
            none, function=_Times(penalty, lam), text=f"{name} (lam = {lam:g})"
        )
    if penalty not in PENALTIES:
        raise ValueError(
            f"penalty={penalty!r} is not known: use one of {PENALTIES}, or a torch "
            "function of the coefficients."
        )
    weight = scale * _factors(names, factor)
    text = f"{penalty} (lam = {lam:g})"
    if penalty == "integer":
        if not step > 0:
            raise ValueError(f"the step must be positive, not {step!r}.")
        on = np.array([n != "Intercept" for n in names]) * _factors(names, factor)
        return replace(none, l1=lam * on, step=np.where(on > 0, step, 0.0), text=text)
    if penalty == "group":
        return replace(none, groups=_groups(groups, weight, lam), text=text)
    first, second = shares(penalty, l1_ratio)
    if penalty == "elasticnet":
        text = f"elastic net (lam = {lam:g}, l1_ratio = {l1_ratio:g})"
    return replace(
        none, l1=lam * first * weight, l2=lam * second * scale * weight, text=text
    )


@dataclass(frozen=True)
class _Times:
    """A function times a number."""

    function: Callable[[Tensor], Tensor]
    factor: float

    def __call__(self, b: Tensor) -> Tensor:
        """Value at coefficients."""
        return self.factor * self.function(b)


def _factors(names: Sequence[str], factor: Mapping[str, float] | None) -> Array:
    out = np.array([0.0 if n == "Intercept" else 1.0 for n in names])
    for name, value in (factor or {}).items():
        if name not in names:
            raise ModelError(
                f"penalty_factor names {name!r}, which is no column; the columns are "
                f"{list(names)}."
            )
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the penalty factor of {name} must not be {value!r}.")
        out[list(names).index(name)] = value
    return out


def _groups(
    groups: Mapping[str, Sequence[int]] | None, weight: Array, lam: float
) -> tuple[Group, ...]:
    """Weight each group by the root of its size, as Yuan and Lin (2006)."""
    out = []
    for name, at in (groups or {}).items():
        kept = np.array([j for j in at if weight[j] > 0], dtype=int)
        if len(kept):
            out.append(Group(name, kept, lam * math.sqrt(len(kept)), weight[kept]))
    if not out:
        raise ModelError("a group lasso needs at least one term to penalise.")
    return tuple(out)
