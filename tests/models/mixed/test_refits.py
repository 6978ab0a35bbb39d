"""Many responses of one model: each fit and its inference are those of its own."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import DesignError, ModelError, SingularFitWarning
from deepstats.models.mixed import LinearMixed, MixedResults
from deepstats.models.mixed.degrees import DDF, kenward_roger, satterthwaite
from deepstats.models.mixed.model import parameters_of
from deepstats.models.mixed.refits import Refits
from deepstats.models.mixed.replicated_degrees import kenward_rogers
from deepstats.models.mixed.responses import RowSpace
from deepstats.models.mixed.together import Together

from .data import CASES, INFERENCE, fit, load, name_of

TABLES = [name for name, stored in INFERENCE.items() if "kenward_roger" in stored]

FORMULAS = (
    "y ~ x + z + (1 | g)",
    "y ~ x + (x | g)",
    "y ~ x + f + (x || g)",
    "y ~ x + (1 | g) + (0 + z | g)",
    "y ~ x + (1 | g) + (1 | h)",
    "y ~ x + (1 | k/g)",
    "y ~ x + z + (x | g) + (z | h) + (0 + z | k)",
    "y ~ 0 + x + (0 + x + z | g) + (1 | h)",
)
COUNT = 8


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    n = 144
    d = pd.DataFrame(
        {
            "g": np.repeat(np.arange(12), 12), "h": np.tile(np.arange(8), 18),
            "x": rng.normal(size=n) + 1, "z": rng.normal(size=n),
            "f": rng.choice(["u", "v", "w"], n), "w": rng.uniform(0.5, 2, n),
            "o": rng.normal(size=n),
        }
    )  # fmt: skip
    d["k"] = d.g // 3
    d["y"] = d.x + 1.5 * rng.normal(size=12)[d.g] + rng.normal(size=12)[d.g] * d.x
    d["y"] += rng.normal(size=8)[d.h] + rng.normal(size=4)[d.k] * (1 + d.z)
    d["y"] += rng.normal(size=n)
    return d


def fitted(formula: str, data: pd.DataFrame, reml: bool = True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return LinearMixed(formula, data, **options).fit(reml)


def drawn(results: MixedResults) -> tuple[np.ndarray, Refits]:
    Y = results.simulate(COUNT, seed=3).to_numpy()
    return Y, results.refit_many(Y)


def alone(fits: Refits, number: int):
    """One of the fits by the route of single fits."""
    ((responses, found),) = fits.pieces
    return fits._alone(responses, found, number)


# -- against single fits -------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"weights": "w", "offset": "o"}, {"sigma": 1.1}], ids=str
)
@pytest.mark.parametrize("formula", FORMULAS)
def test_kenward_roger_of_all_is_that_of_each(formula, options, data):
    _, fits = drawn(fitted(formula, data, **options))
    assert fits.converged.all()
    found, each = fits.inference("kenward-roger"), np.eye(len(fits.names))
    for number in range(COUNT):
        one = alone(fits, number)
        np.testing.assert_array_equal(one.x, fits.found.x[number])
        kr = kenward_roger(one)
        se = np.sqrt(np.diag(kr.covariance))
        np.testing.assert_allclose(found.bse.loc[number], se, rtol=1e-8)
        df = [kr.moments(r[None])[0] for r in each]
        np.testing.assert_allclose(found.df.loc[number], df, rtol=1e-8)
        np.testing.assert_allclose(found.params.loc[number], one.beta, rtol=1e-8)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("sigma", [None, 1.1])
@pytest.mark.parametrize("formula", FORMULAS)
def test_satterthwaite_of_all_is_that_of_each(formula, sigma, reml, data):
    _, fits = drawn(fitted(formula, data, reml, sigma=sigma))
    found, each = fits.inference("satterthwaite"), np.eye(len(fits.names))
    for number in range(COUNT):
        one = alone(fits, number)
        np.testing.assert_allclose(
            found.df.loc[number], satterthwaite(one, each), rtol=1e-8
        )
        se = np.sqrt(np.diag(one.cov_beta))
        np.testing.assert_allclose(found.bse.loc[number], se, rtol=1e-8)


@pytest.mark.parametrize("ddf", DDF)
@pytest.mark.parametrize("formula", FORMULAS[:6])
def test_inference_is_that_of_fits_to_each_response(formula, ddf, data):
    """Fits that start elsewhere end within 1e-6 standard errors of one another."""
    Y, fits = drawn(fitted(formula, data))
    found = fits.inference(ddf)
    low, high = found.conf_int(0.1)
    R = np.eye(len(fits.names))[1:]
    hypothesis = np.vstack([R, R.sum(0)]), np.append(0.1 * R.sum(1), 0.1 * len(R))
    joint = fits.wald_pvalues(hypothesis, ddf)
    for number in (0, 5):
        own = fitted(formula, data.assign(y=Y[:, number])).with_ddf(ddf)
        limits = own.conf_int(0.1)
        np.testing.assert_allclose(fits.params.loc[number], own.params, atol=1e-5)
        np.testing.assert_allclose(low.loc[number], limits[0], atol=1e-4)
        np.testing.assert_allclose(high.loc[number], limits[1], atol=1e-4)
        p = found.pvalues.loc[number]
        np.testing.assert_allclose(p, own.pvalues, rtol=1e-3, atol=1e-12)
        wald = own.wald_test(hypothesis).pvalue
        np.testing.assert_allclose(joint[number], wald, rtol=1e-3, atol=1e-12)
        sigma = fits.frame["sigma"][number]
        assert sigma == pytest.approx(own.sigma, rel=1e-5)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_one_after_the_other_is_the_same(ddf, data, monkeypatch):
    _, fits = drawn(fitted("y ~ x + z + (1 | g) + (1 | h)", data))
    found, R = fits.inference(ddf), np.eye(3)[1:]
    p = fits.wald_pvalues(R, ddf)
    monkeypatch.setattr(Together, "pays", staticmethod(lambda products: False))
    apart = fits.inference(ddf)
    pd.testing.assert_frame_equal(found.df, apart.df, rtol=1e-8)
    pd.testing.assert_frame_equal(found.bse, apart.bse, rtol=1e-8)
    np.testing.assert_allclose(p, fits.wald_pvalues(R, ddf), rtol=1e-7)


def test_pieces_are_joined(data, monkeypatch):
    results = fitted("y ~ x + (x | g)", data)
    Y, fits = drawn(results)
    monkeypatch.setattr("deepstats.models.mixed.refits.at_once", lambda *_: 3)
    monkeypatch.setattr("deepstats.models.mixed.replicated_degrees._ELEMENTS", 1)
    cut = results.refit_many(Y)
    assert [len(found.converged) for _, found in cut.pieces] == [3, 3, 2]
    for ddf in ("satterthwaite", "kenward-roger"):
        one, two = fits.inference(ddf), cut.inference(ddf)
        pd.testing.assert_frame_equal(one.df, two.df, rtol=1e-6)
        pd.testing.assert_frame_equal(one.bse, two.bse, rtol=1e-6)
        p = [f.wald_pvalues(np.eye(2)[1:], ddf) for f in (fits, cut)]
        np.testing.assert_allclose(*p, rtol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_kenward_roger_of_pbkrtest(name):
    """At lme4's own estimates, the data's own response among others."""
    stored, results = CASES[f"{name}_REML"], fit(f"{name}_REML")
    structure, products = results.model.prepare()
    theta = parameters_of(structure, list(stored["theta"].values()))
    y = np.asarray(results.model.design.y)
    responses = RowSpace(results.model.design, products, results.model.compute).meet(
        np.column_stack([y[::-1], y])
    )
    problem = Together(products, responses, True)
    found = kenward_rogers(problem, np.stack([2 * theta, theta]), np.arange(2))
    rows = {row["term"]: row for row in INFERENCE[name]["kenward_roger"]}
    wanted = [rows[name_of(n)]["df"] for n in results.names]
    df = [found.moments(r[None])[0][1] for r in np.eye(len(wanted))]
    np.testing.assert_allclose(df, wanted, rtol=1e-8)
    V = np.array(INFERENCE[name]["vcov_kr"])
    np.testing.assert_allclose(found.covariance[1], V, atol=1e-10 * np.abs(V).max())


# -- coverage ------------------------------------------------------------------------


def test_kenward_roger_intervals_cover_at_ten_groups():
    """2,000 replicates; the Monte-Carlo error of a coverage of 95% is 0.5%.

    A row-level and a group-level covariate, unbalanced groups. Wald intervals with z
    fall short in the same replicates, by far in the group-level one.
    """
    rng = np.random.default_rng(20261121)
    sizes = np.array([2, 3, 3, 4, 4, 5, 5, 6, 7, 8])
    g = np.repeat(np.arange(10), sizes)
    n = len(g)
    d = pd.DataFrame({"g": g, "x": rng.normal(size=n), "z": rng.normal(size=10)[g]})
    d["y"] = rng.normal(size=n)
    results, truth = fitted("y ~ x + z + (1 | g)", d), np.array([1.0, 0.5, -0.5])
    X = results.model.design.X.to_dense().numpy()
    effects = 0.8 * rng.normal(size=(10, 2000))
    Y = (X @ truth)[:, None] + effects[g] + rng.normal(size=(n, 2000))
    fits = results.refit_many(Y)
    assert fits.converged.all()

    def coverage(ddf: str) -> np.ndarray:
        low, high = fits.inference(ddf).conf_int()
        return ((low <= truth) & (truth <= high)).mean().to_numpy()

    found = coverage("kenward-roger")
    assert ((found > 0.935) & (found < 0.965)).all(), found
    assert coverage("normal")[2] < 0.93
    # The same in tests: under the null 5% are rejected.
    level = (fits.wald_pvalues(np.eye(3)[2:], "kenward-roger") < 0.05).mean()
    assert level > 0.2
    null = results.refit_many(Y - np.outer(X[:, 1:] @ truth[1:], np.ones(2000)))
    share = (null.wald_pvalues(np.eye(3)[1:], "kenward-roger") < 0.05).mean()
    assert abs(share - 0.05) < 3.5 * np.sqrt(0.05 * 0.95 / 2000)


# -- what cannot be ------------------------------------------------------------------


def test_fits_that_did_not_converge_are_missing(data):
    _, fits = drawn(fitted("y ~ x + (1 | g)", data))
    fits.pieces[0][1].converged[2] = False
    again = Refits(fits.model, fits.reml, fits.pieces)
    assert "7 converged" in repr(again) and len(again) == COUNT
    for ddf in DDF:
        found = again.inference(ddf)
        for frame in (found.params, found.bse, found.df, found.pvalues, again.frame):
            assert frame.loc[2].isna().all() and not frame.drop(2).isna().any(axis=None)
        p = again.wald_pvalues(np.eye(2)[1:], ddf)
        assert np.isnan(p).tolist() == [number == 2 for number in range(COUNT)]


def test_no_fixed_effects_at_all(data):
    _, fits = drawn(fitted("y ~ 0 + (1 | g) + (1 | h)", data))
    for ddf in DDF:
        assert fits.inference(ddf).df.shape == (COUNT, 0)
    with pytest.raises(ModelError, match="fixed part is empty"):
        fits.wald_pvalues(np.zeros((1, 0)))


def test_what_cannot_be_said_is_refused(data):
    by_ml = fitted("y ~ x + (1 | g)", data, reml=False)
    y = np.asarray(by_ml.model.design.y)
    fits = by_ml.refit_many(np.column_stack([y, 2 * y]))
    for ask in (fits.inference, lambda ddf: fits.wald_pvalues(np.eye(2), ddf)):
        with pytest.raises(ModelError, match="need fits by REML"):
            ask("kenward-roger")
        with pytest.raises(ValueError, match="ddf must be one of"):
            ask("kr")
    assert by_ml.refit_many(y[:, None], reml=True).inference("kenward-roger").df.size
    with pytest.raises(ValueError, match="needs 2 entries"):
        fits.wald_pvalues(np.ones(3))
    with pytest.raises(ValueError, match="restricts no coefficient"):
        fits.wald_pvalues(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="alpha must be between"):
        fits.inference().conf_int(5)


def test_bad_responses_are_refused(data):
    results = fitted("y ~ x + (1 | g)", data)
    y = np.asarray(results.model.design.y)
    with pytest.raises(DesignError, match="a column of numbers for each response"):
        results.refit_many(y)
    with pytest.raises(DesignError, match="Y has 5 values"):
        results.refit_many(np.ones((5, 2)))
    with pytest.raises(DesignError, match="1 of the responses have missing"):
        results.refit_many(np.column_stack([y, np.where(y > y.mean(), np.nan, y)]))
    with pytest.raises(DesignError, match="fit response 1 exactly"):
        results.refit_many(np.column_stack([y, 3 + 2 * data.x]))


def test_rows_of_the_data_are_those_used():
    data = load("sleepstudy")
    gap = data.assign(Reaction=data["Reaction"].where(data.index % 9 > 0))
    results = fitted("Reaction ~ Days + (1 | Subject)", gap)
    y = data["Reaction"].to_numpy()[:, None]
    one = results.refit_many(y).params
    two = results.refit_many(y[data.index % 9 > 0]).params
    pd.testing.assert_frame_equal(one, two)
    np.testing.assert_allclose(one.loc[0], results.params, rtol=1e-6)
