"""From the outcomes of a study to the emissions and the membership of a mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...compute import Compute
from .cells import Dense, incidence, rows_of_units, unique_rows
from .densities import Kernel, Observed, kernel_of
from .emission import Emission, GridEmission, RowEmission, _Linear
from .growth import GrowthEmission, Products
from .membership import Membership
from .mixture import Mixture
from .quadratic import QuadraticEmission, unit_products
from .slots import Basis, Slots, free_basis

if TYPE_CHECKING:
    from .study import Outcome, Study

__all__ = ["Assembled", "assemble", "emission_of", "grid_of"]

#: Least standard deviation of a group, as a share of that of the response.
SIGMA_FLOOR = 1e-4
#: Least value of other parameters that are logarithms.
_LOG_FLOOR = -25.0
#: Longest step of a logarithm or a logit, and of a scale's logarithm.
_LONGEST, _LONGEST_SCALE = 3.0, 1.5
#: Cross-products of a unit may take this many times the numbers of its rows ...
_PRODUCTS = 4
#: ... or this many numbers.
_FEW_PRODUCTS = 24


@dataclass(frozen=True, eq=False)
class Assembled:
    """A mixture and how its parameters become the user's.

    Attributes
    ----------
    mixture : Mixture
    change : Tensor, shape (P, P)
        The user's parameters are ``change @ the mixture's``.
    kernels : tuple of Kernel
    """

    mixture: Mixture
    change: Tensor
    kernels: tuple[Kernel, ...]

    def to_user(self, x: Tensor) -> Tensor:
        """Return the user's parameters of the mixture's, (..., P)."""
        return x @ self.change.T

    def to_mixture(self, x: Tensor) -> Tensor:
        """Return the mixture's parameters of the user's, (..., P)."""
        return torch.linalg.solve(self.change, x[..., None])[..., 0]


def assemble(study: Study, compute: Compute) -> Assembled:
    """Build the mixture of a study.

    Parameters
    ----------
    study : Study
    compute : Compute
    """
    N = len(study.units.labels)
    built = [emission_of(o, N, compute) for o in study.outcomes]
    K = study.plan.groups
    W, basis = _risk_basis(study.units.W)
    membership = Membership(
        None if W is None else compute.tensor(W), K, study.plan.reference - 1
    )
    blocks = [b[1] for b in built]
    blocks += [basis] * (K - 1)
    weights = study.units.weights
    mixture = Mixture(
        tuple(b[0] for b in built), membership, N,
        None if weights is None else compute.tensor(weights), compute,
        groups_of=_groups_of(study), rows=compute.tensor(_rows(study, N)),
    )  # fmt: skip
    return Assembled(mixture, torch.block_diag(*blocks), tuple(b[2] for b in built))


def _groups_of(study: Study) -> tuple[tuple[int, ...], ...]:
    """Own group of every outcome in each class, where they have groups of their own."""
    plan = study.plan
    return tuple(zip(*plan.combinations, strict=True)) if plan.grouping else ()


def _rows(study: Study, units: int) -> Tensor:
    """Count the rows of every unit over all outcomes."""
    counts = [torch.bincount(o.unit, minlength=units) for o in study.outcomes]
    return sum(counts[1:], counts[0]).double()


def _risk_basis(W: Tensor) -> tuple[Tensor | None, Tensor]:
    """Risk factors in an orthogonal basis; None where there is the intercept alone."""
    if W.shape[1] == 1:
        return None, torch.eye(1).double()
    basis = Basis.of(W, np.zeros((1, W.shape[1]), dtype=int) + np.arange(W.shape[1]))
    return W @ basis.change.to(W), basis.change


def emission_of(
    outcome: Outcome, units: int, compute: Compute
) -> tuple[Emission, Tensor, Kernel]:
    """Return an outcome's emission, its change of basis and its kernel."""
    kernel = kernel_of(outcome.family, outcome.lower is not None)
    kernel = kernel.prepared(outcome.y, outcome.size)
    slots = Slots.of(outcome.patterns)
    bases = [
        Basis.of(x, np.asarray(p))
        for x, p in zip(outcome.X, outcome.patterns, strict=True)
    ]
    change = free_basis(bases, outcome.patterns, slots.count)
    if outcome.effects is not None:
        return *_growth(outcome, bases[0], change, units, compute), kernel
    if _is_quadratic(outcome, kernel, units):
        return _quadratic(outcome, bases[0], slots, units, compute), change, kernel
    lower, longest, floors = _limits(outcome, kernel, slots)
    common = dict(
        slots=slots,
        first=kernel.start(outcome.y, outcome.size, None, outcome.lower, outcome.upper),
        longest=compute.tensor(longest),
        lower=compute.tensor(lower),
        floors=floors.to(compute.device),
    )
    constant = kernel.constant(outcome.y, outcome.size)
    normaliser = compute.tensor(
        torch.zeros(units).double().index_add_(0, outcome.unit, constant.double())
    )
    found = grid_of(outcome, kernel)
    rows = torch.arange(len(outcome.y)) if found is None else found[1]
    linear = _Linear(
        kernel,
        tuple(
            _changed(x, rows if found else None, b, compute)
            for x, b in zip(outcome.X, bases, strict=True)
        ),
        tuple(
            None if o is None else compute.tensor(o[rows] if found else o)
            for o in outcome.offsets
        ),
        _observed(outcome, rows if found else None, compute)
        if kernel.needs_y
        else None,
    )
    features = compute.tensor(kernel.features(outcome.y, outcome.size))
    if found is None:
        start = rows_of_units(outcome.unit, units)
        emission: Emission = RowEmission(
            linear, features, start, normaliser=normaliser, **common
        )
    else:
        emission = GridEmission(
            linear, incidence(outcome.unit, found[0], features, units, len(rows)),
            normaliser=normaliser, **common,
        )  # fmt: skip
    return emission, change, kernel


def grid_of(outcome: Outcome, kernel: Kernel) -> tuple[Tensor, Tensor] | None:
    """Return the cell of each row and a row of each cell; None where most differ."""
    return unique_rows(_keys(outcome, kernel))


def _keys(outcome: Outcome, kernel: Kernel) -> list[Tensor]:
    """Columns that tell one cell from another."""
    keys = [x[:, c] for x in outcome.X for c in range(x.shape[1])]
    keys += [o for o in outcome.offsets if o is not None]
    if kernel.needs_y:
        given = (outcome.y, outcome.size, outcome.lower, outcome.upper)
        keys += [v for v in given if v is not None]
    return keys


def _changed(x: Tensor, rows: Tensor | None, basis: Basis, compute: Compute) -> Tensor:
    if x.stride(0) == 0:
        n = len(x) if rows is None else len(rows)
        one = compute.tensor(x[:1] @ basis.change.to(x))
        return one.expand(n, x.shape[1])
    part = x if rows is None else x[rows]
    return compute.tensor(part @ basis.change.to(part))


def _observed(outcome: Outcome, rows: Tensor | None, compute: Compute) -> Observed:
    def some(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return compute.tensor(values if rows is None else values[rows])

    y = some(outcome.y)
    assert y is not None
    return Observed(y, some(outcome.size), some(outcome.lower), some(outcome.upper))


def _limits(
    outcome: Outcome, kernel: Kernel, slots: Slots
) -> tuple[Tensor, Tensor, Tensor]:
    """Least value and longest step of each free parameter; which are variances'."""
    lower = torch.full((slots.count,), -torch.inf).double()
    longest = torch.full((slots.count,), torch.inf).double()
    floors = torch.zeros(slots.count, dtype=torch.bool)
    start = 0
    for j, (name, link, x) in enumerate(
        zip(kernel.predictors, kernel.links, outcome.X, strict=True)
    ):
        at = slots.index[:, start : start + x.shape[1]]
        at = at[at >= 0]
        if j > 0 or link != "identity":
            longest[at] = _LONGEST if j == 0 or link != "log" else _LONGEST_SCALE
        if j > 0 and link == "log" and x.shape[1] == 1 and x.stride(0) == 0:
            floor = _LOG_FLOOR
            if name == "sigma":
                floors[at] = True
                floor = math.log(SIGMA_FLOOR * float(outcome.y.std(correction=0)))
            lower[at] = floor
        start += x.shape[1]
    return lower, longest, floors


def _is_quadratic(outcome: Outcome, kernel: Kernel, units: int) -> bool:
    if kernel.needs_y or kernel.predictors[:2] != ("mu", "sigma"):
        return False
    x, s = outcome.X[:2]
    if s.shape[1] != 1 or s.stride(0) != 0 or outcome.offsets[1] is not None:
        return False
    p = x.shape[1]
    width = 2 + p + p * (p + 1) // 2
    return width <= max(_PRODUCTS * len(outcome.y) / units, _FEW_PRODUCTS)


@dataclass(frozen=True, eq=False)
class _Normal:
    """A normal response in the internal basis, a constant taken from it.

    Attributes
    ----------
    x : Tensor, shape (n, p)
    y : Tensor, shape (n,)
        Less offset and constant.
    centre : Tensor, shape (p,)
        Coefficients of the constant; zeros where the columns hold none.
    mean, spread : float
    """

    x: Tensor
    y: Tensor
    centre: Tensor
    mean: float
    spread: float

    @classmethod
    def of(cls, outcome: Outcome, basis: Basis, slots: Slots) -> _Normal:
        """Take the mean of the response, where all groups have a constant."""
        x = outcome.X[0] @ basis.change.to(outcome.X[0])
        y = outcome.y if outcome.offsets[0] is None else outcome.y - outcome.offsets[0]
        mean, spread = float(y.mean()), float(y.std(correction=0))
        centre = torch.zeros(x.shape[1]).double()
        if bool((x[:, 0] == x[0, 0]).all()) and bool((slots.index[:, 0] >= 0).all()):
            centre[0] = mean / x[0, 0]
            y = y - mean
        return cls(x, y, centre, mean, spread)

    def lower(self, slots: Slots, place: int) -> Tensor:
        """Least values: a floor of ln sigma, which is a group's coefficient `place`."""
        lower = torch.full((slots.count,), -torch.inf).double()
        at = slots.index[:, place]
        lower[at[at >= 0]] = math.log(SIGMA_FLOOR * self.spread)
        return lower


def _growth(
    outcome: Outcome, basis: Basis, change: Tensor, units: int, compute: Compute
) -> tuple[GrowthEmission, Tensor]:
    """Return the emission with random effects, and the change of its parameters."""
    effects = outcome.effects
    assert effects is not None
    slots = Slots.of((*outcome.patterns, effects.pattern))
    p, q = outcome.X[0].shape[1], len(effects.columns)
    given = _Normal.of(outcome, basis, slots)
    # Columns of Z are scaled only: L stays triangular.
    size = effects.Z.square().mean(0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    products = Products.of(
        given.x, effects.Z / size, given.y, rows_of_units(outcome.unit, units)
    )
    rows, _ = torch.tril_indices(q, q)
    scaled = effects.cov == "proportional"
    factors = 1 / size[rows]
    if scaled:
        factors[1:] *= size[0]
    scales = torch.ones(slots.count - len(change)).double()
    scales[torch.from_numpy(effects.pattern)] = factors.to(scales)
    emission = GrowthEmission(
        products.to(compute), slots, compute.tensor(given.centre), given.spread,
        scaled, compute.tensor(size), compute.tensor(given.lower(slots, p)),
    )  # fmt: skip
    return emission, torch.block_diag(change, torch.diag(scales))


def _quadratic(
    outcome: Outcome, basis: Basis, slots: Slots, units: int, compute: Compute
) -> QuadraticEmission:
    given = _Normal.of(outcome, basis, slots)
    products = unit_products(given.x, given.y, rows_of_units(outcome.unit, units))
    return QuadraticEmission(
        Dense(compute.tensor(products)), slots, compute.tensor(given.centre),
        given.mean, given.spread, compute.tensor(given.lower(slots, -1)),
    )  # fmt: skip
