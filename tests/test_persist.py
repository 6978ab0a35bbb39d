"""Saved fits say and predict the same; files that are not ours are refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest

from deepstats import GLM, OLS
from deepstats.errors import ModelError
from deepstats.families import Power, get_family
from deepstats.models.beta import BetaModel
from deepstats.models.categorical import MultinomialModel, OrdinalModel
from deepstats.models.counts import (
    HurdleModel,
    NegativeBinomialModel,
    ZeroInflatedModel,
)
from deepstats.models.quantile import QuantReg
from deepstats.persist import decode, encode, load

RICH = "poly(x, 2) + ns(z, df=3) * a + C(b, contr.sum) + scale(w) + offset(log(e))"

CASES = {
    "ols": lambda d: OLS(f"y ~ {RICH}", d).fit("HC3"),
    "wls": lambda d: OLS("y ~ bs(x, df=4) + a:z", d, weights="w").fit(),
    "clustered": lambda d: OLS("y ~ x", d).fit("cluster", {"groups": "g"}, use_t=True),
    "poisson": lambda d: GLM(f"count ~ {RICH}", d, family="poisson").fit("HC1"),
    "exposure": lambda d: GLM("count ~ x", d, family="poisson", exposure="e").fit(),
    "probit": lambda d: GLM("hit ~ x + a", d, family="binomial", link="probit").fit(),
    "gamma": lambda d: GLM("positive ~ x", d, family="gamma", link="log").fit(),
    "tweedie": lambda d: GLM(
        "positive ~ x", d, family=get_family("tweedie", power=1.4)
    ).fit(),
    "nb_fixed": lambda d: GLM(
        "count ~ x", d, family=get_family("negativebinomial", alpha=0.3)
    ).fit(),
    "quasi": lambda d: GLM(
        "positive ~ x", d, family=get_family("quasi", variance="mu^2", link="log")
    ).fit(),
    "power_link": lambda d: GLM(
        "positive ~ x", d, family="gamma", link=Power(0.25)
    ).fit(),
    "nb2": lambda d: NegativeBinomialModel("count ~ x + z", d).fit(),
    "zip": lambda d: ZeroInflatedModel("count ~ x | z", d).fit(),
    "hurdle": lambda d: HurdleModel("count ~ x", d, dist="poisson").fit(),
    "ordinal": lambda d: OrdinalModel("c ~ x + a", d).fit(),
    "multinomial": lambda d: MultinomialModel("a ~ x", d, base="w").fit(),
    "beta": lambda d: BetaModel("share ~ x | z", d).fit(),
    "quantile": lambda d: QuantReg("y ~ x + z", d).fit(q=0.31),
}


@pytest.fixture
def data(small):
    return small.assign(count=small["count"].where(small["g"] > 3, 0))


@pytest.fixture
def saved(data, tmp_path):
    fit = CASES["ols"](data)
    return fit.save(tmp_path / "fit.zip")


def rewritten(path, change, target):
    """Copy a file with `change(contents, members)` applied."""
    with zipfile.ZipFile(path) as file:
        members = {n: file.read(n) for n in file.namelist()}
    contents = json.loads(members["results.json"])
    change(contents, members)
    members["results.json"] = json.dumps(contents).encode()
    with zipfile.ZipFile(target, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return target


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_fit_says_and_predicts_the_same(data, tmp_path, case):
    fit = CASES[case](data)
    path = fit.save(tmp_path / "fit.zip")
    again = load(path)
    assert type(again) is type(fit)
    assert str(again.summary()) == str(fit.summary())
    assert again.summary().as_latex() == fit.summary().as_latex()
    for name in ("params", "bse", "tvalues", "pvalues"):
        pd.testing.assert_series_equal(getattr(again, name), getattr(fit, name))
    pd.testing.assert_frame_equal(again.cov_params(), fit.cov_params())
    pd.testing.assert_frame_equal(again.conf_int(0.1), fit.conf_int(0.1))
    pd.testing.assert_frame_equal(again.tidy(), fit.tidy())
    pd.testing.assert_frame_equal(again.glance(), fit.glance())
    new = data.iloc[::-3]
    a, b = again.predict(new), fit.predict(new)
    pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))
    if case != "quantile":
        a, b = (f.get_prediction(new).summary_frame() for f in (again, fit))
        pd.testing.assert_frame_equal(a, b)
    hypothesis = f"{fit.names[0]} = 0"
    if "|" not in hypothesis and "[" not in hypothesis:
        assert again.wald_test(hypothesis) == fit.wald_test(hypothesis)
    assert load(again.save(tmp_path / "again.zip")).params.equals(fit.params)
    message = "holds no data" if case != "quantile" else "quantile regression"
    with pytest.raises(ModelError, match=message):
        again.get_robustcov_results("HC0")


def test_files_are_small_and_hold_no_data(tmp_path):
    rng = np.random.default_rng(1)
    big = pd.DataFrame(rng.normal(size=(50_000, 2)), columns=["y", "x"])
    path = OLS("y ~ x", big).fit().save(tmp_path / "fit.zip")
    assert path.stat().st_size < 10_000


def test_what_needs_the_data_says_so(saved, data):
    again = load(saved)
    for call in (again.get_influence, again.marginal_effects, again.get_margeff,
                 again.augment, again.predict, lambda: again.fittedvalues,
                 lambda: again.resid, lambda: again.lr_test("Intercept = 0"),
                 again.bootstrap):  # fmt: skip
        with pytest.raises(ModelError, match="fit the model again"):
            call()


def test_effects_for_new_data_need_no_old_data(saved, data):
    fit = CASES["ols"](data)
    new = data[data["x"].between(-1, 1)]
    a, b = (f.marginal_effects(newdata=new) for f in (load(saved), fit))
    pd.testing.assert_frame_equal(a, b)


def test_functions_are_asked_for_again(data, tmp_path):
    fit = OLS("y ~ twice(x)", data, context={"twice": _twice}).fit()
    path = fit.save(tmp_path / "fit.zip")
    with pytest.raises(ValueError, match=r"twice.*context="):
        load(path)
    again = load(path, context={"twice": _twice})
    pd.testing.assert_series_equal(again.predict(data), fit.predict(data))


def _twice(x):
    return 2 * x


def test_values_keep_their_types():
    value = {
        "a": (1, 2.5, None, True), 3: [np.nan, np.inf, "x"], (1, "b"): {"$tuple": "no"},
        "array": np.arange(6.0).reshape(2, 3), "i": np.int64(4), "flag": np.False_,
    }  # fmt: skip
    found = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert found["a"] == (1, 2.5, None, True) and isinstance(found["a"], tuple)
    assert np.isnan(found[3][0]) and found[3][1:] == [np.inf, "x"]
    assert found[1, "b"] == {"$tuple": "no"}
    np.testing.assert_array_equal(found["array"], value["array"])
    assert found["i"] == 4 and found["flag"] is False
    with pytest.raises(TypeError):
        encode(object())
    with pytest.raises(TypeError):
        encode(np.array([object()]))


def test_pickled_arrays_are_refused(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of the file was run",))

    def change(contents, members):
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
        members["x.npy"] = buffer.getvalue()

    with pytest.raises(ValueError, match="not a plain array"):
        load(rewritten(saved, change, tmp_path / "bad.zip"))

    def pickled(contents, members):
        members["x.npy"] = pickle.dumps([1, 2])

    with pytest.raises(ValueError, match="not a plain array"):
        load(rewritten(saved, pickled, tmp_path / "bad.zip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, m: c.update({"class": "os.system"}), "unknown model"),
        (lambda c, m: c.update({"class": "Popen"}), "unknown model"),
        (lambda c, m: c.update({"class": ["OLS"]}), "unknown model"),
        (lambda c, m: c.update(version=99), "newer deepstats"),
        (lambda c, m: c.update(version="1"), "no valid version"),
        (lambda c, m: c.update(format="x"), "not a file of deepstats"),
        (lambda c, m: c.pop("fit"), "not a complete file"),
        (lambda c, m: m.pop("bread.npy"), "not a complete file"),
        (lambda c, m: c.update(model={"$dict": [["mean", "x"]]}), "no attribute"),
        (lambda c, m: c.update(model={"$dict": [["__class__", "x"]]}), "no attribute"),
        (lambda c, m: c.update(model={"$code": "x"}), "unknown kind"),
        (lambda c, m: c.update(use_t={"$family": {"$dict": [["name", 1]]}}), "family"),
        (lambda c, m: c.update(use_t={"$array": [1], "dtype": "O"}), "type 'O'"),
        (lambda c, m: m.update({"x.npy": m["bread.npy"]}), "has shape"),
    ],
)  # fmt: skip
def test_crafted_files_are_refused(saved, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(rewritten(saved, change, tmp_path / "bad.zip"))


def test_formulas_of_files_run_nothing(saved, tmp_path, data):
    evil = "__import__('os').system('true')"

    def formula(contents, members):
        for pair in contents["design"]["$dict"]:
            if pair[0] == "formula":
                pair[1] = f"y ~ {evil}"

    with pytest.raises(ValueError):
        load(rewritten(saved, formula, tmp_path / "bad.zip"))

    def term(contents, members):
        for pair in contents["design"]["$dict"]:
            if pair[0] == "terms":
                pair[1] = [{"$tuple": [evil]}]

    again = load(rewritten(saved, term, tmp_path / "bad.zip"))
    with pytest.raises(ValueError):
        again.predict(data)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("something.txt", "x")
    with pytest.raises(ValueError, match="not a file of deepstats"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_damaged_file_is_refused(saved):
    raw = bytearray(saved.read_bytes())
    raw[60:80] = bytes(20)
    saved.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        load(saved)


def test_links_of_the_user_cannot_be_saved(data, tmp_path):
    from deepstats.families import Identity

    class Own(Identity):
        name = "own"

    fit = GLM("y ~ x", data, family="gaussian", link=Own()).fit()
    with pytest.raises(ModelError, match="cannot be saved"):
        fit.save(tmp_path / "fit.zip")
