"""Bad input and hard data: what is refused, in which words, and what is warned of."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import deepstats as ds
from deepstats.errors import (
    BoundaryWarning,
    ConvergenceWarning,
    DesignError,
    FormulaError,
    ModelError,
    RankWarning,
    SeparationWarning,
    SingularFitWarning,
)
from deepstats.models.glmm import MixedGLM, MixedGLMResults

N, GROUPS = 120, 12


@pytest.fixture
def data() -> pd.DataFrame:
    rng = np.random.default_rng(20240611)
    row = np.arange(N)
    g, x = row % GROUPS, rng.normal(size=N)
    eta = 0.4 * x + 0.7 * rng.normal(size=GROUPS)[g]
    chance = 1 / (1 + np.exp(-2 * eta))
    return pd.DataFrame(
        {
            "row": row,
            "g": g,
            "h": row // 20,
            "x": x,
            "z": rng.normal(size=N),
            "w": rng.uniform(0.5, 2.0, N),
            "one": 1.0,
            "n": 5,
            "y": rng.poisson(np.exp(0.5 + eta)),
            "b": rng.binomial(1, chance),
            "s": rng.binomial(5, chance),
            "f": np.where(row % 2, "u", "v"),
            "c": eta + rng.normal(size=N),
        }
    )


def fit(data, formula="y ~ x + (1 | g)", family="poisson", nagq=1, **options):
    return MixedGLM(formula, data, family=family, **options).fit(nagq=nagq)


def quiet(data, *args, **options) -> MixedGLMResults:
    """Fit where warnings are expected, and not what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(data, *args, **options)


def finite(results: MixedGLMResults) -> bool:
    numbers = (*results.params, *results.bse, *results.varcorr["vcov"], results.llf)
    return bool(np.isfinite(numbers).all())


# -- estimates that are infinite -----------------------------------------------------


@pytest.fixture
def levels(data) -> pd.DataFrame:
    """A level of three in which no response is above zero."""
    level = np.where(data["row"] < 15, "a", np.where(data["row"] < 60, "b", "c"))
    alive = level != "a"
    return data.assign(
        level=level, y=data["y"] * alive, b=data["b"] * alive, s=data["s"] * alive
    )


SEPARATED = {
    "binomial": ("b ~ level + x + (1 | g)", {"family": "binomial"}),
    "probit": ("b ~ level + (1 | g)", {"family": "binomial", "link": "probit"}),
    "cloglog": ("b ~ level + (1 | g)", {"family": "binomial", "link": "cloglog"}),
    "quadrature": ("b ~ level + (1 | g)", {"family": "binomial", "nagq": 5}),
    "cbind": ("cbind(s, n - s) ~ level + (1 | g)", {"family": "binomial"}),
    "betabinomial": ("cbind(s, n - s) ~ level + (1 | g)", {"family": "betabinomial"}),
    "poisson": ("y ~ level + x + (1 | g)", {"family": "poisson"}),
    "nb2": ("y ~ level + (1 | g)", {"family": "nb2"}),
    "zip": ("y ~ level + (1 | g)", {"family": "zip"}),
}


@pytest.mark.filterwarnings("ignore::deepstats.errors.BoundaryWarning")
@pytest.mark.parametrize("name", SEPARATED)
def test_separated_level(levels, name):
    formula, options = SEPARATED[name]
    with pytest.warns(SeparationWarning, match=r"Intercept, level\[T.b\], .* infinite"):
        results = fit(levels, formula, **options)
    assert "predicted perfectly" in results.summary().as_text()
    assert np.isfinite(results.llf)


def test_separation_names_only_what_is_infinite(data):
    only = np.where(data["b"] == 1, data["z"] > 0, False).astype(float)
    with pytest.warns(SeparationWarning, match="estimate of only is infinite"):
        results = fit(data.assign(only=only), "b ~ only + x + (1 | g)", "binomial")
    without = quiet(
        data[only == 0].reset_index(drop=True), "b ~ x + (1 | g)", "binomial"
    )
    assert results.params["x"] == pytest.approx(without.params["x"], rel=1e-3)
    assert results.llf == pytest.approx(without.llf, abs=1e-4)


def test_separation_by_a_continuous_variable(data):
    with pytest.warns(SeparationWarning, match="x are infinite"):
        fit(data.assign(b=(data["x"] > 0) * 1), "b ~ x + (1 | g)", "binomial")


def test_separation_of_the_hurdle(levels):
    with pytest.warns(SeparationWarning, match=r"whether a count .* zero:level\[T.b\]"):
        results = fit(levels, family="hurdle", zi_formula="~ level")
    counts = fit(
        levels[levels["y"] > 0].reset_index(drop=True), "y ~ x + (1 | g)", "ztp"
    )
    assert results.params["x"] == pytest.approx(counts.params["x"], rel=1e-3)


@pytest.mark.parametrize("nagq", (1, 9))
def test_groups_that_are_all_alike(data, nagq):
    alike = data.assign(b=(data["g"] < 6) * 1)
    with pytest.warns(SeparationWarning, match=r"level of g .* \(1 \| g\) is infinite"):
        fit(alike, "b ~ x + (1 | g)", "binomial", nagq)


def test_no_excess_zeros(data):
    with pytest.warns(BoundaryWarning, match="no maximum in inflate:Intercept"):
        results = fit(data.assign(y=data["y"] + 1), family="zip")
    plain = fit(data.assign(y=data["y"] + 1))
    assert results.llf == pytest.approx(plain.llf, abs=1e-5)
    assert results.params["x"] == pytest.approx(plain.params["x"], abs=1e-5)


@pytest.mark.filterwarnings("ignore::deepstats.errors.SingularFitWarning")
def test_no_overdispersion(data):
    even = data.assign(y=3 + data["row"] % 2)
    with pytest.warns(BoundaryWarning, match="no maximum in alpha"):
        results = fit(even, family="nb2")
    assert results.params["alpha"] < 1e-5
    assert results.llf == pytest.approx(quiet(even).llf, abs=1e-3)


# -- nothing but zeros ---------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ("poisson", "nb1", "nb2", "zip", "zinb", "hurdle", "hurdlenb")
)
@pytest.mark.parametrize("formula", ("y ~ x + (1 | g)", "y ~ 0 + x + (1 | g)"))
def test_all_counts_are_zero(data, family, formula):
    with pytest.raises(DesignError, match="nothing to explain"):
        fit(data.assign(y=0), formula, family)


@pytest.mark.parametrize("value", (0, 1))
def test_all_responses_are_alike(data, value):
    with pytest.raises(DesignError, match="nothing to explain"):
        fit(data.assign(b=value), "b ~ 0 + x + (1 | g)", "binomial")


@pytest.mark.parametrize("response, family", (("y", "poisson"), ("b", "binomial")))
def test_groups_of_zeros(data, response, family):
    data.loc[data["g"].isin([0, 1, 2]), response] = 0
    results = fit(data, f"{response} ~ x + (1 | g)", family)
    assert results.converged and finite(results)
    effects = results.ranef()["g"]["Intercept"]
    assert effects.loc[:2].max() < effects.loc[3:].min() + 1


# -- the edge of the range -----------------------------------------------------------


@pytest.mark.parametrize(
    "term", ("(1 | g)", "(x | g)", "(x || g)", "(1 | g) + (1 | h)")
)
def test_variance_of_zero(data, term):
    even = data.assign(y=3 + data["row"] % 2)
    with pytest.warns(SingularFitWarning, match="singular fit: "):
        results = fit(even, f"y ~ x + {term}")
    assert results.converged and results.singular
    plain = ds.glm("y ~ x", even, family="poisson").fit()
    np.testing.assert_allclose(results.params, plain.params, atol=1e-5)
    assert results.llf == pytest.approx(plain.llf, abs=1e-6)
    assert "singular fit" in results.summary().as_text()


def test_standard_errors_at_a_variance_of_zero(data):
    even = data.assign(y=3 + data["row"] % 2)
    plain = ds.glm("y ~ x", even, family="poisson").fit()
    # The Hessian is by differences: good to about 1e-4.
    np.testing.assert_allclose(quiet(even).bse, plain.bse, rtol=1e-4)


@pytest.mark.parametrize("mean", (1e6, 1e7))
@pytest.mark.parametrize("nagq", (1, 5))
def test_huge_counts(mean, nagq):
    """Where the Poisson's own variance is nothing, groups' logarithms are all."""
    rng = np.random.default_rng(2)
    g, x = np.arange(N) % GROUPS, rng.normal(size=N)
    effects = rng.normal(size=GROUPS)
    y = rng.poisson(mean * np.exp(0.3 * x + effects[g]))
    results = fit(pd.DataFrame({"y": y, "x": x, "g": g}), nagq=nagq)
    assert results.converged and finite(results)
    assert results.params["x"] == pytest.approx(0.3, abs=1e-3)
    assert results.varcorr["sdcor"][0] == pytest.approx(effects.std(), rel=1e-3)
    wanted = np.log(mean) + effects.mean()
    assert results.params["Intercept"] == pytest.approx(wanted, abs=1e-2)
    error = effects.std() / np.sqrt(GROUPS)
    assert results.bse["Intercept"] == pytest.approx(error, rel=2e-3)


def test_huge_numbers_of_trials(data):
    rng = np.random.default_rng(3)
    chance = 1 / (1 + np.exp(-0.3 * data["x"] - np.sin(data["g"])))
    many = data.assign(n=10**6, s=rng.binomial(10**6, chance))
    results = fit(many, "cbind(s, n - s) ~ x + (1 | g)", "binomial")
    assert results.converged and finite(results)
    assert results.params["x"] == pytest.approx(0.3, abs=1e-2)
    sd = np.sin(np.arange(GROUPS)).std()
    assert results.varcorr["sdcor"][0] == pytest.approx(sd, rel=1e-3)


def test_tiny_means(data):
    results = fit(data.assign(y=data["row"].isin([3, 50, 51]) * 1))
    assert results.converged and finite(results)


def test_units_of_the_exposure_move_the_intercept_alone(data):
    one = fit(data, exposure="w")
    other = fit(data.assign(w=data["w"] * 1e8), exposure="w")
    assert other.params["x"] == pytest.approx(one.params["x"], abs=1e-6)
    moved = one.params["Intercept"] - other.params["Intercept"]
    assert moved == pytest.approx(np.log(1e8), abs=1e-6)
    assert other.llf == pytest.approx(one.llf, abs=1e-6)


@pytest.mark.parametrize("scale", (1e-8, 1e8))
def test_units_of_a_slope(data, scale):
    one = fit(data, "y ~ x + (x | g)")
    other = fit(data.assign(x=data["x"] * scale), "y ~ x + (x | g)")
    assert other.llf == pytest.approx(one.llf, abs=1e-5)
    assert other.params["x"] * scale == pytest.approx(one.params["x"], rel=1e-3)


def test_too_few_steps(data):
    with pytest.warns(ConvergenceWarning, match="not converged in 1 iter.* raise max"):
        results = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit(maxiter=1)
    assert not results.converged
    assert "NO" in results.summary().as_text()


# -- groups and columns --------------------------------------------------------------


def test_one_level(data):
    with pytest.raises(DesignError, match="grouping factor one of .* has one level"):
        fit(data, "y ~ x + (1 | one)")


def test_missing_levels_are_dropped_and_counted(data):
    results = fit(data.assign(g=data["g"].where(data["row"] > 2)))
    assert results.nobs == N - 3
    assert "3 rows" in results.summary().as_text()
    assert results.llf == pytest.approx(fit(data.iloc[3:]).llf, abs=1e-8)


def test_missing_values_can_be_refused(data):
    holed = data.assign(g=data["g"].where(data["row"] > 2))
    with pytest.raises(DesignError, match="3 rows have missing values, in g"):
        fit(holed, na_action="raise")


@pytest.mark.parametrize("term", ("(one | g)", "(1 + one | g)", "(one || g)"))
def test_slope_of_a_constant(data, term):
    with pytest.raises(DesignError, match="one is constant, .* leave it out"):
        fit(data, f"y ~ x + {term}")


def test_slope_of_zeros(data):
    with pytest.raises(DesignError, match="nil in .* is zero in every row"):
        fit(data.assign(nil=0.0), "y ~ x + (0 + nil | g)")


def test_slopes_that_determine_one_another(data):
    with pytest.raises(DesignError, match="x, twice determine one another"):
        fit(data.assign(twice=2 * data["x"]), "y ~ x + (0 + x + twice | g)")


@pytest.mark.parametrize("terms", ("(1 | g) + (1 | g)", "(1 | g) + (1 | twin)"))
def test_factors_that_group_alike(data, terms):
    with pytest.raises(DesignError, match="group the rows alike: only the sum"):
        fit(data.assign(twin=20 - data["g"]), f"y ~ x + {terms}")


def test_level_for_every_row(data):
    """Overdispersion of counts; a Gaussian response has that already."""
    assert finite(fit(data, "y ~ x + (1 | row)"))
    with pytest.raises(DesignError, match="told from the residual's"):
        fit(data, "c ~ x + (1 | row)", "gaussian")


def test_columns_that_are_determined_are_dropped(data):
    twice = data.assign(twice=2 * data["x"])
    with pytest.warns(RankWarning, match="twice: linear combinations"):
        results = fit(twice, "y ~ x + twice + (1 | g)")
    assert "twice: linear combinations" in results.summary().as_text()
    assert results.llf == pytest.approx(fit(data).llf, abs=1e-8)


def test_columns_of_the_zero_part_are_dropped(data):
    twice = data.assign(twice=2 * data["z"])
    options = {"family": "hurdle", "zi_formula": "~ z + twice"}
    with pytest.warns(RankWarning, match="twice: linear combinations"):
        results = fit(twice, **options)
    assert "zero:twice" not in results.params
    options["zi_formula"] = "~ z"
    assert results.llf == pytest.approx(fit(data, **options).llf, abs=1e-7)


@pytest.mark.parametrize("nagq", (1, 5))
def test_no_fixed_effects(data, nagq):
    """Equal to an intercept that is known: its column, moved to the offset."""
    results = fit(data, "y ~ 0 + (1 | g)", nagq=nagq)
    assert results.converged and not len(results.params)
    assert "Fixed effects" in results.summary().as_text()
    known = fit(data, "y ~ 1 + (1 | g)", nagq=nagq)
    at = known.params["Intercept"]
    moved = fit(data.assign(at=at), "y ~ 0 + (1 | g)", nagq=nagq, offset="at")
    assert moved.llf == pytest.approx(known.llf, abs=1e-6)


def test_fewer_rows_than_coefficients(data):
    with pytest.raises(DesignError, match="4 rows cannot determine 5"):
        fit(data.head(4), "y ~ x + z + w + c + (1 | g)")


# -- what is not there ---------------------------------------------------------------


@pytest.mark.parametrize("structure", ("ar1", "cs", "toep", "homdiag", "hcs", "rr"))
def test_structured_covariances(data, structure):
    with pytest.raises((ModelError, FormulaError)) as caught:
        fit(data, f"y ~ x + {structure}(0 + x | g)")
    assert structure in str(caught.value)


@pytest.mark.parametrize("family", ("multinomial", "mnlogit"))
def test_families_that_are_not_there(data, family):
    with pytest.raises(ModelError, match=f"{family} mixed models are not in this"):
        fit(data, family=family)


@pytest.mark.parametrize(
    "family, instead",
    [("quasipoisson", "nb1 or nb2"), ("quasibinomial", "betabinomial")],
)
def test_quasi_families(data, family, instead):
    with pytest.raises(ModelError, match=f"{family} has no likelihood.* use {instead}"):
        fit(data, family=family)


def test_unknown_family(data):
    with pytest.raises(ValueError, match="unknown family 'poison'.*poisson"):
        fit(data, family="poison")


@pytest.mark.parametrize("option", ("zi_formula", "disp_formula"))
def test_structure_of_one_column_in_another_part(data, option):
    with pytest.raises(ModelError, match="needs at least two"):
        fit(data, family="zinb", **{option: "~ ar1(0 + x | g)"})


@pytest.mark.parametrize("family", ("poisson", "binomial", "nb2", "gamma"))
def test_zero_part_of_a_family_without(data, family):
    with pytest.raises(ModelError, match="has no part for zeros"):
        fit(data, family=family, zi_formula="~ x")


@pytest.mark.parametrize("family", ("poisson", "binomial", "zip", "hurdle"))
def test_dispersion_of_a_family_without(data, family):
    with pytest.raises(ModelError, match="has no dispersion"):
        fit(data, family=family, disp_formula="~ x")


def test_degrees_of_freedom_are_no_dispersion(data):
    heavy = data.assign(c=data["c"] + 5 * (data["row"] % 17 == 0))
    results = quiet(heavy, "c ~ x + (1 | g)", "t", disp_formula="~ z")
    assert list(results.params.index) == [
        "Intercept", "x", "sigma:Intercept", "sigma:z", "nu",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ("y ~ x", "~ 0", "~ x | g"))
def test_formulas_of_other_parts(data, given):
    with pytest.raises((FormulaError, ModelError)):
        fit(data, family="zip", zi_formula=given)


def test_absorbed_effects(data):
    with pytest.raises(ModelError, match="no use for what follows '\\|'"):
        fit(data, "y ~ x + (1 | g) | h")


def test_no_random_effects(data):
    with pytest.raises(ModelError, match="no random effects such as .* use ds.glm"):
        fit(data, "y ~ x")


def test_quadrature_is_for_one_factor(data):
    with pytest.raises(ModelError, match=r"one grouping factor, .* has 2 \(g, h\)"):
        fit(data, "y ~ x + (1 | g) + (1 | h)", nagq=5)


def test_quadrature_with_too_many_points(data):
    with pytest.raises(ModelError, match="takes 125,000 points; use fewer"):
        fit(data, "y ~ x + (x + z | g)", nagq=50)


# -- options -------------------------------------------------------------------------


@pytest.mark.parametrize("nagq", (0, -1, 2.5, True, "9", None))
def test_numbers_of_points(data, nagq):
    with pytest.raises(ValueError, match="nagq must be a whole number"):
        fit(data, nagq=nagq)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"maxiter": 0}, "maxiter must be a positive"),
        ({"tol": -1.0}, "tol must be a positive"),
        ({"tol": np.inf}, "tol must be a positive"),
        ({"start": [1.0, 2.0]}, "start needs 1 values"),
        ({"start": [np.nan]}, "start must be numbers"),
        ({"start": {"h.Intercept": 1.0}}, "start lacks g.Intercept"),
    ],
)
def test_options_of_fit(data, options, match):
    with pytest.raises(ValueError, match=match):
        MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit(**options)


@pytest.mark.parametrize("value", (0.0, 0.3, 5.0))
def test_start_does_not_matter(data, value):
    found = MixedGLM("y ~ x + (1 | g)", data, family="poisson").fit(start=[value])
    assert found.llf == pytest.approx(fit(data).llf, abs=1e-7)


def test_unknown_options(data):
    with pytest.raises(TypeError, match="'points'"):
        fit(data, points=9)
    with pytest.raises(TypeError, match="'points'"):
        ds.fit("y ~ x + (1 | g)", data, family="poisson", points=9)


def test_robust_errors_of_fit(data):
    with pytest.raises(ModelError, match="cov_type='HC1'"):
        ds.fit("y ~ x + (1 | g)", data, family="poisson", cov_type="HC1")


@pytest.mark.parametrize("link", ("lgo", "logitt"))
def test_unknown_link(data, link):
    with pytest.raises(ValueError, match=f"unknown link '{link}'"):
        fit(data, link=link)


def test_information(data):
    with pytest.raises(ValueError, match="'observed' or 'expected', not 'both'"):
        fit(data, information="both")
    with pytest.raises(ModelError, match="no closed-form expected information"):
        fit(data, family="nb1", information="expected")


def test_single_precision(data):
    with pytest.raises(ModelError, match="float64"):
        fit(data, dtype="float32")


# -- weights, offsets, responses -----------------------------------------------------


@pytest.mark.parametrize("bad", (-1.0, np.inf))
def test_impossible_weights(data, bad):
    with pytest.raises(DesignError, match="weights must be finite and not negative"):
        fit(data, weights=np.where(data["row"] < 3, bad, 1.0))


@pytest.mark.parametrize("left, note", [(0.0, "weight zero"), (np.nan, "3 rows")])
def test_weights_that_leave_rows_out(data, left, note):
    results = fit(data, weights=np.where(data["row"] < 3, left, 1.0))
    assert results.nobs == N - 3
    assert note in results.summary().as_text()
    assert results.llf == pytest.approx(fit(data.iloc[3:]).llf, abs=1e-8)


def test_weights_of_zero_everywhere(data):
    with pytest.raises(DesignError, match="weights are all zero"):
        fit(data, weights=np.zeros(N))


def test_weights_are_repeated_rows_within_groups(data):
    """A prior weight multiplies the log-density, as a repeated row does."""
    times = 1 + data["row"] % 3
    weighted = fit(data, weights=times.to_numpy())
    repeated = fit(data.loc[data.index.repeat(times)].reset_index(drop=True))
    assert weighted.llf == pytest.approx(repeated.llf, abs=1e-7)
    np.testing.assert_allclose(weighted.bse, repeated.bse, rtol=1e-4)


def test_offset_in_the_formula_or_beside_it(data):
    one = fit(data, "y ~ x + offset(z) + (1 | g)")
    assert one.llf == pytest.approx(fit(data, offset="z").llf, abs=1e-9)
    assert one.llf != pytest.approx(fit(data).llf, abs=1e-3)


def test_exposure_is_the_exponential_of_an_offset(data):
    logs = data.assign(log_w=np.log(data["w"]))
    one = fit(logs, exposure="w")
    assert one.llf == pytest.approx(fit(logs, offset="log_w").llf, abs=1e-9)
    with pytest.raises(DesignError, match="exposure must be positive"):
        fit(data, exposure="z")


RESPONSES = {
    "negative": ("y - 9 ~ x + (1 | g)", "poisson", "are negative"),
    "fractions": ("c + 9 ~ x + (1 | g)", "poisson", "are not whole"),
    "two": ("y ~ x + (1 | g)", "binomial", r"outside \[0, 1\]"),
    "failures": ("cbind(s, n - 9 - s) ~ x + (1 | g)", "binomial", "negative or not"),
    "trials": ("cbind(s, n - s) ~ x + (1 | g)", "poisson", "needs a binomial family"),
    "text": ("f ~ x + (1 | g)", "poisson", "categorical"),
    "gamma": ("c ~ x + (1 | g)", "gamma", "^gamma: .* zero or negative"),
    "truncated": ("y ~ x + (1 | g)", "ztp", "zero"),
    "beta": ("b ~ x + (1 | g)", "beta", "exactly 0 or 1"),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_impossible_responses(data, name):
    formula, family, match = RESPONSES[name]
    formula = formula.replace("y - 9", "I(y - 9)").replace("c + 9", "I(c + 9)")
    with pytest.raises(DesignError, match=match):
        fit(data, formula, family)


@pytest.mark.parametrize("column", ("y", "x"))
def test_infinite_values(data, column):
    wild = data.assign(**{column: data[column].where(data["row"] != 7, np.inf)})
    with pytest.raises(DesignError, match=f"'{column}' is infinite in 1 rows"):
        fit(wild)


def test_two_levels_are_a_binary_response(data):
    text = data.assign(t=np.where(data["b"] == 1, "yes", "no"))
    one = fit(text, "t ~ x + (1 | g)", "binomial")
    assert one.llf == pytest.approx(fit(data, "b ~ x + (1 | g)", "binomial").llf)
