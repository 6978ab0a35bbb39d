"""The three routes of least squares, rank, weights and offsets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepstats import leastsquares
from deepstats.compute import Compute
from deepstats.design import Design
from deepstats.leastsquares import aliased_columns, least_squares, triangle

CPU = Compute("cpu", threads=1)
ROUTES = {
    "cross-products, refined": {"_EXTENDED_ALWAYS": 0.0, "_CONDITION_GRAM": np.inf},
    "Cholesky QR, twice": {
        "_EXTENDED_ALWAYS": 0.0,
        "_EXTENDED_FLOPS": 0.0,
        "_CONDITION_GRAM": 0.0,
        "_CONDITION_CHOLESKY": np.inf,
    },
    "Householder QR": {"_EXTENDED_ALWAYS": np.inf},
}


def force(monkeypatch, route):
    for constant, value in ROUTES[route].items():
        monkeypatch.setattr(leastsquares, constant, value)


def by_numpy(design):
    X = design.X.to_dense().numpy()
    y = np.asarray(design.y, float)
    y = y if design.offset is None else y - design.offset
    w = np.ones(len(y))
    for weight in (design.weights, design.freq_weights):
        w = w if weight is None else w * weight
    root = np.sqrt(w)
    params, *_ = np.linalg.lstsq(root[:, None] * X, root * y, rcond=None)
    inverse = np.linalg.inv(X.T @ (w[:, None] * X))
    return params, inverse, float(w @ (y - X @ params) ** 2)


@pytest.mark.parametrize("blocks", ("default", "tiny"))
@pytest.mark.parametrize(
    "options",
    ({}, {"weights": "w"}, {"freq_weights": "f"}, {"weights": "w", "freq_weights": "f"},
     {"offset": "z"}),
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("rhs", ("x + z", "x*a + z", "x + C(lev)", "0 + C(lev):x + a"))
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route, rhs, options, blocks, small, monkeypatch):
    force(monkeypatch, route)
    if blocks == "tiny":
        monkeypatch.setattr(Compute, "block_rows", lambda self, *sizes: 11)
        monkeypatch.setattr(Compute, "resident", lambda self, elements: False)
    data = small.assign(lev=np.arange(len(small)) * 7 % 19)
    design = Design.build(f"y ~ {rhs}", data, compute=CPU, **options)
    found = least_squares(design, CPU)
    params, inverse, ssr = by_numpy(design)
    assert found.method == route
    assert found.kept == list(range(design.X.k))
    np.testing.assert_allclose(found.params, params, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.inverse, inverse, rtol=1e-9, atol=1e-11)
    assert found.ssr == pytest.approx(ssr, rel=1e-11)


def test_route_follows_size_and_condition(rng):
    n = 4000
    x = rng.normal(size=n)
    good = pd.DataFrame({"y": rng.normal(size=n), "x": x, "z": rng.normal(size=n)})
    bad = good.assign(z=x + 1e-5 * rng.normal(size=n))
    for data, method in ((good, "cross-products, refined"), (bad, "Householder QR")):
        design = Design.build("y ~ x + z + I(x**2) + I(z**2) + x:z", data)
        assert least_squares(design, CPU).method == method


def test_easy_problems_with_many_rows_take_one_pass(rng, monkeypatch):
    n = 4000
    data = pd.DataFrame(rng.normal(size=(n, 3)), columns=["x", "z", "y"])
    data["w"] = rng.uniform(0.5, 2, n)
    monkeypatch.setattr(leastsquares, "_EASY_ELEMENTS", 0)
    easy = least_squares(
        Design.build("y ~ x + z + x:z", data, weights="w"), CPU, extended=False
    )
    assert easy.method == "cross-products"
    params, inverse, ssr = by_numpy(Design.build("y ~ x + z + x:z", data, weights="w"))
    np.testing.assert_allclose(easy.params, params, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(easy.inverse, inverse, rtol=1e-12)
    assert easy.ssr == pytest.approx(ssr, rel=1e-12)
    # A response far from zero, or nearly explained, has its residuals looked at.
    for y in (data["y"] + 100, data["x"] + 1e-2 * data["y"]):
        design = Design.build("y ~ x + z", data.assign(y=y))
        found = least_squares(design, CPU, extended=False)
        assert found.method == "cross-products, refined"


def test_cholesky_route_for_large_and_ill_conditioned_data(rng, monkeypatch):
    monkeypatch.setattr(leastsquares, "_EXTENDED_FLOPS", 1e4)
    monkeypatch.setattr(leastsquares, "_EXTENDED_ALWAYS", 1e3)
    n = 4000
    x = rng.normal(size=n)
    data = pd.DataFrame({"y": x + rng.normal(size=n), "x": x})
    data["z"] = x + 1e-5 * rng.normal(size=n)
    data["w"] = rng.normal(size=n)
    design = Design.build("y ~ x + z + w + I(w**2)", data)
    found = least_squares(design, CPU)
    assert found.method == "Cholesky QR, twice"
    monkeypatch.setattr(leastsquares, "_EXTENDED_ALWAYS", np.inf)
    wanted = least_squares(design, CPU)
    np.testing.assert_allclose(found.params, wanted.params, rtol=1e-8)
    np.testing.assert_allclose(
        np.diag(found.inverse), np.diag(wanted.inverse), rtol=1e-9
    )


@pytest.mark.parametrize("rows", (8, 50, 500))
def test_triangle(rows, small, monkeypatch):
    monkeypatch.setattr(Compute, "block_rows", lambda self, *sizes: rows)
    design = Design.build("y ~ x + z + a", small, weights="w")
    R, lengths = triangle(design, CPU)
    R = R.astype(float)
    w = design.weights[:, None]
    A = np.column_stack([design.X.to_dense().numpy(), design.y])
    np.testing.assert_allclose(R.T @ R, A.T @ (w * A), rtol=1e-12, atol=1e-12)
    assert np.allclose(R, np.triu(R))
    np.testing.assert_allclose(lengths, np.sqrt((w * A**2).sum(0))[:-1])


@pytest.mark.parametrize(
    ("columns", "found"),
    (
        ([[1, 0], [0, 1]], []),
        ([[1, 2], [1, 2]], [1]),
        ([[0, 1], [0, 1]], [0]),
        ([[1, 1, 2, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [2, 3]),
    ),
)
def test_aliased_columns(columns, found):
    A = np.array(columns, dtype=float)
    assert aliased_columns(A, np.sqrt((A**2).sum(0))) == found


@pytest.mark.parametrize("scale", (1e-150, 1e-8, 1.0, 1e8, 1e150))
def test_scale_of_a_column_does_not_matter(scale, small):
    wanted = least_squares(Design.build("y ~ x + z", small), CPU)
    design = Design.build("y ~ x + z", small.assign(z=small["z"] * scale))
    found = least_squares(design, CPU)
    assert found.kept == [0, 1, 2]
    assert float(found.params[2]) * scale == pytest.approx(float(wanted.params[2]))
    assert found.condition == pytest.approx(wanted.condition, rel=1e-8)


@pytest.mark.parametrize("n", (60, 4000))
def test_nearly_aliased_is_kept_and_aliased_is_not(n, rng):
    x, z = rng.normal(size=(2, n))
    data = pd.DataFrame({"y": rng.normal(size=n), "x": x, "z": z})
    data["near"] = x + z + 1e-7 * rng.normal(size=n)
    data["same"] = x + z
    rhs = "y ~ x + z + {} + I(x**2) + I(z**2)"
    assert len(least_squares(Design.build(rhs.format("near"), data), CPU).kept) == 6
    kept = least_squares(Design.build(rhs.format("same"), data), CPU).kept
    assert kept == [0, 1, 2, 4, 5]
