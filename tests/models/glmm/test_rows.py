"""Tests of densities of rows: closed forms are automatic derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepstats.families import Family, GammaML, GaussianML, get_family
from deepstats.models.glmm.derivatives import closed_form
from deepstats.models.glmm.rows import RowDensity

ROWS = 80
CLOSED: dict[str, Family] = {
    name: get_family(name)
    for name in (
        "binomial", "poisson", "nb2", "nb1", "zip", "zinb2", "zinb1", "hurdle",
        "hurdlenb", "hurdlenb1",
    )
} | {"gamma": GammaML(), "gaussian": GaussianML()}  # fmt: skip
OPEN = {"beta": get_family("beta"), "ziptau": get_family("ziptau")}


def _drawn(name: str, spread: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(len(name))
    family = (CLOSED | OPEN)[name]
    y = torch.poisson(torch.full((ROWS,), 2.0)).double()
    if name == "binomial":
        y = (y > 1).double()
    elif name == "gamma":
        y = y + 0.3
    elif name == "beta":
        y = torch.rand(ROWS).double().clamp(0.05, 0.95)
    etas = tuple(spread * torch.randn(ROWS).double() for _ in family.predictors)
    return y, etas


def _automatic(density: RowDensity, etas: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """Slopes and turns without the closed form."""
    plain = RowDensity(density.family, density.y, density.size, density.weights)
    plain._closed = None
    return plain.slopes(etas), plain.turns(etas)


def _close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name: str, spread: float, weighted: bool) -> None:
    """Value and all derivatives are those of automatic differentiation."""
    y, etas = _drawn(name, spread)
    weights = torch.rand(ROWS).double() + 0.5 if weighted else None
    density = RowDensity(CLOSED[name], y, None, weights)
    assert closed_form(CLOSED[name], y) is not None
    slopes, turns = density.slopes(etas), density.turns(etas)
    wanted, bent = _automatic(density, etas)
    _close(slopes.value, wanted.value)
    _close(slopes.first, wanted.first)
    _close(slopes.weight, wanted.weight)
    for part in ("first", "second", "weight"):
        pairs = zip(getattr(turns, part), getattr(bent, part), strict=True)
        for found, value in pairs:
            _close(found, value)


def test_trials() -> None:
    """Proportions of numbers of trials have the binomial's density, all of it."""
    y, etas = _drawn("binomial", 1.0)
    size = torch.randint(1, 9, (ROWS,)).double()
    y = (y * size / 2).round() / size
    density = RowDensity(CLOSED["binomial"], y, size, None)
    slopes = density.slopes(etas)
    wanted, _ = _automatic(density, etas)
    _close(slopes.value, wanted.value)
    _close(slopes.weight, wanted.weight)


@pytest.mark.parametrize("name", OPEN)
def test_other_families(name: str) -> None:
    """Families without a closed form are differentiated; turns are of the slopes."""
    y, etas = _drawn(name, 0.3)
    family = OPEN[name]
    assert closed_form(family, y) is None
    density, reach = RowDensity(family, y, None, None), 1e-5
    turns = density.turns(etas)
    for j in range(len(etas)):
        moved = [
            density.slopes(tuple(e + s * reach * (i == j) for i, e in enumerate(etas)))
            for s in (1, -1)
        ]
        for part, wanted in (("value", "first"), ("first", "second")):
            change = (getattr(moved[0], part) - getattr(moved[1], part)) / (2 * reach)
            torch.testing.assert_close(
                getattr(turns, wanted)[j], change, rtol=1e-5, atol=1e-7
            )
        change = (moved[0].weight - moved[1].weight) / (2 * reach)
        torch.testing.assert_close(turns.weight[j], change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nb1", "nb2"])
def test_towards_poisson(name: str) -> None:
    """As the overdispersion goes to zero the derivatives are the Poisson's."""
    y, etas = _drawn("poisson", 0.7)
    tiny = torch.full((ROWS,), -18.0).double()
    found = RowDensity(CLOSED[name], y, None, None).turns((etas[0], tiny))
    wanted = RowDensity(CLOSED["poisson"], y, None, None).turns(etas)
    for part in ("first", "second", "weight"):
        torch.testing.assert_close(
            getattr(found, part)[0], getattr(wanted, part)[0], rtol=1e-5, atol=1e-5
        )
