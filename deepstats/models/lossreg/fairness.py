"""Fair losses: a loss of predictions, and how unlike the error rates of groups are.

Rates at a threshold are steps of the predictions, which have no gradient. Here a
prediction p is flagged to the degree ``sigmoid((p - threshold) / width)``, and the
largest of several numbers x is ``s log(mean(exp(x / s)))`` with ``s = width / 5``. Both
become exact as the width shrinks; a fit goes through wider ones first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from ...errors import GradientWarning, LossError, caution
from .losses import Loss
from .rates import MEASURES, check_threshold, nij_score

__all__ = ["FairLoss", "Surrogate", "capped", "fair", "nij", "nij_score"]

Caps = float | Mapping[Any, float]

#: Width of a maximum over that of a flag: rates are averages of flags, and smoother.
_MAXIMUM = 0.2
#: Widths of the stages of a fit, over the last.
_STAGES = (5.0, 2.5)
#: Below, next to no row is near enough the threshold to have a gradient.
_SHARP = 1e-3
_BASES = ("brier", "logloss")
_FORMS = ("additive", "multiplicative")
_CAPPED = ("fpr", "fnr", "flagged")


@dataclass(frozen=True)
class Surrogate:
    """A fair loss of a sample as a smooth function of its predictions.

    Attributes
    ----------
    name : str
        Of the loss, for messages.
    column : str
        Holds the groups.
    threshold, width : float
    measure : str
        One of `MEASURES`; with caps the rate that is capped.
    base : {"brier", "logloss"}
    form : {"additive", "multiplicative"}
    weight : float
    caps : float, mapping or None
        Largest rate of all groups, or of each.
    levels : tuple or None
        What the codes of the groups stand for; None where the column holds numbers.
    """

    name: str
    column: str
    threshold: float
    width: float
    measure: str = "fpr"
    base: str = "brier"
    form: str = "additive"
    weight: float = 1.0
    caps: Caps | None = None
    levels: tuple | None = None

    def __call__(
        self,
        prediction: Tensor,
        y: Tensor,
        /,
        weights: Tensor | None = None,
        **columns: Tensor,
    ) -> Tensor:
        """Return the loss of the sample; a number.

        Raises
        ------
        LossError
            For outcomes other than 0 and 1, one group, or groups without the outcome a
            rate is of.
        """
        if not bool(((y == 0) | (y == 1)).all()):
            raise LossError(
                f"the loss {self.name} counts rates of error, and needs outcomes 0 and "
                "1 only."
            )
        w = torch.ones_like(y) if weights is None else weights
        members, levels = self._members(columns[self.column], y)
        cost = (w * _COSTS[self.base](prediction, y)).sum() / w.sum()
        flags = torch.sigmoid((prediction - self.threshold) / self.width)
        rows = members * w[:, None]
        if self.caps is not None:
            rate = self._rate(self.measure, flags, y, rows, levels)
            over = rate - self._limits(levels).to(rate)
            return (
                cost
                + self.weight
                * _MAXIMUM
                * self.width
                * softplus(over / (_MAXIMUM * self.width)).sum()
            )
        gap = self._gap(flags, y, rows, levels)
        if self.form == "additive":
            return cost + self.weight * gap
        return 1 - (1 - cost) * (1 - gap) ** self.weight

    def _members(self, group: Tensor, y: Tensor) -> tuple[Tensor, tuple]:
        """Whether each row is of each group, (n, groups), and the groups' names."""
        if self.levels is None:
            values, codes = group.unique(return_inverse=True)
            levels = tuple(values.tolist())
        else:
            codes, levels = group, self.levels
        if len(levels) < 2:
            raise LossError(
                f"the loss {self.name} compares groups, and the column {self.column} "
                f"has only {levels}."
            )
        return one_hot(codes, len(levels)).to(y), levels

    def _rate(
        self, rate: str, flags: Tensor, y: Tensor, rows: Tensor, levels: tuple
    ) -> Tensor:
        """Return a smooth rate of each group; shape (groups,)."""
        kept, outcome = _OF[rate](y)
        part = rows * kept[:, None]
        total = part.sum(0)
        if not bool((total > 0).all()):
            gone = [n for n, t in zip(levels, total.tolist(), strict=True) if not t > 0]
            raise LossError(
                f"the groups {gone} of {self.column} have no rows{outcome}, so that "
                f"the loss {self.name} has no rate of theirs; merge or leave out "
                "groups."
            )
        found = flags @ part / total
        return 1 - found if rate == "fnr" else found

    def _gap(self, flags: Tensor, y: Tensor, rows: Tensor, levels: tuple) -> Tensor:
        """Return the smooth largest difference between groups in any rate."""
        scale = _MAXIMUM * self.width
        spans = []
        for rate in MEASURES[self.measure]:
            rates = self._rate(rate, flags, y, rows, levels)
            spans.append(_largest(rates, scale) + _largest(-rates, scale))
        return _largest(torch.stack(spans), scale) if len(spans) > 1 else spans[0]

    def _limits(self, levels: tuple) -> Tensor:
        """Caps in the order of the groups."""
        caps = self.caps
        if not isinstance(caps, Mapping):
            return torch.full((len(levels),), float(caps), dtype=torch.float64)
        if set(caps) != set(levels):
            raise LossError(
                f"cap has the groups {sorted(caps, key=str)}; the column "
                f"{self.column} has {list(levels)}. Give one cap for each."
            )
        return torch.tensor([float(caps[n]) for n in levels], dtype=torch.float64)


def _largest(x: Tensor, scale: float) -> Tensor:
    """Return a smooth maximum, exact where all are equal, never above the largest."""
    return scale * (torch.logsumexp(x / scale, 0) - math.log(len(x)))


def _squared(p: Tensor, y: Tensor) -> Tensor:
    return (p - y) ** 2


def _log_loss(p: Tensor, y: Tensor) -> Tensor:
    p = p.clamp(1e-15, 1 - 1e-15)
    return -(y * p.log() + (1 - y) * (1 - p).log())


_COSTS = {"brier": _squared, "logloss": _log_loss}


def _negatives(y: Tensor) -> tuple[Tensor, str]:
    return 1 - y, " with outcome 0"


def _positives(y: Tensor) -> tuple[Tensor, str]:
    return y, " with outcome 1"


def _everyone(y: Tensor) -> tuple[Tensor, str]:
    return torch.ones_like(y), ""


_OF = {
    "fpr": _negatives, "tpr": _positives, "fnr": _positives, "flagged": _everyone,
}  # fmt: skip


@dataclass(frozen=True)
class FairLoss(Loss):
    """A loss with a `Surrogate`; `fair`, `nij` and `capped` make them."""

    surrogate: Surrogate = field(kw_only=True)

    @property
    def stages(self) -> tuple[Loss, ...]:
        """Return the same with wider surrogates, whose minimum is easier to find."""
        wider = []
        for times in _STAGES:
            width = min(times * self.surrogate.width, 1.0)
            name = f"{self.name}, width {width:g}"
            wider.append(_of(replace(self.surrogate, name=name, width=width)))
        return tuple(wider)

    def knowing(self, levels: Mapping[str, tuple]) -> Loss:
        """Return the loss, told what the codes of its groups stand for."""
        known = levels.get(self.surrogate.column)
        told = replace(self.surrogate, levels=known)
        return replace(self, surrogate=told, function=told)


def _of(surrogate: Surrogate) -> FairLoss:
    return FairLoss(
        surrogate.name, surrogate, "sigmoid", columns=(surrogate.column,),
        decomposable=False, outcomes="unit", by_rows=False, weighted=True,
        surrogate=surrogate,
    )  # fmt: skip


def fair(
    group: str,
    threshold: float = 0.5,
    *,
    measure: str = "fpr",
    weight: float = 1.0,
    base: str = "brier",
    form: str = "additive",
    width: float = 0.02,
) -> FairLoss:
    """Loss of predictions, and of the largest difference of a rate between groups.

    Additive: ``base + weight gap``; multiplicative: ``1 - (1 - base)(1 - gap)^weight``.

    Parameters
    ----------
    group : str
        Column of the data.
    threshold : float, default 0.5
        Rows whose prediction is at least that are flagged.
    measure : {"fpr", "tpr", "odds", "parity"}, default "fpr"
        What the gap is of: flagged rows among those with outcome 0, or 1 (equal
        opportunity), the larger gap of the two (equalised odds), or flagged rows
        among all (demographic parity).
    weight : float, default 1
    base : {"brier", "logloss"}, default "brier"
    form : {"additive", "multiplicative"}, default "additive"
    width : float, default 0.02
        Of the surrogate, in units of the prediction. A fit goes through five times and
        2.5 times the width first, unless told ``stages=()``.

    Returns
    -------
    FairLoss
        For ``lossreg(..., loss=)``; the link is the sigmoid.

    Raises
    ------
    ValueError
        For options that are not known, or out of range.

    Warns
    -----
    GradientWarning
        If the width is so small that next to no row has a gradient.

    Examples
    --------
    >>> fair("race", 0.25, measure="odds").name
    'odds(0.25)'
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is not known: {sorted(MEASURES)}.")
    if form not in _FORMS:
        raise ValueError(f"form={form!r} is not known: use one of {_FORMS}.")
    if form == "multiplicative" and base != "brier":
        raise ValueError(
            f"form='multiplicative' needs a loss below 1, and base={base!r} is not; "
            "use base='brier' or form='additive'."
        )
    name = f"{measure}({threshold:g})"
    return _checked(
        Surrogate(name, group, threshold, width, measure, base, form, weight)
    )


def nij(group: str, threshold: float = 0.5, *, width: float = 0.02) -> FairLoss:
    """One less the NIJ score ``(1 - BS)(1 - |FPR_a - FPR_b|)``, see `nij_score`.

    Parameters
    ----------
    group, threshold, width
        See `fair`, of which this is the multiplicative form.

    Returns
    -------
    FairLoss

    Examples
    --------
    >>> import deepstats as ds
    >>> loss = ds.fairness.nij("race", threshold=0.25)
    >>> loss.name, loss.columns, [s.surrogate.width for s in loss.stages]
    ('nij(0.25)', ('race',), [0.1, 0.05])
    """
    name = f"nij({threshold:g})"
    return _checked(Surrogate(name, group, threshold, width, form="multiplicative"))


def capped(
    group: str,
    cap: Caps,
    threshold: float = 0.5,
    *,
    rate: str = "fpr",
    weight: float = 1.0,
    base: str = "brier",
    width: float = 0.02,
) -> FairLoss:
    """Loss of predictions, and of what the rate of each group is above a cap.

    ``base + weight sum(max(rate - cap, 0))``: a group is never made worse off for the
    sake of another, as a difference of rates may do.

    Parameters
    ----------
    group, threshold, base, width
        See `fair`.
    cap : float or mapping
        Largest rate, or that of each group by its level.
    rate : {"fpr", "fnr", "flagged"}, default "fpr"
    weight : float, default 1
        The penalty is exact: from some weight on the surrogate's rates are at most the
        caps, plus what the width leaves.

    Returns
    -------
    FairLoss
    """
    if rate not in _CAPPED:
        raise ValueError(f"rate={rate!r} is not known: use one of {_CAPPED}.")
    for value in cap.values() if isinstance(cap, Mapping) else (cap,):
        if not 0 <= value <= 1:
            raise ValueError(f"a cap is a rate between 0 and 1, not {value!r}.")
    caps = dict(cap) if isinstance(cap, Mapping) else float(cap)
    name = f"capped {rate}({threshold:g})"
    return _checked(
        Surrogate(name, group, threshold, width, rate, base, weight=weight, caps=caps)
    )


def _checked(surrogate: Surrogate) -> FairLoss:
    """Check options that all fair losses have."""
    check_threshold(surrogate.threshold)
    if not isinstance(surrogate.column, str) or surrogate.column == "weights":
        raise ValueError(
            f"group={surrogate.column!r} must be the name of a column of the data "
            "(other than 'weights')."
        )
    if surrogate.base not in _BASES:
        raise ValueError(f"base={surrogate.base!r} is not known: use one of {_BASES}.")
    if not (math.isfinite(surrogate.weight) and surrogate.weight >= 0):
        raise ValueError(f"weight={surrogate.weight!r} must not be negative.")
    if not 0 < surrogate.width <= 1:
        raise ValueError(f"width={surrogate.width!r} must be in (0, 1].")
    if surrogate.width < _SHARP:
        caution(
            f"width={surrogate.width:g} is so small that next to no row is near enough "
            "the threshold to have a gradient; use 0.01 to 0.05.",
            GradientWarning,
        )
    return _of(surrogate)
