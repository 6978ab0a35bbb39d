"""Hypotheses in words, Wald tests, clusters by hand, the delta method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deepstats as ds
from deepstats.inference import (
    canonical,
    delta_method,
    hac_meat,
    linear_hypotheses,
    wald,
)

NAMES = ["Intercept", "x", "x2", "a[T.v]", "a[T.w]", "x:a[T.v]", "I(x ** 2)",
         "C(g, contr.sum)[S.1]", "log(alpha)"]  # fmt: skip


def row(**entries):
    out = np.zeros(len(NAMES))
    for name, value in entries.items():
        out[NAMES.index(name)] = value
    return out


@pytest.mark.parametrize(
    ("text", "rows", "values"),
    (
        ("x", [{"x": 1}], [0]),
        ("x = 0", [{"x": 1}], [0]),
        ("x = 2.5", [{"x": 1}], [2.5]),
        ("-x = 1e-3", [{"x": -1}], [1e-3]),
        ("x = x2", [{"x": 1, "x2": -1}], [0]),
        ("x - x2 = 1", [{"x": 1, "x2": -1}], [1]),
        ("2*x + x2/4 = 3", [{"x": 2, "x2": 0.25}], [3]),
        ("2*(x - x2) = 1 + x", [{"x": 1, "x2": -2}], [1]),
        ("x*2 = 1", [{"x": 2}], [1]),
        ("x = 0, x2 = 1", [{"x": 1}, {"x2": 1}], [0, 1]),
        ("x, x2", [{"x": 1}, {"x2": 1}], [0, 0]),
        ("a[T.v] = a[T.w]", [{"a[T.v]": 1, "a[T.w]": -1}], [0]),
        ("x:a[T.v] = x", [{"x:a[T.v]": 1, "x": -1}], [0]),
        ("I(x ** 2) = 0", [{"I(x ** 2)": 1}], [0]),
        ("3*I(x ** 2) + x = 1", [{"I(x ** 2)": 3, "x": 1}], [1]),
        ("C(g, contr.sum)[S.1] = x", [{"C(g, contr.sum)[S.1]": 1, "x": -1}], [0]),
        ("log(alpha) = -1", [{"log(alpha)": 1}], [-1]),
        ("0 = x", [{"x": -1}], [0]),
        (["x = 1", "x2 = 2"], [{"x": 1}, {"x2": 1}], [1, 2]),
    ),
)
def test_hypotheses(text, rows, values):
    R, q, labels = linear_hypotheses(text, NAMES)
    np.testing.assert_allclose(R, [row(**r) for r in rows])
    # q may have the sign of either side: what counts is the equation.
    np.testing.assert_allclose(q, values)
    assert len(labels) == len(R)


@pytest.mark.parametrize(
    ("text", "fragment"),
    (
        ("y = 0", "'y' .* is not a parameter"),
        ("x3 = 0", "'x3' .* is not a parameter"),
        ("a[T.z] = 0", "is not a parameter"),
        ("x = ", "two sides"),
        ("x = 1 = x2", "two sides"),
        ("x*x2 = 0", "not a linear equation"),
        ("1/x = 0", "not a linear equation"),
        ("(x = 0", "not a linear equation"),
        ("x x2", "not a linear equation"),
        ("x,, x2", "empty hypothesis"),
        ("1 = 0", "involves no parameter"),
        ("x = x", "involves no parameter"),
        ("x; import os", "is not a parameter"),
    ),
)
def test_hypotheses_refused(text, fragment):
    with pytest.raises(ValueError, match=fragment):
        linear_hypotheses(text, NAMES)


def test_hypotheses_as_matrices():
    _, q, _ = linear_hypotheses(np.eye(9)[:2], NAMES)
    np.testing.assert_array_equal(q, [0, 0])
    _, q, _ = linear_hypotheses((np.eye(9)[:2], [1, 2]), NAMES)
    np.testing.assert_array_equal(q, [1, 2])
    with pytest.raises(ValueError, match="needs 9 entries"):
        linear_hypotheses([[1, 0]], NAMES)


@pytest.fixture
def estimates(rng):
    A = rng.normal(size=(4, 4))
    return rng.normal(size=4), A @ A.T


def test_wald(estimates):
    b, V = estimates
    R, q = np.array([[1.0, -1, 0, 0], [0, 0, 2, 1]]), np.array([0.5, 0])
    d = R @ b - q
    wanted = d @ np.linalg.inv(R @ V @ R.T) @ d
    found = wald(b, V, R, q)
    assert found.statistic == pytest.approx(wanted, rel=1e-12)
    assert (found.df_num, found.df_denom, found.distribution) == (2, None, "chi2")
    found = wald(b, V, R, q, 30)
    assert found.statistic == pytest.approx(wanted / 2, rel=1e-12)
    assert (found.df_denom, found.distribution) == (30, "F")


def test_redundant_restrictions_count_once(estimates):
    b, V = estimates
    R = np.array([[1.0, -1, 0, 0], [0, 1, -1, 0], [1, 0, -1, 0]])
    found, wanted = wald(b, V, R, np.zeros(3)), wald(b, V, R[:2], np.zeros(2))
    assert found.df_num == 2
    assert found.statistic == pytest.approx(wanted.statistic, rel=1e-9)


@pytest.mark.parametrize("scale", (1e-8, 1e8))
def test_wald_does_not_depend_on_units(scale, estimates):
    b, V = estimates
    D = np.diag([1, scale, 1, 1 / scale])
    found = wald(D @ b, D @ V @ D, np.eye(4), np.zeros(4))
    wanted = wald(b, V, np.eye(4), np.zeros(4))
    assert found.statistic == pytest.approx(wanted.statistic, rel=1e-6)
    assert found.df_num == 4


def test_delta_method():
    b = torch.tensor([2.0, 0.5]).double()
    V = torch.tensor([[0.04, 0.01], [0.01, 0.09]]).double()
    value, cov = delta_method(lambda p: p[0] / p[1], b, V)
    gradient = torch.tensor([1 / 0.5, -2.0 / 0.25]).double()
    assert value.tolist() == [4.0]
    assert float(cov) == pytest.approx(float(gradient @ V @ gradient), rel=1e-12)
    value, cov = delta_method(lambda p: torch.stack([p.sum(), p.prod()]), b, V)
    J = torch.tensor([[1.0, 1.0], [0.5, 2.0]]).double()
    torch.testing.assert_close(cov, J @ V @ J.T)


def test_hac_by_hand(rng):
    s = rng.normal(size=(30, 2))
    wanted = s.T @ s
    for lag in (1, 2, 3):
        g = s[lag:].T @ s[:-lag]
        wanted += (1 - lag / 4) * (g + g.T)
    np.testing.assert_allclose(hac_meat(torch.from_numpy(s), 3), wanted)
    np.testing.assert_allclose(hac_meat(torch.from_numpy(s), 0), s.T @ s)


@pytest.mark.parametrize("ssc", ("each", "min"))
@pytest.mark.parametrize("model", ("ols", "poisson"))
def test_two_way_clusters_by_hand(model, ssc, small):
    data = small.assign(h=np.arange(len(small)) * 11 % 8)
    if model == "ols":
        fitted = ds.OLS("y ~ x + a", data)
    else:
        fitted = ds.GLM("count ~ x + a", data, family="poisson")
    found = fitted.fit("cluster", {"groups": ["g", "h"], "ssc": ssc})
    X = fitted.design.X.to_dense().numpy()
    u = found.resid_response.to_numpy()
    w = np.ones(len(u)) if model == "ols" else found.fittedvalues.to_numpy()
    bread = np.linalg.inv(X.T @ (w[:, None] * X))
    n, k = X.shape
    both = data["g"] * 100 + data["h"]
    total = np.zeros((k, k))
    sizes = [data["g"].nunique(), data["h"].nunique()]
    for sign, groups in ((1, data["g"]), (1, data["h"]), (-1, both)):
        codes = np.unique(groups, return_inverse=True)[1]
        S = np.zeros((codes.max() + 1, k))
        np.add.at(S, codes, X * u[:, None])
        G = min(sizes) if ssc == "min" else len(S)
        total += sign * G / (G - 1) * S.T @ S
    wanted = bread @ total @ bread * (n - 1) / (n - k)
    np.testing.assert_allclose(found.cov_params(), wanted, rtol=1e-9, atol=1e-14)
    assert found.covariance.df == min(sizes) - 1
    assert "g (15) and h (8)" in found.cov_description


def test_clusters_of_one_row_are_hc1(small):
    model = ds.OLS("y ~ x + a", small.assign(row=np.arange(len(small))))
    n, k = model.design.X.shape
    found = model.fit("cluster", {"groups": "row"}).bse
    # G / (G - 1) * (n - 1) / (n - k) with G = n.
    wanted = model.fit("HC0").bse * np.sqrt(n / (n - k))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "kind"),
    (("hc3", "HC3"), ("robust", "HC1"), ("bhhh", "opg"), ("Newey-West", "HAC"),
     ("iid", "nonrobust"), ("CRV1", "cluster"), ("expected", "eim")),
)  # fmt: skip
def test_names_of_covariances(given, kind):
    assert canonical(given) == kind


def test_order_of_levels_of_clusters_does_not_matter(small):
    labels = np.array(["q", "b", "z", "a"])[small["c"] - 1]
    one = ds.OLS("y ~ x", small).fit("cluster", {"groups": "c"})
    two = ds.OLS("y ~ x", small).fit("cluster", {"groups": labels})
    np.testing.assert_allclose(one.bse, two.bse, rtol=1e-13)
