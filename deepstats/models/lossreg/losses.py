"""Losses and final links: what a prediction costs, and its slopes in the predictor."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.overrides import TorchFunctionMode

from ...errors import GradientWarning, LossError, ModelError, caution

__all__ = [
    "LINKS",
    "LOSSES",
    "Composite",
    "FinalLink",
    "Loss",
    "RowDerivatives",
    "check_loss_function",
    "get_link",
    "get_loss",
]

Columns = Mapping[str, Tensor]


@dataclass(frozen=True)
class RowDerivatives:
    """A loss and its derivatives in the linear predictor, row by row.

    Attributes
    ----------
    value, first, second : Tensor, shape (rows,)
        `second` is None where it was not asked for.
    """

    value: Tensor
    first: Tensor
    second: Tensor | None


ClosedForm = Callable[[Tensor, Tensor], RowDerivatives]


@dataclass(frozen=True)
class FinalLink:
    """From the linear predictor to the prediction.

    Attributes
    ----------
    name : str
    function : callable
        Tensor to Tensor, element by element.
    low, high : float
        Range of the predictions.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Loss:
    """What predictions cost.

    Attributes
    ----------
    name : str
        As `get_loss` reads it, with its option: ``"quantile(0.9)"``.
    function : callable
        ``function(prediction, y, **columns)``: a tensor of one value for each row, or
        one number for the whole sample.
    link : str
        Final link by default.
    columns : tuple of str
        Further columns of the data the function takes, by keyword.
    smooth : bool
        Has a continuous gradient.
    decomposable : bool
        The loss of a sample is the (weighted) mean of its rows' losses. Else
        `function` returns one number that may depend on all rows together.
    convex : tuple of str
        Final links with which it is convex in the linear predictor.
    slopes : (float, float) or None
        Of a piecewise linear loss of ``y - prediction``: above and below zero.
    outcomes : {"any", "unit", "counts"}
        What the outcome may be: any number, in [0, 1], not negative.
    closed : mapping of str to callable
        Derivatives in closed form, by final link: ``(eta, y) -> RowDerivatives``.
    by_rows : bool
        `function` returns one value for each row (and not, as nn.BCELoss, their mean).
    weighted : bool
        A loss that is not decomposable and takes ``weights=``, one for each row,
        of mean one.
    """

    name: str
    function: Callable[..., Tensor]
    link: str = "identity"
    columns: tuple[str, ...] = ()
    smooth: bool = True
    decomposable: bool = True
    convex: tuple[str, ...] = ()
    slopes: tuple[float, float] | None = None
    outcomes: str = "any"
    closed: Mapping[str, ClosedForm] = field(default_factory=dict)
    by_rows: bool = True
    weighted: bool = False

    @property
    def stages(self) -> tuple[Loss, ...]:
        """Losses to minimise first, unless a fit is told others."""
        return ()

    def knowing(self, levels: Mapping[str, tuple]) -> Loss:
        """Return the loss, told what the codes of its columns stand for."""
        del levels
        return self


# -- final links -----------------------------------------------------------------------


def _identity(eta: Tensor) -> Tensor:
    return eta


def _clamp(eta: Tensor) -> Tensor:
    return eta.clamp(0.0, 1.0)


LINKS: Mapping[str, FinalLink] = {
    "identity": FinalLink("identity", _identity),
    "sigmoid": FinalLink("sigmoid", torch.sigmoid, 0.0, 1.0),
    "clamp": FinalLink("clamp", _clamp, 0.0, 1.0),
    "exp": FinalLink("exp", torch.exp, 0.0),
}
_LINK_ALIASES = {"logit": "sigmoid", "log": "exp", "ident": "identity"}


def get_link(link: Any) -> FinalLink:
    """Return a final link by name, or make one of a function of a tensor.

    Raises
    ------
    ValueError
        For a name that is not known.
    """
    if isinstance(link, FinalLink):
        return link
    if callable(link):
        return FinalLink(getattr(link, "__name__", "function"), link)
    found = LINKS.get(_LINK_ALIASES.get(str(link), str(link)))
    if found is None:
        raise ValueError(
            f"link={link!r} is not known: use one of {sorted(LINKS)}, or a torch "
            "function of the linear predictor."
        )
    return found


# -- losses ----------------------------------------------------------------------------


def _log_loss(p: Tensor, y: Tensor) -> Tensor:
    return -(torch.xlogy(y, p) + torch.xlogy(1 - y, 1 - p))


def _log_loss_sigmoid(eta: Tensor, y: Tensor) -> RowDerivatives:
    p = torch.sigmoid(eta)
    return RowDerivatives(-logsigmoid(eta) + (1 - y) * eta, p - y, p * (1 - p))


def _squared(p: Tensor, y: Tensor) -> Tensor:
    return (y - p) ** 2


def _squared_identity(eta: Tensor, y: Tensor) -> RowDerivatives:
    gap = eta - y
    return RowDerivatives(gap**2, 2 * gap, torch.full_like(gap, 2.0))


def _brier_sigmoid(eta: Tensor, y: Tensor) -> RowDerivatives:
    p = torch.sigmoid(eta)
    gap, slope = p - y, p * (1 - p)
    first = 2 * gap * slope
    return RowDerivatives(gap**2, first, 2 * slope**2 + first * (1 - 2 * p))


def _poisson(p: Tensor, y: Tensor) -> Tensor:
    return p - torch.xlogy(y, p)


def _poisson_exp(eta: Tensor, y: Tensor) -> RowDerivatives:
    mean = eta.exp()
    return RowDerivatives(mean - y * eta, mean - y, mean)


def _pinball(p: Tensor, y: Tensor, *, above: float, below: float) -> Tensor:
    gap = y - p
    return torch.where(gap > 0, above * gap, -below * gap)


def _pinball_identity(
    eta: Tensor, y: Tensor, *, above: float, below: float
) -> RowDerivatives:
    gap = y - eta
    over = gap > 0
    value = torch.where(over, above * gap, -below * gap)
    # At zero, where the gradient is not defined, the middle of its range.
    first = torch.where(over, -above, below)
    first = torch.where(gap == 0, (below - above) / 2, first).to(gap)
    return RowDerivatives(value, first, torch.zeros_like(gap))


def _huber(p: Tensor, y: Tensor, *, delta: float) -> Tensor:
    gap = (y - p).abs()
    return torch.where(gap <= delta, gap**2 / 2, delta * (gap - delta / 2))


def _huber_identity(eta: Tensor, y: Tensor, *, delta: float) -> RowDerivatives:
    gap = eta - y
    inside = gap.abs() <= delta
    return RowDerivatives(
        _huber(eta, y, delta=delta), gap.clamp(-delta, delta), inside.to(gap)
    )


def _focal(p: Tensor, y: Tensor, *, gamma: float) -> Tensor:
    hit = -((1 - p) ** gamma) * torch.xlogy(y, p)
    return hit - p**gamma * torch.xlogy(1 - y, 1 - p)


def _focal_sigmoid(eta: Tensor, y: Tensor, *, gamma: float) -> RowDerivatives:
    def value(e: Tensor) -> Tensor:
        low, high = logsigmoid(e), logsigmoid(-e)
        return -y * (gamma * high).exp() * low - (1 - y) * (gamma * low).exp() * high

    return differentiate(value, eta)


def _log_loss_of() -> Loss:
    return Loss(
        "logloss", _log_loss, "sigmoid", convex=("sigmoid",), outcomes="unit",
        closed={"sigmoid": _log_loss_sigmoid},
    )  # fmt: skip


def _brier_of() -> Loss:
    return Loss(
        "brier", _squared, "sigmoid", convex=("identity",), outcomes="unit",
        closed={"identity": _squared_identity, "sigmoid": _brier_sigmoid},
    )  # fmt: skip


def _squared_of() -> Loss:
    closed = {"identity": _squared_identity}
    return Loss("squared", _squared, convex=("identity",), closed=closed)


def _poisson_of() -> Loss:
    return Loss(
        "poisson", _poisson, "exp", convex=("exp",), outcomes="counts",
        closed={"exp": _poisson_exp},
    )  # fmt: skip


def _piecewise(name: str, above: float, below: float) -> Loss:
    options = {"above": above, "below": below}
    closed = {"identity": partial(_pinball_identity, **options)}
    return Loss(
        name, partial(_pinball, **options), smooth=False, convex=("identity",),
        slopes=(above, below), closed=closed,
    )  # fmt: skip


def _absolute_of() -> Loss:
    return _piecewise("absolute", 1.0, 1.0)


def _quantile_of(q: float = 0.5) -> Loss:
    if not 0 < q < 1:
        raise ValueError(f"the quantile must be strictly between 0 and 1, not {q:g}.")
    return _piecewise(f"quantile({q:g})", q, 1.0 - q)


def _huber_of(delta: float = 1.345) -> Loss:
    if not delta > 0:
        raise ValueError(f"Huber's delta must be positive, not {delta:g}.")
    return Loss(
        f"huber({delta:g})", partial(_huber, delta=delta), convex=("identity",),
        closed={"identity": partial(_huber_identity, delta=delta)},
    )  # fmt: skip


def _focal_of(gamma: float = 2.0) -> Loss:
    if not gamma >= 0:
        raise ValueError(f"the focusing exponent must not be negative: {gamma:g}.")
    return Loss(
        f"focal({gamma:g})", partial(_focal, gamma=gamma), "sigmoid", outcomes="unit",
        closed={"sigmoid": partial(_focal_sigmoid, gamma=gamma)},
    )  # fmt: skip


#: Makers of losses by name; some take a number: ``"quantile(0.9)"``.
LOSSES: Mapping[str, Callable[..., Loss]] = {
    "logloss": _log_loss_of,
    "brier": _brier_of,
    "poisson": _poisson_of,
    "squared": _squared_of,
    "absolute": _absolute_of,
    "huber": _huber_of,
    "quantile": _quantile_of,
    "focal": _focal_of,
}
_LOSS_ALIASES = {
    "logit": "logloss", "bce": "logloss", "mse": "squared", "mae": "absolute",
    "median": "absolute",
}  # fmt: skip


def get_loss(loss: Any, columns: Mapping[str, str] | None = None) -> Loss:
    """Return a loss by name, or make one of a torch function.

    Parameters
    ----------
    loss : str, callable or Loss
        ``"logloss"``, ``"brier"``, ``"poisson"``, ``"squared"``, ``"absolute"``,
        ``"huber(1.345)"``, ``"quantile(0.9)"``, ``"focal(2)"``; or a function
        ``f(prediction, y, **columns)`` of tensors. Arguments after the second without
        a default are columns of the data of that name, or of the name that `columns`
        gives.
    columns : mapping of str to str, optional
        Columns of the data by the argument of the function they are given as.

    Raises
    ------
    ValueError
        For a name that is not known, or an option out of range.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return _from_function(loss, tuple(columns or ()))
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\(\s*([^()]+?)\s*\))?\s*", str(loss))
    name = found.group(1).lower().replace("-", "").replace("_", "") if found else ""
    maker = LOSSES.get(_LOSS_ALIASES.get(name, name))
    if found is None or maker is None:
        raise ValueError(
            f"loss={loss!r} is not known: use one of {sorted(LOSSES)} (with an option "
            "as in 'quantile(0.9)'), or a torch function of (prediction, y)."
        )
    if found.group(2) is None:
        return maker()
    if not inspect.signature(maker).parameters:
        raise ValueError(f"loss={loss!r}: {name} takes no option.")
    try:
        option = float(found.group(2))
    except ValueError:
        raise ValueError(
            f"loss={loss!r}: {found.group(2)!r} is not a number."
        ) from None
    return maker(option)


def _from_function(function: Callable[..., Tensor], given: tuple[str, ...]) -> Loss:
    """Read the columns a function asks for off its signature."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):
        parameters = []
    kinds = inspect.Parameter
    named = [p for p in parameters if p.kind not in (kinds.VAR_KEYWORD,)]
    any_name = len(named) < len(parameters)
    needed = [p.name for p in named if p.default is kinds.empty and p.name != "weights"]
    known = {p.name for p in named}
    if not any_name and (unknown := set(given) - known):
        raise ModelError(
            f"the loss {name} has no argument {sorted(unknown)}; it takes "
            f"{sorted(known)} after prediction and outcome."
        )
    columns = tuple(dict.fromkeys((*needed, *given)))
    return Loss(name, function, "identity", columns, weighted="weights" in known)


# -- a loss after a link ---------------------------------------------------------------


def differentiate(function: Callable[[Tensor], Tensor], eta: Tensor) -> RowDerivatives:
    """Differentiate an element-wise function twice by autograd."""
    eta = eta.detach().requires_grad_()
    with torch.enable_grad():
        value = function(eta)
        first = torch.autograd.grad(value.sum(), eta, create_graph=True)[0]
        second = torch.zeros_like(eta)
        if first.requires_grad:
            found = torch.autograd.grad(first.sum(), eta, allow_unused=True)[0]
            second = second if found is None else found
    return RowDerivatives(value.detach(), first.detach(), second.detach())


@dataclass(frozen=True)
class Composite:
    """A loss after its final link, as a function of linear predictors.

    Attributes
    ----------
    loss : Loss
    link : FinalLink
    """

    loss: Loss
    link: FinalLink

    @property
    def convex(self) -> bool:
        """Whether it is convex in the linear predictor."""
        return self.link.name in self.loss.convex and self.link is LINKS.get(
            self.link.name
        )

    @property
    def quadratic(self) -> bool:
        """Whether it is the square of outcome less linear predictor."""
        return self.closed is _squared_identity

    @property
    def closed(self) -> ClosedForm | None:
        """Derivatives in closed form, where there are any."""
        ours = self.link is LINKS.get(self.link.name)
        return self.loss.closed.get(self.link.name) if ours else None

    def rows(self, eta: Tensor, y: Tensor, columns: Columns, order: int = 2) -> Any:
        """Value and derivatives of each row of a decomposable loss.

        Parameters
        ----------
        eta, y : Tensor, shape (rows,)
        columns : mapping of str to Tensor (rows,)
        order : int, default 2
            With 0 the value only, as a tensor; else `RowDerivatives`.
        """
        if self.closed is not None:
            found = self.closed(eta, y)
            return found.value if order == 0 else found
        if order == 0:
            return self.evaluate(eta, y, columns)
        return differentiate(lambda e: self.evaluate(e, y, columns), eta)

    def evaluate(self, eta: Tensor, y: Tensor, columns: Columns) -> Tensor:
        """Loss as its function returns it: of each row, or of the sample."""
        return self.loss.function(self.link.function(eta), y, **columns)

    def whole(
        self, eta: Tensor, y: Tensor, columns: Columns, weights: Tensor | None = None
    ) -> Tensor:
        """Loss of the sample: the function's number, or the mean of its rows."""
        extra = dict(columns)
        if self.loss.weighted and weights is not None:
            extra["weights"] = weights * (len(weights) / weights.sum())
        found = self.loss.function(self.link.function(eta), y, **extra)
        if found.ndim == 0 or weights is None or self.loss.weighted:
            return found.mean()
        return (found * weights).sum() / weights.sum()


# -- what a function of the user may do wrong ------------------------------------------

#: Operations whose result has no gradient, whatever they are given.
_CUTS = {
    "gt", "lt", "ge", "le", "eq", "ne", "__gt__", "__lt__", "__ge__", "__le__",
    "__eq__", "__ne__", "greater", "less", "greater_equal", "less_equal", "sign",
    "sgn", "round", "floor", "ceil", "trunc", "heaviside", "detach", "argmax",
    "argmin", "bool", "int", "long", "item", "numpy", "tolist", "bucketize",
    "searchsorted",
}  # fmt: skip


class _Watch(TorchFunctionMode):
    """Notes operations that cut the gradient of what depends on the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call an operation, and keep its name if it is one of them."""
        name = getattr(func, "__name__", "")
        if name in _CUTS and any(
            isinstance(a, Tensor) and a.requires_grad for a in args
        ):
            self.cuts.add(name.strip("_"))
        return func(*args, **(kwargs or {}))


def check_loss_function(
    composite: Composite, eta: Tensor, y: Tensor, columns: Columns
) -> Composite:
    """Try a user's loss once, and say what is wrong with it.

    Parameters
    ----------
    composite : Composite
    eta, y : Tensor, shape (n,)
    columns : mapping of str to Tensor (n,)

    Returns
    -------
    Composite
        With `decomposable` (no row's loss depends on another row) and `by_rows` as
        found.

    Raises
    ------
    LossError
        For a function that raises, returns NaN, another shape, or no gradient at all.

    Warns
    -----
    GradientWarning
        If part of the loss is cut off its gradient, as by ``prediction > t``.
    """
    name = composite.loss.name
    # Predictions spread as those of a fit are, so that thresholds are crossed.
    noise = torch.Generator().manual_seed(0)
    bend = torch.randn(len(eta), generator=noise, dtype=torch.float64).to(eta)
    probe = (eta + 0.5 * _spread(eta) * bend).detach().requires_grad_()
    watch = _Watch()
    try:
        with torch.enable_grad(), watch:
            value = composite.evaluate(probe, y, columns)
    except (LossError, ModelError):
        raise
    except Exception as error:
        raise LossError(
            f"the loss {name} raised {type(error).__name__}: {error}. It is called as "
            f"{name}(prediction, y{''.join(f', {c}=...' for c in columns)}) with "
            f"tensors of {len(y)} rows."
        ) from error
    _check_value(name, value, len(y))
    if not value.requires_grad:
        raise LossError(
            f"the loss {name} has no gradient: {_through(watch.cuts)}. Write it with "
            "smooth torch functions of the prediction, for example "
            "torch.sigmoid((prediction - t) / h) in place of prediction > t."
        )
    mean = value.mean() if value.ndim else value
    slope = torch.autograd.grad(mean, probe, create_graph=True, allow_unused=True)[0]
    if slope is None or not bool(torch.isfinite(slope).all()):
        raise LossError(
            f"the loss {name} has a gradient that is not finite: look for a logarithm, "
            "root or quotient of zero (add .clamp(1e-12))."
        )
    if watch.cuts and (why := _cut(composite, probe, slope, y, columns)):
        caution(
            f"part of the loss {name} has no gradient ({_through(watch.cuts)}): {why}. "
            "The optimiser cannot see that part; use a smooth surrogate such as "
            "torch.sigmoid((prediction - t) / h).",
            GradientWarning,
        )
    apart = composite.loss.decomposable and _diagonal(probe, slope)
    if apart and value.ndim == 0:
        # Rates that are far apart do not heed one another's changes; nearly even
        # predictions show it.
        even = (eta.mean() + 1e-3 * bend).detach().requires_grad_()
        with torch.enable_grad():
            level = composite.evaluate(even, y, columns)
            slope = torch.autograd.grad(level, even, create_graph=True)[0]
        apart = _diagonal(even, slope)
    loss = replace(composite.loss, decomposable=apart, by_rows=value.ndim == 1)
    return replace(composite, loss=loss)


def _check_value(name: str, value: Any, n: int) -> None:
    if not isinstance(value, Tensor):
        raise LossError(
            f"the loss {name} returned {type(value).__name__}, not a tensor; do not "
            "call .item() or numpy in it."
        )
    if tuple(value.shape) not in ((), (n,)):
        raise LossError(
            f"the loss {name} returned shape {tuple(value.shape)}; it must be one "
            f"number, shape (), or one for each row, shape ({n},)."
        )
    if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        raise LossError(
            f"the loss {name} is NaN, infinite or not a number of floating point for "
            "ordinary predictions; look for a logarithm, root or quotient of zero."
        )


def _through(cuts: set[str]) -> str:
    if not cuts:
        return "it does not depend on the prediction"
    return f"cut by {', '.join(sorted(cuts))}"


def _spread(eta: Tensor) -> float:
    found = float(eta.std()) if len(eta) > 1 else 0.0
    return found if found > 1e-8 else 1.0


def _cut(
    composite: Composite, eta: Tensor, slope: Tensor, y: Tensor, columns: Columns
) -> str:
    """Compare the gradient with differences wide enough to cross thresholds.

    A loss of pieces that join (Huber's) passes: its differences are its slopes.
    """
    generator = torch.Generator().manual_seed(1)
    eta, slope = eta.detach(), slope.detach()
    h = 0.02 * _spread(eta)
    worst = 0.0
    for direction in (torch.ones(len(eta)), torch.rand(len(eta), generator=generator)):
        v = direction.to(eta)
        with torch.no_grad():
            ends = [composite.whole(eta + s * h * v, y, columns) for s in (1, -1)]
        wide = float(ends[0] - ends[1]) / (2 * h)
        size = max(abs(wide), float((slope * v).abs().sum()))
        worst = max(worst, abs(wide - float(slope @ v)) / max(size, 1e-300))
    if worst < 0.02:
        return ""
    return f"its gradient misses {100 * worst:.0f}% of its slope"


def _diagonal(eta: Tensor, slope: Tensor) -> bool:
    """Whether the Hessian in the predictors is diagonal: no row heeds another."""
    if not slope.requires_grad:
        return True

    def product(v: Tensor) -> Tensor:
        found = torch.autograd.grad(
            slope, eta, v, retain_graph=True, allow_unused=True
        )[0]
        return torch.zeros_like(eta) if found is None else found

    generator = torch.Generator().manual_seed(2)
    v = torch.randn(len(eta), generator=generator, dtype=torch.float64).to(eta)
    whole, part = product(torch.ones_like(eta)), product(v)
    gap = (part - whole * v).abs().max()
    return bool(gap <= 1e-9 * part.abs().max().clamp_min(1e-300))
