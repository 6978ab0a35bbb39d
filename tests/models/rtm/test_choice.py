"""Every model of an enumeration against the package's own fit of it; other searches."""

import itertools
import warnings

import numpy as np
import pytest

import deepstats as ds
from deepstats.models.rtm.choosing import choose, every_choice
from deepstats.models.rtm.dropout import dropped_out
from deepstats.models.rtm.screening import elastic_net, screened
from deepstats.models.rtm.terrain import Search

from .data import BANDS, DISTANCES, REFERENCE, city, street_layers, street_units

SIZES = {"distances": DISTANCES[:3], "bandwidths": BANDS[:1]}
FAMILIES = ("poisson", "nb1", "nb2")
TEXT = "rtm(crimes ~ alcohol + metro + trees)"


def model(text=TEXT, seed=3, n=500, sizes=SIZES, **options):
    units, layers = city(seed, n, alpha=0.4)
    return ds.rtm(text, units, layers, **sizes, **options)


def plain_fit(built, family, choice):
    """The package's own regression of one model."""
    rules = [
        group[c - 1].rule
        for group, c in zip(built.terrain.candidates, choice, strict=True)
        if c
    ]
    return built.estimate(family, tuple(rules)), [r.name for r in rules]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "text, options",
    [
        (TEXT, {}),
        ("rtm(crimes ~ alcohol + metro + trees + block)", {}),  # two strata
        ("rtm(crimes ~ alcohol + metro + trees, exposure=area)", {}),
        ("rtm(crimes ~ alcohol + trees + wealth + offset(log(area)))", {}),
    ],
    ids=["plain", "strata", "exposure", "covariate"],
)
def test_every_model_is_the_regression_of_its_columns(family, text, options):
    layered = {"sizes": {"distances": (200.0,), "bandwidths": BANDS[:1]}}
    units, layers = city(3, 400, alpha=0.4)
    if "metro" not in text:
        del layers["metro"]
    built = ds.rtm(text, units, layers, **layered["sizes"])
    scored = Search(built.terrain, family).fit(every_choice(built.terrain))
    assert len(scored.choices) == built.terrain.combinations >= 9
    assert {0, 1, 2} == set(scored.choices.ravel())
    for row, choice in enumerate(scored.choices):
        plain, names = plain_fit(built, family, choice)
        assert scored.llf[row] == pytest.approx(plain.llf, abs=1e-7)
        np.testing.assert_allclose(
            scored.slopes[row][choice > 0], plain.params[names], rtol=1e-6, atol=1e-8
        )
        allowed = bool((plain.params[names] >= 0).all())
        assert scored.allowed[row] == allowed
        if allowed:
            assert scored.criterion[row] == pytest.approx(plain.bic, abs=1e-6)
        else:
            assert np.isinf(scored.criterion[row])


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_and_patterns_give_the_same(family):
    """Rows of cells, rows of patterns, and units one by one."""
    built = model()
    choices = every_choice(built.terrain)
    cells = Search(built.terrain, family)
    assert cells._by_cells
    patterns = Search(built.terrain, family)
    patterns._by_cells = False
    one, other = cells.fit(choices), patterns.fit(choices)
    np.testing.assert_allclose(one.llf, other.llf, atol=1e-8)
    np.testing.assert_allclose(one.slopes, other.slopes, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_repeated_units(family):
    built = model(n=300)
    times = np.random.default_rng(0).integers(0, 4, 300)
    choices = every_choice(built.terrain)[::7]
    weighted = Search(built.terrain, family, weights=times.astype(float)).fit(choices)
    again = built.terrain.subset(np.repeat(np.arange(300), times))
    repeated = Search(again, family).fit(choices)
    np.testing.assert_allclose(weighted.llf, repeated.llf, atol=1e-6)


def test_a_start_elsewhere_ends_at_the_same_place():
    built = model()
    search = Search(built.terrain, "nb2")
    choices = every_choice(built.terrain)
    cold = search.fit(choices)
    other = Search(built.terrain, "nb2", weights=np.ones(500))
    warm = other.fit(choices, cold.x + 0.3)
    np.testing.assert_allclose(warm.llf, cold.llf, atol=1e-8)


def test_the_choice_is_the_best_of_all_by_brute_force():
    built = model()
    results = built.fit()
    best = min(
        (
            (plain.bic, family, names)
            for family in FAMILIES
            for choice in every_choice(built.terrain)
            for plain, names in [plain_fit(built, family, choice)]
            if (plain.params[names] >= 0).all()
        ),
        key=lambda found: found[0],
    )
    assert results.bic == pytest.approx(best[0], abs=1e-6)
    assert results.family == best[1]
    assert [r.name for r in results.rules] == best[2]
    assert len({r.factor for r in results.rules}) == len(results.rules)


def test_aic_counts_two_for_a_parameter():
    results = model(family="nb2", criterion="aic").fit()
    assert results.models(1)["aic"].iloc[0] == pytest.approx(results.aic, abs=1e-6)


@pytest.mark.filterwarnings("ignore:trees was not chosen")
def test_stepwise_goes_down_and_ends_where_no_step_helps():
    built = model(sizes={"distances": DISTANCES, "bandwidths": BANDS},
                  choose="stepwise", family="poisson")  # fmt: skip
    results = built.fit()
    choice = results.choices["poisson"]
    assert choice.method == "stepwise"
    search = Search(built.terrain, "poisson")
    path = [search.fit(step[None]).criterion[0] for step in choice.steps]
    assert len(path) > 2 and (np.diff(path) < 0).all() and not choice.steps[0].any()
    kept = np.split(choice.screen.keep, built.terrain.starts[1:])
    for f, keep in enumerate(kept):
        for c in [0, *(np.flatnonzero(keep) + 1)]:
            other = choice.best.copy()
            other[f] = c
            assert search.fit(other[None]).criterion[0] >= path[-1] - 1e-9


def test_stepwise_with_many_factors_and_a_covariate():
    """Ten factors of seven candidates: 8**10 models are too many to fit them all."""
    units, layers = city(5, 700)
    rng = np.random.default_rng(1)
    noise = {f"noise{j}": 400_000 + rng.uniform(0, 5000, (20 + j, 2)) for j in range(7)}
    layers = {**layers, **noise}
    text = f"rtm(crimes ~ wealth + {' + '.join(layers)})"
    built = ds.rtm(text, units, layers, distances=DISTANCES, bandwidths=BANDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ds.errors.SelectionWarning)
        results = built.fit()
    assert built.terrain.combinations > 1e6
    assert results.choices[results.family].method == "stepwise"
    chosen = {r.factor: r.size for r in results.rules}
    assert chosen["alcohol"] == 200 and chosen["metro"] == 400
    assert results.params["wealth"] == pytest.approx(-0.3, abs=0.1)


@pytest.mark.filterwarnings("ignore:trees was not chosen")
def test_dropout_is_a_model_of_one_candidate_each_and_never_better():
    built = model(family="poisson", choose="dropout")
    best = model(family="poisson").fit().bic
    found = [built.fit(steps=400, seed=s) for s in (10, 10, 11)]
    assert found[0].bic == found[1].bic
    for results in found:
        assert results.bic >= best - 1e-9
        assert (results.risk_table()["coef"] >= 0).all()


@pytest.mark.parametrize("choose", ["auto", "stepwise", "dropout"])
def test_without_candidates_there_is_one_model(choose):
    units, _ = city(1, 200)
    built = ds.rtm(
        "rtm(crimes ~ air, distances=(200,))", units, {"air": units[["x", "y"]]},
        choose=choose, family="poisson",
    )  # fmt: skip
    with pytest.warns(ds.errors.SelectionWarning):
        results = built.fit(steps=10)
    assert results.rules == () and len(results.models()) == 1


@pytest.mark.parametrize("steps", [0, -3, 1.5, True])
def test_steps_are_a_whole_number(steps):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        model(choose="dropout").fit(steps=steps)


def test_dropout_passes_over_a_factor_without_candidates():
    units, layers = city(1, 300)
    layers = {**layers, "air": units[["x", "y"]]}
    for text in ("trees + alcohol + air", "air + trees + alcohol"):
        built = ds.rtm(
            f"rtm(crimes ~ {text}, distances=(200, 400))", units,
            {name: layers[name] for name in text.split(" + ")},
        )  # fmt: skip
        picked = dict(
            zip(built.terrain.factors, dropped_out(built.terrain, 300), strict=True)
        )
        assert picked["air"] == 0
        if text.endswith("air"):
            before = picked
    assert picked == before


def test_weights_of_screen_and_dropout_are_repeated_units():
    terrain = model().terrain
    drawn = np.random.default_rng(2).integers(terrain.n, size=terrain.n)
    w = np.bincount(drawn, minlength=terrain.n).astype(float)
    repeated = terrain.subset(drawn)
    one, two = screened(terrain, weights=w), screened(repeated)
    np.testing.assert_allclose(one.penalties, two.penalties, rtol=1e-9)
    np.testing.assert_allclose(one.coefficients, two.coefficients, atol=1e-6)
    assert not np.allclose(one.penalties, screened(terrain).penalties)
    np.testing.assert_array_equal(
        dropped_out(terrain, 400, weights=w), dropped_out(repeated, 400)
    )


def kkt(terrain, theta, penalty, share):
    """Largest violation of the conditions of the elastic net's minimum."""
    Z, X = terrain.covariates, terrain.columns.astype(float)
    q, b = Z.shape[1], theta[Z.shape[1] :]
    resid = np.exp(Z @ theta[:q] + X @ b + terrain.offset) - terrain.y
    free = Z.T @ resid / terrain.n
    slope = X.T @ resid / terrain.n + penalty * (share + (1 - share) * b)
    at_zero = np.maximum(-slope[b == 0], 0)
    return max(np.abs(free).max(), np.abs(slope[b > 0]).max(initial=0),
               at_zero.max(initial=0))  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("text", [TEXT, TEXT[:-1] + ", exposure=area)"])
def test_elastic_net_meets_its_conditions(share, text):
    terrain = model(text).terrain
    p = terrain.exposed
    sums = p.sums(terrain.y, False, None, np.exp(terrain.offset))
    penalties = np.array([0.3, 0.03, 0.003])
    paths = elastic_net(
        p.covariates, p.columns, sums[:, 0], sums[:, 1], np.zeros(len(p)), penalties,
        share,
    )  # fmt: skip
    for penalty, theta in zip(penalties, paths, strict=True):
        # The objective is a mean over exposure; that of kkt() over units.
        scale = sums[:, 0].sum() / terrain.n
        assert kkt(terrain, theta, penalty * scale, share) < 1e-8
    assert (paths[-1][1:] > 0).sum() > (paths[0][1:] > 0).sum()


def test_screen_keeps_what_has_an_effect():
    terrain = model(seed=1, n=900).terrain
    screen = screened(terrain)
    kept = {
        c.rule.factor
        for c, keep in zip(
            itertools.chain(*terrain.candidates), screen.keep, strict=True
        )
        if keep
    }
    assert {"alcohol", "metro"} <= kept
    assert screen.deviance[screen.chosen] == screen.deviance.min()
    assert (screen.coefficients[0] == 0).all()


# -- street units of Washington --------------------------------------------------------

_SIZES = (50, 100, 200, 300, 400, 500, 600, 700, 800)


@pytest.fixture(scope="module")
def streets():
    units = street_units()
    return ds.rtm(
        "rtm(first ~ alc + c1 + c2, x=XMeters, y=YMeters, id=MarID)", units,
        street_layers(units, _SIZES),
    )  # fmt: skip


def test_streets_agree_with_the_reference(streets):
    """All 1,900 Poisson models, and statsmodels' NB fits of the best one's columns."""
    stored = REFERENCE["exact_one_per_factor_poisson"]
    choices = every_choice(streets.terrain)
    assert len(choices) == stored["combos"] == 1900
    found = choose(streets.terrain, "poisson", "exhaustive", "bic")
    names = [r.name for r in streets.rules(found.best)]
    spelt = [n.replace("_kde_", "_dense_") for n in stored["cols"]]
    assert names == spelt
    assert found.criterion == pytest.approx(stored["bic"], abs=1e-6)
    slopes = found.scored.slopes[found.scored.best]
    np.testing.assert_allclose(slopes, stored["coef"][1:], rtol=1e-8)
    for family in ("nb1", "nb2"):
        theirs = REFERENCE[f"exact_poisson_vars_{family}"]
        ours = Search(streets.terrain, family).fit(found.best[None])
        assert ours.criterion[0] == pytest.approx(theirs["bic"], abs=1e-4)
        np.testing.assert_allclose(ours.slopes[0], theirs["coef"][1:4], rtol=1e-4)


@pytest.mark.parametrize("number", [8, 16])
def test_elastic_net_of_streets_agrees_with_the_reference(streets, number):
    stored = REFERENCE[f"nonneg_en_poisson_dc_{number}"]
    terrain = streets.terrain
    p, sums = terrain.exposed, terrain.exposed.sums(terrain.y, False)
    theta = elastic_net(
        p.covariates, p.columns, sums[:, 0], sums[:, 1], np.zeros(len(p)),
        np.array([stored["lam"]]), stored["alpha"],
    )[0]  # fmt: skip
    assert theta[0] == pytest.approx(stored["intercept"], abs=1e-8)
    names = [
        c.rule.name.replace("_within_", "_dis_").replace("_dense_", "_kde_")
        for c in itertools.chain(*terrain.candidates)
    ]
    ours = {n: b for n, b in zip(names, theta[1:], strict=True) if b > 1e-10}
    assert ours.keys() == stored["coef"].keys()
    for name, value in stored["coef"].items():
        assert ours[name] == pytest.approx(value, abs=1e-8)
    assert kkt(terrain, theta, stored["lam"], stored["alpha"]) < 1e-9


def test_streets_are_chosen_anew_under_nb(streets):
    """Poisson is off by 21,000 points of BIC, and NB1 chooses another distance."""
    results = streets.fit()
    families = results.families()
    assert results.family == "nb1"
    assert families.loc["poisson", "difference"] > 21_000
    assert results.bic < 44_039.27  # NB1 with the columns that Poisson chose
    assert [r.name for r in results.rules] == [
        "alc_within_200", "c1_dense_50", "c2_dense_800"
    ]  # fmt: skip
