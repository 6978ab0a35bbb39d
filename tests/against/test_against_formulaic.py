"""Columns of designs against formulaic, which sets the names and the coding."""

from __future__ import annotations

import formulaic
import numpy as np
import pandas as pd
import pytest

from deepstats.design import Design

FORMULAS = (
    "1",
    "x",
    "0 + x",
    "x - 1",
    "x + z",
    "a",
    "0 + a",
    "a + b",
    "0 + a + b",
    "b + 0 + a",
    "x + a",
    "a:b",
    "0 + a:b",
    "a + a:b",
    "b + a:b",
    "a*b",
    "a*b - a",
    "0 + a*b",
    "a*b*d",
    "a:b + b:d",
    "a + b + a:b:d",
    "a:b:d",
    "(a + b + d)**2",
    "a/b",
    "a/x",
    "x:a",
    "x + x:a",
    "0 + x:a",
    "a + x:a",
    "x*a",
    "x*a*b",
    "x:z",
    "x*z + I(x**2)",
    "x:z:a + z",
    "C(c)",
    "C(c)*a",
    "x:C(c)",
    "0 + C(c):x",
    "log(z)",
    "exp(x) + sqrt(z)",
    "I(x + 2*z)",
    "I(x > 0)",
    "I(x**3) + I(z**2)",
    "poly(x, 3)",
    "poly(x, 2):a",
    "poly(x, 2, raw=True)",
    "bs(x, df=5)",
    "bs(x, df=4, degree=2)",
    "cr(x, df=4)",
    "a*bs(x, df=4)",
    "a:cr(z, df=3)",
    "center(x)",
    "scale(x)",
    "x + scale(z):a",
    "C(a, contr.treatment(base='w'))",
    "C(a, contr.sum)",
    "C(a, contr.sum):x",
    "C(a, contr.helmert)",
    "C(a, contr.diff)",
    "C(c, contr.poly)",
    "C(a, contr.sum)*C(b, contr.sum)",
    "0 + C(a, contr.sum)",
)

# What differs on purpose: logical values are a factor with the levels False and True,
# as in patsy and R; powers are numbered by their degree, as poly() without raw does.
DIFFERENT_NAMES = {
    "I(x>0)": "I(x>0)[T.True]",
    "poly(x,2,raw=True)[0]": "poly(x,2,raw=True)[1]",
    "poly(x,2,raw=True)[1]": "poly(x,2,raw=True)[2]",
}


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    n = 90
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(size=n),
            "z": rng.uniform(1, 4, size=n),
            "a": rng.choice(["u", "v", "w"], size=n),
            "b": pd.Categorical(rng.choice(["l", "k"], size=n), ["l", "k"]),
            "c": rng.integers(1, 5, size=n),
            "d": rng.choice(["p", "q"], size=n),
        }
    )


def normal(name: str) -> str:
    return name.replace(" ", "").replace('"', "'")


@pytest.mark.parametrize("rhs", FORMULAS)
def test_columns(rhs, data):
    ours = Design.build(f"y ~ {rhs}", data).X
    theirs = formulaic.model_matrix(rhs, data, context={"sqrt": np.sqrt})
    names = [DIFFERENT_NAMES.get(normal(n), normal(n)) for n in theirs.columns]
    assert [normal(n) for n in ours.names] == names
    wanted = theirs.to_numpy(dtype=float)
    # cr() solves a small linear system for its basis: the last digits are its solver's.
    atol = 1e-10 if "cr(" in rhs else 1e-12
    np.testing.assert_allclose(ours.to_dense().numpy(), wanted, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("rhs", FORMULAS)
def test_span_and_rank(rhs, data):
    """No column is redundant but where formulaic's are."""
    X = Design.build(f"y ~ {rhs}", data).X.to_dense().numpy()
    Z = formulaic.model_matrix(rhs, data, context={"sqrt": np.sqrt}).to_numpy(
        dtype=float
    )
    rank = np.linalg.matrix_rank(X)
    assert rank == np.linalg.matrix_rank(Z)
    assert rank == np.linalg.matrix_rank(np.column_stack([X, Z]))


@pytest.mark.parametrize("rhs", [f for f in FORMULAS if f != "1"])
def test_new_data(rhs, data):
    train, new = data.iloc[:70], data.iloc[70:]
    ours = Design.build(f"y ~ {rhs}", train).spec.rebuild(new).X
    theirs = formulaic.model_matrix(
        rhs, train, context={"sqrt": np.sqrt}
    ).model_spec.get_model_matrix(new, context={"sqrt": np.sqrt})
    wanted = theirs.to_numpy(dtype=float)
    np.testing.assert_allclose(ours.to_dense().numpy(), wanted, rtol=1e-11, atol=1e-10)
