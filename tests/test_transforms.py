"""Evaluation of formula expressions, against formulaic and stored values from R."""

from __future__ import annotations

import json

import formulaic
import numpy as np
import pandas as pd
import pytest

from deepstats.columns import Categorical, Numeric
from deepstats.contrasts import Contrast
from deepstats.errors import DesignError
from deepstats.expressions import expression_variables, quote_name
from deepstats.transforms import TRANSFORMS, evaluate

X = np.array([0.1, 0.4, 0.9, 1.6, 2.5, 3.1, 4.2, 5.0])


class Lookup:
    """A data frame as the design layer will present it."""

    def __init__(self, **columns):
        self.frame = columns
        self.columns = list(columns)

    def __call__(self, name):
        return self.frame[name]


@pytest.fixture
def data():
    return Lookup(
        x=X,
        z=np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0]),
        n=np.arange(8),
        b=np.array([True, False] * 4),
        g=pd.Series(list("cabacbca")),
        h=pd.Categorical(list("lmhlmhlm"), categories=["l", "m", "h", "never"]),
        missing=np.array([np.nan, *X[1:]]),
    )


def columns(expression, data, state=None, **keywords):
    state = {} if state is None else state
    return evaluate(expression, data, state, **keywords).values


# --- arithmetic -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x + 1", X + 1),
        ("-x ** 2 / 3", -(X**2) / 3),
        ("n // 3", np.arange(8) // 3),
        ("n % 3", np.arange(8) % 3),
        ("n ** -1", np.r_[np.inf, 1 / np.arange(1, 8)]),
        ("log(x)", np.log(X)),
        ("log(x, 10)", np.log10(X)),
        ("log(n)", np.r_[-np.inf, np.log(np.arange(1, 8))]),
        ("log1p(x)", np.log1p(X)),
        ("sqrt(x) * exp(x)", np.sqrt(X) * np.exp(X)),
        ("round(x, 0)", np.round(X)),
        ("logit(x / 10)", np.log(X / (10 - X))),
        ("expit(x)", 1 / (1 + np.exp(-X))),
        ("minimum(x, 2)", np.minimum(X, 2)),
        ("where(x > 2, 1, -1)", np.where(X > 2, 1.0, -1.0)),
        ("I((x > 1) * 2)", (X > 1) * 2.0),
        ("b * 2", np.array([2.0, 0] * 4)),
        ("I(x * log(2))", X * np.log(2)),
        ("lag(x)", np.r_[np.nan, X[:-1]]),
        ("lag(x, k=-2)", np.r_[X[2:], np.nan, np.nan]),
        ("lag(x, 99)", np.full(8, np.nan)),
        ("Q('x') + `x`", 2 * X),
        ("center(x)", X - X.mean()),
        ("scale(x)", (X - X.mean()) / X.std(ddof=1)),
        ("standardize(x)", (X - X.mean()) / X.std()),
        ("center(missing)", np.r_[np.nan, X[1:] - X[1:].mean()]),
        ("poly(x, 2, raw=True)", np.column_stack([X, X**2])),
    ],
)
def test_numbers(expression, expected, data):
    values = columns(expression, data)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "int64", "int8", "float32"])
def test_bare_numbers_are_not_copied(dtype):
    column = pd.Series(np.arange(4), dtype=dtype)
    result = evaluate("x", Lookup(x=column), {})
    assert result.values.dtype == np.dtype(dtype)
    assert np.shares_memory(result.values, column.to_numpy())


def test_small_integers_do_not_overflow():
    small = Lookup(x=np.array([100, -100], dtype=np.int8))
    assert columns("I(x ** 2)", small).tolist() == [1e4, 1e4]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "double[pyarrow]"])
def test_nullable_numbers(dtype):
    column = pd.Series([1, None, 3], dtype=dtype)
    np.testing.assert_array_equal(columns("x", Lookup(x=column)), [1, np.nan, 3])
    np.testing.assert_array_equal(columns("2 * x", Lookup(x=column)), [2, np.nan, 6])


def test_object_numbers_are_numbers():
    result = evaluate("x", Lookup(x=pd.Series([1, 2.5, None], dtype=object)), {})
    np.testing.assert_array_equal(result.values, [1, 2.5, np.nan])


# --- logic ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x > 2", X > 2),
        ("I(1 < x <= 3)", (X > 1) & (X <= 3)),
        ("x > 1 and z < 3", np.array([0, 0, 0, 1, 0, 1, 0, 0], bool)),
        ("(x > 1) & (z < 3)", np.array([0, 0, 0, 1, 0, 1, 0, 0], bool)),
        ("not b", np.array([0, 1] * 4, bool)),
        ("~(x > 2) | b", ~(X > 2) | np.array([True, False] * 4)),
        ("g == 'a'", np.array([0, 1, 0, 1, 0, 0, 0, 1], bool)),
        ("'a' != g", ~np.array([0, 1, 0, 1, 0, 0, 0, 1], bool)),
        ("g in ['a', 'b']", np.array([0, 1, 1, 1, 0, 1, 0, 1], bool)),
        ("n not in [0, 1]", np.arange(8) > 1),
    ],
)
def test_comparisons_are_true_or_false(expression, expected, data):
    result = evaluate(expression, data, {})
    assert result.levels == (False, True)
    np.testing.assert_array_equal(result.codes, expected)


def test_comparison_with_missing_is_missing(data):
    assert evaluate("missing > 2", data, {}).codes.tolist() == [-1] + [0] * 3 + [1] * 4
    assert np.isnan(columns("where(missing > 2, 1, 0)", data)[0])
    assert np.isnan(columns("I((missing > 2) * x)", data)[0])
    text = Lookup(g=pd.Series(["a", None, "b"]))
    assert evaluate("g == 'a'", text, {}).codes.tolist() == [1, -1, 0]


# --- categories -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["b", "a", None, "b"], dtype=object),
        pd.Series(["b", "a", None, "b"], dtype="string"),
        pd.Series(["b", "a", None, "b"], dtype="string[pyarrow]"),
        pd.Series(["b", "a", None, "b"]),
        pd.Series(["b", "a", None, "b"], dtype="category"),
        pd.Categorical(["b", "a", None, "b"]),
        np.array(["b", "a", None, "b"], dtype=object),
    ],
    ids=["object", "string", "arrow", "default", "category", "Categorical", "numpy"],
)
def test_text_is_categorical(column):
    result = evaluate("g", Lookup(g=column), {})
    assert isinstance(result, Categorical)
    assert result.codes.dtype == np.int32
    assert (result.codes.tolist(), result.levels) == ([1, 0, -1, 1], ("a", "b"))


def test_fixed_width_text():
    result = evaluate("g", Lookup(g=np.array(["b", "a"])), {})
    assert result.levels == ("a", "b")


@pytest.mark.parametrize("dtype", [bool, object, "boolean"])
def test_booleans_are_categorical(dtype):
    result = evaluate("b", Lookup(b=pd.Series([True, False, True], dtype=dtype)), {})
    assert (result.codes.tolist(), result.levels) == ([1, 0, 1], (False, True))
    assert result.contrast.names(result.levels, True) == ("[T.True]",)


def test_category_order_is_kept_and_unused_levels_dropped(data):
    result = evaluate("h", data, {})
    assert result.levels == ("l", "m", "h")
    assert result.codes.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_numbers_as_levels_are_sorted_as_numbers():
    result = evaluate("C(k)", Lookup(k=np.array([10, 9, 100])), {})
    assert result.levels == (9, 10, 100)
    assert all(type(level) is int for level in result.levels)


def test_levels_argument(data):
    result = evaluate("C(g, levels=['c', 'b', 'a'])", data, {})
    assert result.levels == ("c", "b", "a")
    with pytest.raises(DesignError, match="'c'"):
        evaluate("C(g, levels=['a', 'b'])", data, {})


@pytest.mark.parametrize(
    "coding",
    [
        "contr.treatment",
        "contr.treatment(base='b')",
        "Treatment(reference='b')",
        "contr.SAS",
        "contr.sum",
        "contr.helmert",
        "contr.helmert(reverse=False)",
        "contr.poly",
        "contr.poly(scores=[1, 2, 4])",
        "contr.diff",
        "{'first': [1, 0, -1], 'second': [0, 1, -1]}",
    ],
)
def test_contrasts_are_formulaics(coding, data):
    expression = f"C(g, {coding})"
    frame = pd.DataFrame({"g": data("g")})
    theirs = formulaic.model_matrix(expression, frame).iloc[:, 1:]
    ours = evaluate(expression, data, {})
    coded = ours.contrast.matrix(ours.levels, True)[ours.codes]
    np.testing.assert_allclose(coded, theirs.to_numpy(), rtol=0, atol=1e-12)
    suffixes = [name[name.rindex(")") + 1 :] for name in theirs.columns]
    assert list(ours.contrast.names(ours.levels, True)) == suffixes


@pytest.mark.parametrize("kind", ["treatment", "sum", "poly", "helmert", "SAS"])
def test_full_coding(kind):
    contrast = Contrast(kind)
    np.testing.assert_array_equal(contrast.matrix("abc", False), np.eye(3))
    assert contrast.names("abc", False) == ("[a]", "[b]", "[c]")
    assert contrast.matrix("a", True).shape == (1, 0)


def test_base_by_position_as_in_r(data):
    by_number = evaluate("C(g, contr.treatment(base=2))", data, {})
    assert by_number.contrast.names(by_number.levels, True) == ("[T.a]", "[T.c]")
    wrong = evaluate("C(g, contr.treatment(base='q'))", data, {})
    with pytest.raises(DesignError, match="'a', 'b', 'c'"):
        wrong.contrast.matrix(wrong.levels, True)


# --- bases ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "poly(x, 3)",
        "poly(log(x), 2)",
        "bs(x, df=5)",
        "bs(x, knots=[1, 2], degree=2)",
        "bs(x, df=6, include_intercept=True)",
        "cr(x, df=4)",
        "cs(x, df=4)",
        "cr(x, df=4, constraints='center')",
        "cc(x, df=4)",
        "scale(x, center=False)",
    ],
)
def test_bases_are_formulaics(expression, data):
    theirs = formulaic.model_matrix(f"0 + {expression}", pd.DataFrame({"x": X}))
    ours = evaluate(expression, data, {})
    values = ours.values.reshape(len(X), -1)
    np.testing.assert_allclose(values, theirs.to_numpy(), rtol=0, atol=1e-12)
    if ours.names:
        assert [expression + name for name in ours.names] == list(theirs.columns)


# R 4: x <- c(0.1, 0.4, 0.9, 1.6, 2.5, 3.1, 4.2, 5.0); library(splines)
R_VALUES = {
    "ns(x, df=3)": [
        [0, 0, 0],
        [-0.06127439608122787, 0.17950814547429250, -0.11632930097775379],
        [-0.1155148993236206, 0.4308185754247295, -0.2791896913366961],
        [0.02241089882677684, 0.56471424108583146, -0.36346663663770407],
        [0.3925815374119141, 0.4496185386363038, -0.2287454647213932],
        [0.51522204351412926, 0.35835795372063550, -0.04596865713222126],
        [0.2550117968328297, 0.3517119791813878, 0.3804080225180032],
        [-0.1477378401326163, 0.4197630695831481, 0.7279747705494684],
    ],
    "ns(x, knots=[1, 3], intercept=True, boundary_knots=[0.5, 4.5])": [
        [-0.573854238719195, -0.248959810796188, 0.829866035987295, -0.580906225191106],
        [-0.238713654929941, -0.198638385469477, 0.662127951564923, -0.463489566095446],
        [0.288114479336065, -0.105380368051141, 0.393934560170471, -0.275754192119329],
        [0.583305378014252, 0.144274935601714, 0.180131167041903, -0.119920388357904],
        [0.351382630533212, 0.489206555260463, 0.166930530084169, -0.020422799630347],
        [0.129377659900183, 0.533344011717352, 0.238186627608826, 0.097802694007154],
        [0.001273030910096, 0.058422162863938, 0.397545171405919, 0.542746951444427],
        [0, -0.455696202531645, 0.518987341772152, 0.936708860759493],
    ],
    "poly(x, 3)": [
        [-0.4486378363214412, 0.4376803390078658, -0.4221568816511197],
        [-0.385300730017237802, 0.228543998252055375, 0.004531079311049234],
        [-0.27973888617689868, -0.05754282034819797, 0.39522202722796274],
        [-0.1319523048004239, -0.3268694928037466, 0.4315645159350262],
        [0.058059014112186495, -0.448241145529783891, -0.007469410467272253],
        [0.1847332267205934, -0.3885896446967546, -0.3486654874450753],
        [0.41696928316933951, 0.01283621826330804, -0.44858244780031586],
        [0.5858682333138822, 0.5421825478552539, 0.3955566048897450],
    ],
}


@pytest.mark.parametrize("expression", R_VALUES)
def test_bases_are_rs(expression, data):
    # the stored numbers have 15 digits
    values = columns(expression, data)
    np.testing.assert_allclose(values, R_VALUES[expression], rtol=0, atol=2e-15)


def test_ns_is_linear_outside_as_in_r(data):
    # predict(ns(x, df=4), c(-1, 2, 7))
    state = {}
    columns("ns(x, df=4)", data, state)
    values = columns("ns(x, df=4)", Lookup(x=np.array([-1.0, 2.0, 7.0])), state)
    expected = [
        [0.0, 0.3482649255995714, -0.9804997136111010, 0.6322347880115295],
        [0.63837502442120853, 0.05669548778, 0.20989852740097992, -0.1353444056465334],
        [0.0, -1.5475037762887798, 0.6645106317053333, 1.8829931445834465],
    ]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-11)


def test_bs_extends_as_in_r(data):
    # predict(bs(x, df=5), c(-0.5, 2, 6))
    state = {}
    expression = "bs(x, df=5, extrapolation='extend')"
    columns(expression, data, state)
    values = columns(expression, Lookup(x=np.array([-0.5, 2.0, 6.0])), state)
    expected = [
        [-3.42132605450625960, 0.48741592667987388, -0.01523558732248662, 0, 0],
        [0.05263284559106660, 0.55578658873159825, 0.36693560123697888, 0.024644964, 0],
        [0, -0.02513320599175632, 0.48508532001215626, -2.67677535125180, 3.2168232372],
    ]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "expression", ["poly(v, 2)", "bs(v, df=4)", "ns(v, df=3)", "cr(v, df=3)"]
)
def test_missing_rows_stay_missing(expression):
    full = columns(expression, Lookup(v=X))
    gap = columns(expression, Lookup(v=np.r_[X[:3], np.nan, X[3:]]))
    assert np.isnan(gap[3]).all()
    np.testing.assert_allclose(np.delete(gap, 3, axis=0), full, rtol=0, atol=1e-14)


# --- state ----------------------------------------------------------------------------

STATEFUL = [
    "center(x)",
    "scale(x)",
    "poly(x, 3)",
    "poly(center(x), 2)",
    "bs(x, df=5)",
    "ns(x, df=3)",
    "cr(x, df=4)",
    "cc(x, df=4)",
    "cr(x, df=4, constraints='center')",
]


@pytest.mark.parametrize("expression", STATEFUL)
def test_state_rebuilds_the_same_columns(expression, data):
    state = {}
    full = columns(expression, data, state)
    saved = json.loads(json.dumps(state))
    some = Lookup(x=X[2:5])
    np.testing.assert_allclose(columns(expression, some, state), full[2:5], atol=1e-14)
    np.testing.assert_allclose(columns(expression, some, saved), full[2:5], atol=1e-14)
    np.testing.assert_array_equal(columns(expression, data, state), full)


@pytest.mark.parametrize("expression", ["g", "C(g)", "C(g, contr.sum)", "lag(g)"])
def test_state_keeps_levels(expression, data):
    state = {}
    fitted = evaluate(expression, data, state)
    again = evaluate(expression, Lookup(g=pd.Series(["b", "b"])), state)
    assert again.levels == fitted.levels == ("a", "b", "c")
    assert again.codes.tolist()[-1] == 1


@pytest.mark.parametrize("expression", ["g", "C(g)"])
def test_unseen_levels_are_listed(expression, data):
    state = {}
    evaluate(expression, data, state)
    new = Lookup(g=pd.Series(["a", "zebra"]))
    with pytest.raises(DesignError, match=r"'zebra'.*levels are 'a', 'b', 'c'"):
        evaluate(expression, new, state)


def test_kind_must_not_change(data):
    state = {}
    evaluate("x", data, state)
    evaluate("g", data, state)
    with pytest.raises(DesignError, match="was numeric"):
        evaluate("x", Lookup(x=pd.Series(["a"])), state)
    with pytest.raises(DesignError, match="was categorical"):
        evaluate("g", Lookup(g=np.ones(2)), state)


def test_failure_leaves_no_state():
    state = {}
    with pytest.raises(DesignError):
        evaluate("poly(x, 3)", Lookup(x=np.ones(5)), state)
    assert state == {}


# --- functions of the user ------------------------------------------------------------


def double(x, by=2):
    return x * by


def test_user_functions(data):
    context = {"double": double, "both": lambda x: np.column_stack([x, x])}
    np.testing.assert_array_equal(
        columns("double(x, by=3) + 1", data, context=context), 3 * X + 1
    )
    both = evaluate("both(x)", data, {}, context)
    assert (both.values.shape, both.names) == ((8, 2), ("[1]", "[2]"))


def overwrite(x):
    x[0] = 0.0
    return x


@pytest.mark.parametrize(
    "function",
    [
        lambda x: "text",
        lambda x: x[:2],
        lambda x: np.ones((8, 2, 2)),
        lambda x: np.array(["a"] * 8),
        lambda x: 1 / 0,
        overwrite,
    ],
)
def test_user_functions_must_behave(function, data):
    with pytest.raises(DesignError, match="`f\\(x\\)`"):
        evaluate("f(x)", data, {}, {"f": function})
    assert data("x")[0] == 0.1


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("xx", "no column 'xx'.*did you mean 'x'"),
        ("nothing_like_it", "the columns are 'x', 'z'"),
        ("log(g)", "not numeric.*C\\(g\\)"),
        ("g + 1", "not numeric"),
        ("g > 'a'", "== or !="),
        ("g == 1", "compared with numbers"),
        ("g in [1, 2]", "text in quotes"),
        ("poly(x, 8)", "more than 8 distinct values"),
        ("poly(b, 2)", "distinct values"),
        ("poly(x, 0)", "at least 1"),
        ("poly(x, 2.5)", "whole number"),
        ("poly(x, deg=2)", "degree=1"),
        ("poly(3)", "needs a column"),
        ("scale(x - x)", "standard deviation is zero"),
        ("bs(x, df=1)", "df"),
        ("cr(x)", "df"),
        ("ns(x, df=3, knots=[1])", "not both"),
        ("ns(x, knots=[9])", "boundary"),
        ("log(x, 2, 3)", "too many"),
        ("log(1)", "constant"),
        ("1 + 2", "constant"),
        ("2 > 1", "compares constants"),
        ("C(g, contr.nope)", "does not exist"),
        ("C(g, contr.sum(base=1))", "no options"),
        ("C(g, contr.treatment(base=g))", "quotes"),
        ("C(g, 3)", "contrasts"),
        ("C(poly(x, 2))", "one column"),
        ("I(x, z)", "one expression"),
        ("lag(x, 1.5)", "whole number"),
        ("f(x)", "may call"),
        ("x.real", "attributes"),
        ("x[0]", "not allowed"),
        ("(lambda: 1)()", "may call"),
        ("[v for v in x]", "not allowed"),
        ("x if z else n", "not allowed"),
        ("f'{x}'", "not allowed"),
        ("b'abc'", "not allowed"),
        ("log(*x)", "not allowed"),
        ("log(**x)", "not allowed"),
        ("__import__('os').system('true')", "attributes"),
        ("x ** 9 ** 9 ** 9 @ z", "operator"),
        ("x +", "cannot read"),
    ],
)
def test_errors_say_what_to_do(expression, message, data):
    with pytest.raises(DesignError, match=message):
        evaluate(expression, data, {})


def test_big_constants_do_not_hang(data):
    assert np.isinf(columns("x + 9 ** 9 ** 9 ** 9", data)).all()


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.date_range("2020-01-01", periods=3)),
        pd.Series(pd.date_range("2020-01-01", periods=3, tz="UTC")),
        pd.Series(pd.period_range("2020-01", periods=3, freq="M")),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
)
def test_dates_are_refused(column):
    with pytest.raises(DesignError, match="days since"):
        evaluate("t", Lookup(t=column), {})


@pytest.mark.parametrize(
    "column", [np.ones((3, 2)), np.ones(3, dtype=complex), pd.Series([None, None])]
)
def test_odd_columns_are_refused(column):
    with pytest.raises(DesignError):
        evaluate("v", Lookup(v=column), {})


def test_extrapolation_hint(data):
    state = {}
    columns("bs(x, df=4)", data, state)
    with pytest.raises(DesignError, match="extrapolation='extend'"):
        columns("bs(x, df=4)", Lookup(x=np.array([99.0])), state)


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["my col", "a.b", "µ", "ﬁ", "class", "x²", "None", "1"]
)
def test_odd_names(name):
    lookup = Lookup(**{name: X})
    quoted = quote_name(name)
    np.testing.assert_array_equal(columns(quoted, lookup), X)
    np.testing.assert_array_equal(columns(f"log({quoted})", lookup), np.log(X))
    assert expression_variables(f"log({quoted})") == (name,)


def test_every_transform_is_documented():
    assert all(transform.summary for transform in TRANSFORMS.values())


def test_numeric_is_frozen():
    with pytest.raises(AttributeError):
        Numeric(X).values = X
