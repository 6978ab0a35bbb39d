"""Bad input and hard data: what is refused, in which words, and what is warned of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deepstats as ds
from deepstats.errors import (
    ConvergenceWarning,
    DesignError,
    FormulaError,
    ModelError,
    SingularFitWarning,
)

from .data import fit, load, simulated

CURVE = "y ~ SSlogis(x, Asym, xmid, scal)"


@pytest.fixture
def data():
    frame = simulated(1)
    frame["f"] = np.where(frame["g"] % 2, "u", "v")
    frame["w"] = 1.0
    return frame


def nlmer(data, formula=CURVE, random="Asym ~ 1 | g", **options):
    return ds.nlmer(formula, data, random=random, **options)


@pytest.mark.parametrize(
    ("formula", "options", "error", "words"),
    [
        ("SSlogis(x, Asym, xmid, scal)", {}, FormulaError, "expected a response"),
        (f"{CURVE} ~ Asym | g", {}, FormulaError, "argument of their own"),
        ("y ~ SSlogis(x, Asym, xmid)", {}, ModelError, "takes 4 arguments"),
        ("y ~ SSlogis(x, Asym, xmid, scal, more)", {}, ModelError, "takes 4"),
        ("y ~ SSnothing(x, Asym)", {}, ModelError, "no function 'SSnothing'"),
        ("y ~ SSlogis(age, Asym, xmid, scal)", {}, ModelError, "age: neither columns"),
        ("y ~ SSlogis(f, Asym, xmid, scal)", {}, DesignError, "f is categorical"),
        ("f ~ SSlogis(x, Asym, xmid, scal)", {}, DesignError, "one numeric column"),
        ("y ~ Asym / (1 + exp(xmid - x))", {}, ModelError, "start={'xmid': ...}"),
        ("y ~ SSlogis(x, w, xmid, scal)", {}, ModelError, "rename one of them"),
        ("y ~ x + w", {"random": "x ~ 1 | g"}, ModelError, "rename one of them"),
        ("y ~ Asym * (x > 2)", {"start": {"Asym": 1}}, DesignError, "not allowed"),
        (CURVE, {"random": None}, ModelError, "needs random effects"),
        (CURVE, {"random": "Asym | g"}, ModelError, "expected parameters"),
        (CURVE, {"random": "Asym ~ 1"}, ModelError, "expected parameters"),
        (CURVE, {"random": "A ~ 1 | g"}, ModelError, "'A' is not a parameter"),
        (CURVE, {"random": "Asym + ~ 1 | g"}, ModelError, "parameters of the curve"),
        (CURVE, {"random": "Asym ~ 1 | nowhere"}, DesignError, "nowhere"),
        (
            CURVE, {"random": ["Asym ~ 1 | g", "Asym + xmid ~ 1 | g"]}, ModelError,
            "Asym varies over g in two terms",
        ),
        (CURVE, {"fixed": "Asym"}, ModelError, "expected 'Asym ~ treatment'"),
        (CURVE, {"fixed": "B ~ f"}, ModelError, "'B' is not a parameter"),
        (CURVE, {"fixed": ["Asym ~ f", "Asym ~ 1"]}, ModelError, "two formulas"),
        (CURVE, {"fixed": "Asym ~ f + (1 | g)"}, ModelError, "plain terms only"),
        (CURVE, {"start": {"B": 1.0}}, ModelError, "'B' is not a parameter"),
        (CURVE, {"start": {"Asym:f": 1.0}}, ModelError, "start= names Asym:f"),
        (CURVE, {"start": [1, 2, 3]}, ModelError, "by name"),
        (CURVE, {"start": {"Asym": np.nan}}, ModelError, "must be finite"),
        (CURVE, {"weights": np.zeros(96)}, DesignError, "zero"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be(data, formula, options, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(").replace("{", r"\{")):
        nlmer(data, formula, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "foce"}, ValueError, "laplace, lindstrom-bates"),
        ({"nagq": 0}, ValueError, "whole number"),
        ({"nagq": True}, ValueError, "whole number"),
        ({"information": "other"}, ValueError, "expected"),
        ({"maxiter": 0}, ValueError, "positive integer"),
        ({"tol": -1.0}, ValueError, "positive number"),
        ({"reml": True}, ModelError, "only method='lindstrom-bates'"),
        ({"method": "lindstrom-bates", "nagq": 3}, ModelError, "go with"),
        ({"nagq": 100_000}, ModelError, "use fewer"),
    ],
)
def test_options_that_cannot_be(data, options, error, words):
    with pytest.raises(error, match=words):
        nlmer(data).fit(**options)


def test_functions_must_be_torchs_and_take_rows_one_by_one(data):
    def of_numpy(x, a):
        return a.detach().numpy() * x.numpy()

    def of_both(x, a):
        return np.exp(a) * x

    def of_other_rows(x, a):
        return a * torch.cumsum(x, 0)

    def of_one_value(x, a):
        return (a * x).sum()

    for function, words in (
        (of_numpy, "torch tensor"),
        (of_both, "compute with torch"),
        (of_other_rows, "depends on other rows"),
        (of_one_value, "a value for each"),
    ):
        with pytest.raises(ModelError, match=words):
            nlmer(
                data, "y ~ h(x, a)", "a ~ 1 | g", start={"a": 1},
                context={"h": function},
            )  # fmt: skip


def test_starts_from_which_there_is_no_way(data):
    with pytest.raises(ModelError, match="not finite at the start values"):
        nlmer(data, "y ~ a * log(b * x)", "a ~ 1 | g", start={"a": 1, "b": -1}).fit()
    with pytest.raises(ModelError, match="no start value for b"):
        nlmer(data, "y ~ a * x + b", "b ~ 1 | g", start={"a": 1}).fit()
    text = "y ~ SSlogis(x, exp(lasym), xmid, scal)"
    with pytest.raises(ModelError, match="stand alone"):
        nlmer(data, text, "xmid ~ 1 | g", start={"lasym": 2}).fit()


def test_singular_gradients(data):
    start = {"a": 1.0, "b": 1.0, "xmid": 4.0}
    text = "y ~ a * b / (1 + exp(xmid - x))"
    with pytest.raises(ModelError, match="singular gradient"):
        nlmer(data, text, "xmid ~ 1 | g", start=start).fit()
    with pytest.raises(ModelError, match="singular gradient"):
        ds.nls(text, data, start=start).fit()


def test_too_few_steps_are_warned_of(data):
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        results = nlmer(data).fit("lindstrom-bates", maxiter=1)
    assert not results.converged
    assert "NOT CONVERGED" in results.summary().as_text()
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        ds.nls(CURVE, data, start={"Asym": 3, "xmid": 1, "scal": 3}).fit(maxiter=1)


def test_a_variance_of_zero_is_said(data):
    flat = data.copy()
    rng = np.random.default_rng(0)
    flat["y"] = 10 / (1 + np.exp((4 - flat["x"]) / 1.2))
    # Residuals whose groups are more alike than chance.
    noise = rng.standard_normal((12, 8))
    flat["y"] += 0.3 * (noise - noise.mean(1, keepdims=True)).ravel()
    for method in ("laplace", "lindstrom-bates"):
        with pytest.warns(SingularFitWarning, match="variance of Asym"):
            results = nlmer(flat).fit(method)
        assert results.singular
        assert results.varcorr["sdcor"].iloc[0] == pytest.approx(0, abs=1e-6)
        assert np.isfinite(results.bse).all()
        assert "singular fit" in results.summary().as_text()


def test_responses_without_residuals_are_refused(data):
    exact = data.assign(y=10 / (1 + np.exp((4 - data["x"]) / 1.2)))
    with pytest.raises(ModelError, match="goes through all values of y"):
        ds.nls(CURVE, exact).fit()
    flat, start = data.assign(y=3.0), {"a": 1.0, "b": 0.1}
    with pytest.raises(ModelError, match="goes through all values of y"):
        ds.nls("y ~ a * exp(b * x)", flat, start=start).fit()
    for method in ("laplace", "lindstrom-bates"):
        with pytest.raises(ModelError, match="goes through all values of y"):
            nlmer(exact).fit(method)


def test_a_column_with_the_name_of_a_number_is_refused(data):
    frame = data.rename(columns={"x": "pi"})
    with pytest.raises(ModelError, match="'pi' is a number"):
        ds.nls("y ~ a + b * pi", frame, start={"a": 1, "b": 1})


def test_what_results_do_not_have():
    results = fit("orange")
    for call in (
        results.get_influence, results.get_margeff, results.marginal_effects,
        results.bootstrap, lambda: results.likelihood, results.get_prediction,
        lambda: results.lr_test("Asym"), lambda: results.score_test("Asym"),
        lambda: results.get_robustcov_results("HC1"), results.wald_test_terms,
        lambda: results.save("never.zip"),
    ):  # fmt: skip
        with pytest.raises(ModelError):
            call()
    assert results.get_robustcov_results() is results


def test_predictions_that_cannot_be():
    results, new = fit("orange"), {"age": [100.0], "Tree": ["9"]}
    with pytest.raises(DesignError, match="not in the data of the fit"):
        results.predict(new)
    with pytest.raises(ModelError, match="names of grouping factors"):
        results.predict(new, re_form="Branch")
    with pytest.raises(ModelError, match="typical group"):
        results.predict(interval="confidence")
    with pytest.raises(ValueError, match="'confidence'"):
        results.predict(re_form="none", interval="prediction")
    with pytest.raises(ValueError, match="between 0 and 1"):
        results.predict(re_form="none", level=95)
    with pytest.raises(ValueError, match="at least 1"):
        results.simulate(0)


def test_comparisons_that_cannot_be(data):
    one, other = fit("orange"), fit("orange_two")
    with pytest.raises(ValueError, match="order of the two"):
        one.compare_lr_test(other)
    with pytest.raises(ModelError, match="different rules"):
        other.compare_lr_test(fit("orange", "lindstrom-bates"))
    with pytest.raises(ValueError, match="same rows"):
        other.compare_lr_test(nlmer(data).fit())
    frame = load("Orange")
    with pytest.raises(ModelError, match="cannot be compared"):
        one.compare_lr_test(ds.ols("circumference ~ age", frame).fit())
    apart = ds.nlmer(
        "circumference ~ SSlogis(age, Asym, xmid, scal)",
        frame,
        random="xmid ~ 1 | Tree",
    )
    three = ds.nlmer(
        "circumference ~ SSlogis(age, Asym, xmid, scal)", frame,
        random="Asym ~ 1 | Tree", fixed="scal ~ age",
    )  # fmt: skip
    with pytest.raises(ValueError, match="not nested"):
        three.fit("lindstrom-bates").compare_lr_test(apart.fit("lindstrom-bates"))
