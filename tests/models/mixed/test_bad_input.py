"""Bad input: what is refused, in which words, and what is mended with a note."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    FormulaError,
    ModelError,
    RankWarning,
    SingularFitWarning,
)
from deepstats.models.mixed import LinearMixed

N = 60


@pytest.fixture
def data() -> pd.DataFrame:
    rng = np.random.default_rng(20240611)
    g = np.arange(N) % 6
    x = rng.normal(size=N)
    return pd.DataFrame(
        {
            "g": g,
            "h": np.arange(N) // 10,
            "row": np.arange(N),
            "x": x,
            "z": rng.normal(size=N),
            "w": rng.uniform(0.5, 2.0, N),
            "one": 1.0,
            "f": np.where(np.arange(N) % 2, "u", "v"),
            "y": 1 + x + rng.normal(size=6)[g] + rng.normal(size=N),
        }
    )


def fit(data, formula="y ~ x + (1 | g)", reml=True, **options):
    return LinearMixed(formula, data, **options).fit(reml)


# -- grouping factors ----------------------------------------------------------------


def test_one_level(data):
    with pytest.raises(DesignError, match="grouping factor one of .* has one level"):
        fit(data, "y ~ x + (1 | one)")


def test_one_level_is_left(data):
    """Counted in the rows that are used, not in those that are there."""
    data.loc[data["g"] > 0, "x"] = np.nan
    with pytest.raises(DesignError, match="one level in the rows used"):
        fit(data)


def test_as_many_levels_as_rows(data):
    with pytest.raises(DesignError, match="as many levels .* Leave the term out, or"):
        fit(data, "y ~ x + (1 | row)")


def test_as_many_levels_as_rows_with_known_sigma(data):
    result = fit(data, "y ~ x + (1 | row)", sigma=0.5)
    assert result.sigma == 0.5
    assert result.varcorr["vcov"].iloc[0] > 0


def test_more_effects_than_rows(data):
    effects = " + ".join(f"I(x**{j}) + I(z**{j})" for j in range(1, 6))
    with pytest.raises(DesignError, match="random effects and the data 60 rows"):
        fit(data, f"y ~ x + (1 + {effects} | g)")


def test_missing_levels_are_dropped_and_counted(data):
    holed = data.assign(g=data["g"].where(data["row"] > 2))
    result = fit(holed)
    assert result.nobs == N - 3
    assert "3 rows" in result.summary().as_text()
    same = fit(data.iloc[3:])
    assert result.llf == pytest.approx(same.llf, abs=1e-10)


@pytest.mark.parametrize("column", ("g", "x", "y"))
def test_missing_values_can_be_refused(data, column):
    holed = data.assign(**{column: data[column].where(data["row"] > 2)})
    with pytest.raises(DesignError, match=rf"3 rows have missing values, in {column}"):
        fit(holed, na_action="raise")


def test_no_complete_row(data):
    with pytest.raises(DesignError, match="no row is complete"):
        fit(data.assign(y=np.nan))


@pytest.mark.parametrize("terms", ("(1 | g) + (1 | g)", "(1 | g) + (1 | twin)"))
def test_factors_that_group_alike(data, terms):
    data["twin"] = 10 - data["g"]
    with pytest.raises(DesignError, match="group the rows alike: only the sum"):
        fit(data, f"y ~ x + {terms}")


@pytest.mark.parametrize("reml", (False, True))
def test_factor_that_the_fixed_effects_tell_apart(data, reml):
    with pytest.raises(DesignError, match="tell the levels of g apart, .* leave one"):
        fit(data, "y ~ x + C(g) + (1 | g)", reml)


def test_levels_that_do_not_occur_are_no_levels(data):
    wide = data.assign(g=pd.Categorical(data["g"], categories=range(-3, 12)))
    assert fit(wide).ngroups == {"g": 6}
    assert fit(wide).llf == pytest.approx(fit(data).llf, abs=1e-10)


@pytest.mark.parametrize(
    "labels",
    [
        lambda g: g.astype("uint8"),
        lambda g: g.astype("int8") - 3,
        lambda g: g + 2**62,
        lambda g: g / 3,
        lambda g: g.astype(str),
        lambda g: pd.Timestamp("2020-01-01") + pd.to_timedelta(g, unit="D"),
    ],
    ids=["uint8", "negative", "huge", "fractions", "text", "dates"],
)
def test_labels_of_any_kind(data, labels):
    other = fit(data.assign(g=labels(data["g"])))
    assert other.llf == pytest.approx(fit(data).llf, abs=1e-10)
    assert len(other.ranef()["g"]) == 6


# -- columns before the bar ----------------------------------------------------------


@pytest.mark.parametrize("term", ("(1 + one | g)", "(one | g)", "(one || g)"))
def test_slope_of_a_constant(data, term):
    with pytest.raises(DesignError, match=r"one is constant, .* leave it out"):
        fit(data, f"y ~ x + {term}")


def test_slope_of_all_but_a_constant(data):
    with pytest.raises(DesignError, match="flat is constant"):
        fit(data.assign(flat=3 + 1e-9 * data["x"]), "y ~ x + (flat | g)")


def test_slope_of_zeros(data):
    with pytest.raises(DesignError, match="nil in .* is zero in every row"):
        fit(data.assign(nil=0.0), "y ~ x + (0 + nil | g)")


def test_slopes_that_determine_one_another(data):
    with pytest.raises(DesignError, match="x, twice determine one another; leave one"):
        fit(data.assign(twice=2 * data["x"]), "y ~ x + (x + twice | g)")


# -- the fixed part ------------------------------------------------------------------


def test_rank_deficient_fixed_part(data):
    data["twice"] = 2 * data["x"]
    with pytest.warns(RankWarning, match="twice: linear combinations of earlier"):
        result = fit(data, "y ~ x + twice + (1 | g)")
    assert result.llf == pytest.approx(fit(data).llf, abs=1e-10)
    table = result.tidy().set_index("term")
    assert table.loc["twice", ["estimate", "std_error"]].isna().all()
    assert not table.drop("twice")["estimate"].isna().any()
    assert "twice" in result.summary().as_text()


def test_rank_deficient_by_empty_cells(data):
    data["k"] = np.where(data["f"] == "u", "a", np.where(data["h"] > 2, "b", "a"))
    with pytest.warns(RankWarning, match=r"f\[T.v\]:k|k\[T.b\]"):
        result = fit(data, "y ~ f * k + (1 | g)")
    assert result.tidy()["estimate"].isna().sum() == 1


@pytest.mark.parametrize("reml", (False, True))
def test_as_many_fixed_effects_as_rows(data, reml):
    powers = " + ".join(f"I(x**{j})" for j in range(1, 8))
    with pytest.raises(DesignError, match="fit the response exactly"):
        fit(data.iloc[:8], f"y ~ {powers} + (1 | f)", reml)


# -- the response --------------------------------------------------------------------


@pytest.mark.parametrize("value", (0.0, 3.0, -1e6))
def test_constant_response(data, value):
    with pytest.raises(DesignError, match="y is constant"):
        fit(data.assign(y=value))


def test_response_without_error(data):
    with pytest.raises(DesignError, match="fit the response exactly"):
        fit(data.assign(y=3 + 2 * data["x"]))


@pytest.mark.parametrize("size", (1e200, 1e-200))
def test_response_of_monstrous_size(data, size):
    with pytest.raises(DesignError, match="beyond what can be squared; rescale it"):
        fit(data.assign(y=size * data["y"]))


@pytest.mark.parametrize("size", (1e60, 1e-60))
def test_response_of_great_size_is_rescaled(data, size):
    plain, large = fit(data), fit(data.assign(y=size * data["y"]))
    np.testing.assert_allclose(large.params, size * plain.params, rtol=1e-8)
    np.testing.assert_allclose(large.theta, plain.theta, rtol=1e-5)


@pytest.mark.parametrize("column", ("x", "y", "g", "z"))
def test_infinite_values(data, column):
    data[column] = data[column].astype(float)
    data.loc[4, column] = np.inf
    with pytest.raises(DesignError, match=rf"'{column}' is infinite in 1 rows .*row 4"):
        fit(data, "y ~ x + (z | g)")


def test_integers_do_not_overflow(data):
    """Cross-products of small integers are beyond their type."""
    small = data.assign(x=(20 * data["x"]).round().astype("int8"))
    wide = small.assign(x=small["x"].astype(float))
    formula = "y ~ x + (x | g)"
    one, two = _quietly(small, formula), _quietly(wide, formula)
    assert one.llf == pytest.approx(two.llf, abs=1e-10)


def _quietly(data, formula):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return fit(data, formula)


def test_categorical_response(data):
    with pytest.raises(DesignError, match="f is categorical.* needs numbers"):
        fit(data, "f ~ x + (1 | g)")


def test_several_responses(data):
    with pytest.raises(DesignError, match="has one response"):
        fit(data, "y + x ~ 1 + (1 | g)")


# -- weights and offset --------------------------------------------------------------


def test_weights_of_zero(data):
    data.loc[[1, 5], "w"] = 0.0
    with pytest.raises(DesignError, match="2 weights are zero: .* leave them out"):
        fit(data, weights="w")


def test_negative_weights(data):
    data.loc[1, "w"] = -1.0
    with pytest.raises(DesignError, match="weights must be finite and not negative"):
        fit(data, weights="w")


def test_infinite_weights(data):
    with pytest.raises(DesignError, match="weights|infinite"):
        fit(data, weights=np.where(data["row"] == 3, np.inf, 1.0))


def test_missing_weights_are_dropped(data):
    holed = data.assign(w=data["w"].where(data["row"] > 1))
    assert fit(holed, weights="w").nobs == N - 2


def test_wrong_number_of_weights(data):
    with pytest.raises(DesignError, match=r"shape \(3,\); .* each of the 60 rows"):
        fit(data, weights=np.ones(3))


def test_unknown_weights(data):
    with pytest.raises(DesignError, match="no column 'weight'"):
        fit(data, weights="weight")


def test_infinite_offset(data):
    with pytest.raises(DesignError, match="offset is not finite in 1 rows"):
        fit(data, offset=np.where(data["row"] == 3, np.inf, 1.0))


# -- names and formulas --------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x + (1 | gg)", "no column 'gg'. Did you mean 'g'"),
        ("y ~ xx + (1 | g)", "no column 'xx'. Did you mean 'x'"),
        ("y ~ x + (zz | g)", "no column 'zz'. Did you mean 'z'"),
    ],
)
def test_unknown_columns_are_guessed(data, formula, message):
    with pytest.raises(DesignError, match=message):
        fit(data, formula)


@pytest.mark.parametrize(
    ("formula", "error", "message"),
    [
        ("y ~ x", ModelError, "no random effects .* use ds.ols"),
        ("y ~ x + rr(x | g)", ModelError, "do not have the structure rr"),
        ("y ~ x + cs(1 | g)", ModelError, "at least two"),
        ("y ~ x + (1 | g) | h", ModelError, "no use for what follows"),
        ("y ~ traj(x) + (1 | g)", FormulaError, "must be the whole formula"),
        ("~ x + (1 | g)", DesignError, "no response"),
        ("y ~ x + (1 | g", FormulaError, "never closed"),
        ("y ~ x + (1 | )", FormulaError, "expected a grouping factor"),
        ("y ~ x + (1 | 1)", FormulaError, "expected a grouping factor"),
        ("y ~ x + ( | g)", FormulaError, "expected what varies"),
        ("y ~ x + (0 | g)", FormulaError, "nothing varies"),
    ],
)
def test_formulas_that_are_no_mixed_model(data, formula, error, message):
    with pytest.raises(error, match=message):
        fit(data, formula)


# -- data ----------------------------------------------------------------------------


def test_no_rows(data):
    with pytest.raises(DesignError, match="no rows"):
        fit(data.iloc[:0])


@pytest.mark.parametrize("rows", (1, 2))
def test_a_row_or_two(data, rows):
    with pytest.raises(DesignError, match="one level|as many levels"):
        fit(data.iloc[:rows])


def test_no_data():
    with pytest.raises(DesignError, match="must be a pandas or polars frame"):
        LinearMixed("y ~ x + (1 | g)", None)


def test_index_with_repeated_labels(data):
    result = fit(data.set_index(np.zeros(N, dtype=int)))
    assert result.llf == pytest.approx(fit(data).llf, abs=1e-12)
    assert len(result.fittedvalues) == N


# -- options -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", (0, -1.0, np.nan, np.inf, "large"))
def test_sigma_must_be_positive(data, sigma):
    with pytest.raises(ValueError, match="sigma must be a positive number, not"):
        LinearMixed("y ~ x + (1 | g)", data, sigma=sigma)


def test_single_precision_is_refused(data):
    with pytest.raises(ModelError, match="float64"):
        LinearMixed("y ~ x + (1 | g)", data, dtype="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ddf": "sat"}, "ddf must be one of satterthwaite, kenward-roger"),
        ({"start": [1.0, 2.0]}, r"start needs 1 values: g\.Intercept"),
        ({"start": {"h": 1.0}}, r"start lacks g\.Intercept"),
        ({"start": [np.nan]}, "start must be numbers of ordinary size"),
        ({"start": [1e200]}, "start must be numbers of ordinary size"),
        ({"start": ["a"]}, "start must be numbers of ordinary size"),
        ({"maxiter": 0}, "maxiter must be a positive integer"),
        ({"maxiter": 2.5}, "maxiter must be a positive integer"),
        ({"tol": 0.0}, "tol must be a positive number"),
        ({"tol": np.nan}, "tol must be a positive number"),
    ],
)
def test_options_of_fit(data, options, message):
    with pytest.raises(ValueError, match=message):
        LinearMixed("y ~ x + (1 | g)", data).fit(**options)


def test_kenward_roger_needs_reml(data):
    with pytest.raises(ModelError, match=r"need a REML fit; use fit\(reml=True\)"):
        LinearMixed("y ~ x + (1 | g)", data).fit(reml=False, ddf="kenward-roger")


def test_too_few_steps_are_told(data):
    model = LinearMixed("y ~ x + (1 | g)", data)
    with pytest.warns(ConvergenceWarning, match="did not converge: .* Raise maxiter="):
        result = model.fit(maxiter=1)
    assert not result.converged


def test_singular_fit_says_what_is_singular(data):
    noise = np.random.default_rng(1).normal(size=N)
    data["y"] = noise - pd.Series(noise).groupby(data["g"]).transform("mean")
    with pytest.warns(SingularFitWarning, match=r"variance of Intercept in \(1 \| g\)"):
        result = fit(data)
    assert result.singular
    assert result.varcorr["vcov"].iloc[0] == 0.0
