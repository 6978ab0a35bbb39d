"""Fair losses, rates of error by group, and the frontier between them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import deepstats as ds
from deepstats.errors import DesignError, GradientWarning, LossError, ModelError
from deepstats.models.lossreg import lossreg
from deepstats.models.lossreg.rates import tallied

SHARED = Path(__file__).resolve().parents[4] / "shared" / "reference" / "data"
OUTCOME = "Recidivism_Arrest_Year1"


@lru_cache
def read(name: str) -> pd.DataFrame:
    path = SHARED / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{name} is only in ../shared/reference/data, not here")
    return pd.read_csv(path)


def nij_data() -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """NIJ's own split; all its columns, Race (1: Black) among them."""
    data = read("reg_nij")
    names = [c for c in data if c not in (OUTCOME, "Training_Sample")]
    inside = data["Training_Sample"] == 1
    return f"{OUTCOME} ~ {' + '.join(names)}", data[inside], data[~inside]


def compas_data() -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """Black and white defendants, split 3 to 1 as in the stored reference."""
    data = read("reg_compas")
    data = data[data["race"].isin(["African-American", "Caucasian"])]
    data = data.assign(
        male=(data["sex"] == "Male") * 1, felony=(data["c_charge_degree"] == "F") * 1
    ).rename(columns=lambda name: name.replace(".", ""))
    names = [
        "CompScore1", "CompScore2", "CompScore3", "juv_fel_count", "juv_misd_count",
        "juv_other_count", "priors_count", "YearsScreening", "male", "felony",
    ]  # fmt: skip
    data = data.dropna(subset=[*names, "Recid30"])
    inside = np.random.default_rng(10).random(len(data)) < 0.75
    return f"Recid30 ~ {' + '.join(names)}", data[inside], data[~inside]


def sample(n: int = 1500, seed: int = 3, groups: str = "ab") -> pd.DataFrame:
    """Return outcomes whose predictors, and so error rates, depend on the group."""
    rng = np.random.default_rng(seed)
    group = rng.choice(list(groups), size=n)
    shift = 0.9 * (group == "a")
    x, z = rng.normal(size=(2, n)) + shift
    eta = -0.7 + 0.9 * x + 0.3 * z
    hit = (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int)
    return pd.DataFrame({"hit": hit, "x": x, "z": z, "race": group})


@pytest.fixture(scope="module")
def frame():
    return sample()


def counted(y, p, group, threshold):
    """NIJ's score in plain loops."""
    rates = []
    for level in sorted(set(group)):
        flagged = total = 0
        for outcome, prediction, own in zip(y, p, group, strict=True):
            if own == level and outcome == 0:
                total += 1
                flagged += prediction >= threshold
        rates.append(flagged / total)
    brier = sum((a - b) ** 2 for a, b in zip(y, p, strict=True)) / len(y)
    return (1 - brier) * (1 - (max(rates) - min(rates)))


# -- exact rates -----------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["ab", "abc"])
def test_score_by_counting(groups):
    data = sample(400, groups=groups)
    p = np.random.default_rng(0).uniform(size=400).round(2)  # some at the threshold
    for threshold in (0.25, 0.5):
        found = ds.fairness.nij_score(data["hit"], p, data["race"], threshold)
        expected = counted(data["hit"], p, data["race"], threshold)
        assert found == pytest.approx(expected, rel=1e-14)


def test_table_by_counting(frame):
    p = np.random.default_rng(1).uniform(size=len(frame))
    table = ds.fairness_table(frame["hit"], p, frame["race"], 0.4)
    y, flag, own = frame["hit"] == 1, p >= 0.4, frame["race"] == "a"
    expected = {
        ("base_rate", "a"): y[own].mean(), ("flagged", "b"): flag[~own].mean(),
        ("fpr", "a"): flag[own & ~y].mean(), ("fnr", "b"): 1 - flag[~own & y].mean(),
        ("fdr", "a"): 1 - y[own & flag].mean(), ("accuracy", "all"): (y == flag).mean(),
        ("brier", "b"): ((p - y)[~own] ** 2).mean(),
        ("gap_parity", "all"): abs(flag[own].mean() - flag[~own].mean()),
        ("gap_odds", "all"): max(
            abs(flag[own & ~y].mean() - flag[~own & ~y].mean()),
            abs(flag[own & y].mean() - flag[~own & y].mean()),
        ),
    }  # fmt: skip
    for key, value in expected.items():
        assert table.loc[key, "estimate"] == pytest.approx(value, rel=1e-12), key
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()
    assert set(table["method"]) == {"Wilson", "Newcombe", "bootstrap", "ends"}
    # Where the interval of a difference covers zero, that of its gap begins there.
    for measure, rate in {"fpr": "fpr", "parity": "flagged"}.items():
        difference = table.loc[(rate, "b - a")] if own.sum() > (~own).sum() else (
            table.loc[(rate, "a - b")])  # fmt: skip
        gap = table.loc[(f"gap_{measure}", "all")]
        assert (gap["low"] == 0) == (difference["low"] < 0 < difference["high"])
        ends = np.abs([difference["low"], difference["high"]])
        assert gap["high"] == pytest.approx(ends.max(), abs=0.01)


def test_intervals_match_statsmodels(frame):
    sm = pytest.importorskip("statsmodels.stats.proportion")
    p = np.random.default_rng(2).uniform(size=len(frame))
    table = ds.fairness_table(
        frame["hit"], p, frame["race"], 0.6, conf_level=0.9, reps=5
    )
    a, b = table.loc[("fpr", "a")], table.loc[("fpr", "b")]
    low, high = sm.proportion_confint(a["count"], a["of"], alpha=0.1, method="wilson")
    assert (a["low"], a["high"]) == pytest.approx((low, high), rel=1e-12)
    # The larger group is the reference.
    first, second = (b, a) if ("fpr", "b - a") in table.index else (a, b)
    name = "b - a" if first is b else "a - b"
    low, high = sm.confint_proportions_2indep(
        first["count"], first["of"], second["count"], second["of"], method="newcomb",
        alpha=0.1,
    )  # fmt: skip
    found = table.loc[("fpr", name)]
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-10)


def test_bootstrap_interval_of_brier_score(frame):
    p = np.full(len(frame), 0.5)
    p[::2] = 0.3
    table = ds.fairness_table(frame["hit"], p, frame["race"], reps=2000)
    squares = (p - frame["hit"]) ** 2
    row = table.loc[("brier", "all")]
    half = 1.96 * squares.std() / len(p) ** 0.5
    # Strata and percentiles differ from the normal interval by little.
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)
    again = ds.fairness_table(frame["hit"], p, frame["race"], reps=2000)
    pd.testing.assert_frame_equal(table, again)


# -- surrogates ------------------------------------------------------------------------

LOSSES = {
    "nij": ds.fairness.nij("race", 0.4),
    "fpr": ds.fairness.fair("race", 0.4, weight=0.5),
    "tpr": ds.fairness.fair("race", 0.6, measure="tpr", base="logloss"),
    "odds": ds.fairness.fair("race", 0.4, measure="odds"),
    "parity": ds.fairness.fair(
        "race", measure="parity", form="multiplicative", weight=2.0
    ),
    "capped": ds.fairness.capped("race", {"a": 0.2, "b": 0.1}, 0.4),
    "capped fnr": ds.fairness.capped("race", 0.3, rate="fnr", base="logloss"),
}


def exact(key: str, y, p, group) -> float:
    """Return what the surrogates stand for, counted."""
    loss = LOSSES[key].surrogate
    found, _ = tallied(y, p, group, loss.threshold)
    brier = ((p - y) ** 2).mean()
    log_loss = -np.where(y == 1, np.log(p), np.log(1 - p)).mean()
    cost = brier if loss.base == "brier" else log_loss
    if key == "nij":
        return 1 - float(found.nij)
    if key == "parity":
        return 1 - (1 - brier) * (1 - float(found.gap("parity"))) ** 2
    if key.startswith("capped"):
        caps = np.array([0.2, 0.1]) if key == "capped" else 0.3
        return cost + float(np.maximum(found.rate(loss.measure) - caps, 0).sum())
    return cost + loss.weight * float(found.gap(loss.measure))


@pytest.mark.parametrize("key", LOSSES)
def test_surrogates_sharpen_to_the_exact_loss(frame, key):
    rng = np.random.default_rng(4)
    p = np.clip(rng.beta(2, 3, size=len(frame)), 0.01, 0.99)
    y, group = frame["hit"].to_numpy(), frame["race"].to_numpy()
    told = LOSSES[key].knowing({"race": ("a", "b")}).surrogate
    codes = torch.from_numpy((group == "b").astype(np.int64))
    p_, y_ = torch.from_numpy(p), torch.from_numpy(y.astype(float))
    errors = []
    for width in (0.1, 0.01, 1e-3, 1e-7):
        value = float(replace(told, width=width)(p_, y_, race=codes))
        errors.append(abs(value - exact(key, y, p, group)))
    assert errors[-1] < 1e-6
    assert errors[0] > errors[1] > errors[-1]


@pytest.mark.parametrize("key", LOSSES)
def test_derivatives_against_finite_differences(frame, key):
    model = lossreg("hit ~ x + z", frame[:400], loss=LOSSES[key])
    objective, b, h = model.objective, np.array([-0.4, 0.7, 0.2]), 1e-6
    found = objective.at(b)
    steps = h * np.eye(3)
    gradient = [
        (objective.value(b + s) - objective.value(b - s)) / 2 / h for s in steps
    ]
    assert np.abs(found.gradient).max() > 1e-3
    assert found.gradient == pytest.approx(np.array(gradient), abs=1e-7)
    hessian = [
        (objective.at(b + s, 1).gradient - objective.at(b - s, 1).gradient) / 2 / h
        for s in steps
    ]
    scale = np.abs(found.hessian).max()
    assert found.hessian == pytest.approx(np.array(hessian), abs=1e-5 * scale)


@pytest.mark.parametrize("key", LOSSES)
def test_fits_end_at_a_minimum(frame, key):
    fit = lossreg("hit ~ x + z", frame, loss=LOSSES[key]).fit("none")
    assert fit.converged and fit.kkt_residual < 1e-8
    problem, b = fit.model.problem(), fit.params.to_numpy()
    rng = np.random.default_rng(5)
    for size in (1e-3, 1e-2):
        for step in size * rng.normal(size=(10, 3)):
            assert problem.value(b + step) > problem.value(b)
    # A fit goes through wider surrogates first, each under a name of its own.
    assert fit.loss_history["stage"].nunique() == 3


def test_two_rows_count_as_one_of_weight_two(frame):
    half = frame[:300]
    counts = np.random.default_rng(6).integers(1, 4, size=300)
    repeated = half.loc[half.index.repeat(counts)]
    loss = LOSSES["nij"]
    b = np.array([-0.4, 0.7, 0.2])
    weighted = lossreg("hit ~ x + z", half.assign(w=counts), loss=loss, weights="w")
    plain = lossreg("hit ~ x + z", repeated, loss=loss)
    assert weighted.objective.value(b) == pytest.approx(
        plain.objective.value(b), rel=1e-13
    )


def test_numbers_and_labels_as_groups(frame):
    coded = frame.assign(race=(frame["race"] == "b") * 1)
    fits = [
        lossreg("hit ~ x", d, loss=LOSSES["nij"]).fit("none") for d in (frame, coded)
    ]
    assert fits[0].params.to_numpy() == pytest.approx(fits[1].params.to_numpy())
    caps = ds.fairness.capped("race", {0: 0.2, 1: 0.1}, 0.4)
    value = lossreg("hit ~ x", coded, loss=caps).objective.value(np.array([0.1, 0.5]))
    same = lossreg("hit ~ x", frame, loss=LOSSES["capped"])
    assert value == pytest.approx(same.objective.value(np.array([0.1, 0.5])), rel=1e-14)


def test_fair_fit_is_fairer_and_caps_hold(frame):
    brier = lossreg("hit ~ x + z", frame, loss="brier").fit("none")

    def rates(fit, threshold=0.4):
        p = fit.predict(frame)
        found, _ = tallied(frame["hit"], p, frame["race"], threshold)
        return found

    assert rates(brier).gap("fpr") > 0.15
    for key in ("nij", "fpr"):
        fit = lossreg("hit ~ x + z", frame, loss=LOSSES[key]).fit("none")
        assert rates(fit).gap("fpr") < 0.03
        assert rates(fit).nij > rates(brier).nij + 0.1
    capped = ds.fairness.capped("race", 0.2, 0.4)
    fit = lossreg("hit ~ x + z", frame, loss=capped).fit("none")
    assert rates(brier).rate("fpr").max() > 0.3
    assert rates(fit).rate("fpr").max() < 0.21


def test_watched_saved_and_resampled(frame, tmp_path):
    train, test = frame[::2], frame[1::2]
    fit = lossreg("hit ~ x + z", train, loss=LOSSES["nij"]).fit("none", eval_data=test)
    history = fit.loss_history
    p = fit.predict(test)
    score = ds.fairness.nij_score(test["hit"], p, test["race"], 0.4)
    assert 1 - history["out_of_sample"].iloc[-1] == pytest.approx(score, abs=0.03)
    fit.save(tmp_path / "fair.ds")
    again = ds.load(tmp_path / "fair.ds")
    assert np.array_equal(again.predict(test), p)
    drawn = fit.bootstrap(replications=5, seed=1)
    assert drawn.bse.gt(0).all()


# -- the frontier ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def frontier(frame):
    return ds.fairness_frontier(
        "hit ~ x + z", frame[::2], "race", threshold=0.4, eval_data=frame[1::2],
        gap_weights=(0, 0.02, 0.1, 0.5),
    )  # fmt: skip


def test_frontier_begins_at_the_fit_without_groups(frame, frontier):
    brier = lossreg("hit ~ x + z", frame[::2], loss="brier").fit()
    first = frontier.params.iloc[0]
    assert first.to_numpy() == pytest.approx(brier.params.to_numpy(), abs=1e-8)
    row = frontier.table.iloc[0]
    assert row["brier"] == pytest.approx(brier.loss_value, rel=1e-10)


def test_frontier_pays_accuracy_for_fairness(frontier):
    assert frontier.table["converged"].all()
    values = [
        (f.model.loss.surrogate, f.model.objective, f.params.to_numpy())
        for f in frontier.fits
    ]
    # Minimisers of cost + w gap: as w grows the cost never falls, the gap never grows.
    cost, gap = [], []
    for surrogate, objective, b in values:
        p = torch.sigmoid(objective.eta(b))
        parts = [
            float(replace(surrogate, weight=w)(p, objective.y, **objective.columns))
            for w in (0.0, 1.0)
        ]
        cost.append(parts[0])
        gap.append(parts[1] - parts[0])
    assert np.diff(cost).min() >= -1e-12
    assert np.diff(gap).max() <= 1e-12
    inside = frontier.table[frontier.table["sample"] == "in_sample"]
    assert inside["gap"].iloc[-1] < 0.02 < 0.15 < inside["gap"].iloc[0]


def test_frontier_is_counted(frame, frontier):
    outside = frontier.table[frontier.table["sample"] == "out_of_sample"]
    test = frame[1::2]
    for fit, (_, row) in zip(frontier.fits, outside.iterrows(), strict=True):
        p = fit.predict(test)
        assert row["nij"] == pytest.approx(
            ds.fairness.nij_score(test["hit"], p, test["race"], 0.4), rel=1e-10
        )
        assert row["gap"] == pytest.approx(abs(row["fpr[a]"] - row["fpr[b]"]))


def test_frontier_picture(frontier):
    pytest.importorskip("matplotlib").use("Agg")
    ax = frontier.plot()
    lines = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    inside = frontier.table[frontier.table["sample"] == "in_sample"]
    assert lines["In sample"] == pytest.approx(inside[["gap", "brier"]].to_numpy())
    assert set(lines) == {"In sample", "Out of sample"}


# -- the bars --------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "bar"), [(0.25, 0.785), (0.5, 0.796)])
def test_nij_challenge(threshold, bar):
    text, train, test = nij_data()
    loss = ds.fairness.nij("Race", threshold)
    fit = lossreg(text, train, loss=loss).fit("none")
    p = fit.predict(test)
    assert fit.converged
    assert ds.fairness.nij_score(test[OUTCOME], p, test["Race"], threshold) >= bar
    assert ((p - test[OUTCOME]) ** 2).mean() < 0.192  # .1901 without groups


def test_compas():
    text, train, test = compas_data()
    fit = lossreg(text, train, loss=ds.fairness.nij("race")).fit("none")
    p = fit.predict(test)
    assert ds.fairness.nij_score(test["Recid30"], p, test["race"]) >= 0.715
    plain = lossreg(text, train, loss="brier").fit("none").predict(test)
    score = ds.fairness.nij_score(test["Recid30"], plain, test["race"])
    assert score == pytest.approx(0.675, abs=0.001)


# -- bad input -------------------------------------------------------------------------

TABLES = {
    "threshold": (dict(threshold=1.0), ValueError, "strictly between 0 and 1"),
    "threshold NaN": (dict(threshold=float("nan")), ValueError, "strictly between"),
    "NaN": (dict(p=[0.1, np.nan, 0.3, 0.4]), DesignError, "p is NaN or infinite in 1"),
    "missing outcome": (dict(y=[0, None, 0, 1]), DesignError, "y is NaN"),
    "missing group": (dict(group=["a", None, "b", "b"]), DesignError, "is missing"),
    "one group": (dict(group=list("aaaa")), DesignError, "no two groups"),
    "no probability": (dict(p=[0.1, 1.2, 0.3, 0.4]), DesignError, "probabilities"),
    "not binary": (dict(y=[0, 2, 0, 1]), DesignError, "y must be 0 or 1"),
    "one class": (dict(y=[0, 1, 0, 0]), DesignError, r"\['b'\] have no positives"),
    "length": (dict(group=list("aab")), DesignError, "4, 4 and 3 rows"),
    "text": (dict(p=list("abcd")), DesignError, "p must be numbers"),
    "level": (dict(conf_level=95), ValueError, "conf_level"),
    "reps": (dict(reps=1), ValueError, "2 samples"),
}  # fmt: skip


@pytest.mark.parametrize("key", TABLES)
def test_bad_input_of_tables(key):
    changed, kind, message = TABLES[key]
    given = {"y": [0, 1, 0, 1], "p": [0.1, 0.6, 0.3, 0.8], "group": list("aabb")}
    with pytest.raises(kind, match=message):
        ds.fairness_table(**{**given, **changed})


OPTIONS = {
    "threshold": (lambda: ds.fairness.nij("g", 0.0), "strictly between"),
    "measure": (lambda: ds.fairness.fair("g", measure="ppv"), "measure='ppv'"),
    "form": (lambda: ds.fairness.fair("g", form="both"), "form='both'"),
    "base": (lambda: ds.fairness.fair("g", base="mse"), "base='mse'"),
    "product": (
        lambda: ds.fairness.fair("g", base="logloss", form="multiplicative"), "below 1"
    ),
    "weight": (lambda: ds.fairness.fair("g", weight=-1), "must not be negative"),
    "width": (lambda: ds.fairness.nij("g", width=0), r"in \(0, 1\]"),
    "column": (lambda: ds.fairness.nij(["g"]), "name of a column"),
    "cap": (lambda: ds.fairness.capped("g", 1.5), "between 0 and 1"),
    "rate": (lambda: ds.fairness.capped("g", 0.5, rate="tnr"), "rate='tnr'"),
}  # fmt: skip


@pytest.mark.parametrize("key", OPTIONS)
def test_bad_options(key):
    make, message = OPTIONS[key]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_surrogate_too_sharp_to_have_a_gradient():
    with pytest.warns(GradientWarning, match="next to no row"):
        ds.fairness.nij("race", width=1e-4)


def test_bad_samples(frame):
    loss = LOSSES["nij"]
    alone = frame[frame["race"] == "a"]
    with pytest.raises(LossError, match="compares groups"):
        lossreg("hit ~ x", alone, loss=loss).fit("none")
    no_negatives = frame[(frame["race"] == "a") | (frame["hit"] == 1)]
    with pytest.raises(LossError, match=r"\['b'\] of race have no rows with outcome 0"):
        lossreg("hit ~ x", no_negatives, loss=loss).fit("none")
    with pytest.raises(LossError, match="0 and 1 only"):
        lossreg("hit ~ x", frame.assign(hit=0.5 * frame["hit"]), loss=loss).fit("none")
    with pytest.raises(DesignError, match="'race', which is not in the data"):
        lossreg("hit ~ x", frame.drop(columns="race"), loss=loss)
    with pytest.raises(DesignError, match="race of the loss is missing in 1"):
        gone = frame.assign(race=frame["race"].where(frame.index != 7, None))
        lossreg("hit ~ x", gone, loss=loss)
    with pytest.raises(LossError, match="Give one cap for each"):
        caps = ds.fairness.capped("race", {"a": 0.2, "c": 0.2})
        lossreg("hit ~ x", frame, loss=caps).fit("none")
    with pytest.raises(ModelError, match="frontier's own loss"):
        ds.fairness_frontier("hit ~ x", frame, "race", loss="brier")
    with pytest.raises(ValueError, match="must increase"):
        ds.fairness_frontier("hit ~ x", frame, "race", gap_weights=(1, 0))


def test_a_function_of_ones_own_is_seen_to_join_rows(frame):
    def own(prediction, y, race):
        """Return Brier score plus a smooth gap, nearly linear where rates differ."""
        flags = torch.sigmoid((prediction - 0.4) / 0.02)
        rates = [(flags * (1 - y))[race == g].sum() / (1 - y)[race == g].sum()
                 for g in (0, 1)]  # fmt: skip
        gap = 0.02 * torch.cosh((rates[0] - rates[1]) / 0.02).log()
        return ((prediction - y) ** 2).mean() + 0.5 * gap

    model = lossreg("hit ~ x + z", frame, loss=own, link="sigmoid")
    found = model.fit("none", start=np.array([-0.2, 0.4, 0.0]))
    assert found.converged and found.kkt_residual < 1e-8
    assert not model.loss.decomposable


def test_no_warnings_of_our_own_losses(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in LOSSES.values():
            lossreg("hit ~ x", frame[:500], loss=loss).fit("none")
