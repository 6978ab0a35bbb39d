"""Printed pages, side-by-side tables and comparisons, from fits of statsmodels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from deepstats.summary import (
    Comparison,
    Etable,
    Notes,
    Pairs,
    Summary,
    Table,
    coefficient_table,
    compare,
    etable,
)

smf = pytest.importorskip("statsmodels.formula.api")
sm = pytest.importorskip("statsmodels.api")

NASTY = "a_b[T.<script>alert('&')</script>] 50% #1 {x} ~ ^ \\ σ² $5"


class FakeResults:
    """The protocol that presentation code may use, filled from a statsmodels fit."""

    def __init__(
        self, fit, response="y", component=None, cov=("nonrobust", "classical")
    ):
        self.fit, self.component = fit, component
        self.params, self.bse = fit.params, fit.bse
        self.tvalues, self.pvalues = fit.tvalues, fit.pvalues
        self.use_t, self.nobs = bool(fit.use_t), int(fit.nobs)
        self.cov_type, self.cov_description = cov
        self.model_name = "Ordinary least squares"
        self.formula_text, self.response_name = "y ~ x + g", response

    def conf_int(self):
        return self.fit.conf_int()

    def tidy(self, conf_level=0.95):
        limits = np.asarray(self.fit.conf_int(1 - conf_level))
        frame = pd.DataFrame(
            {
                "term": list(self.params.index),
                "estimate": self.params.to_numpy(),
                "std_error": self.bse.to_numpy(),
                "statistic": self.tvalues.to_numpy(),
                "p_value": self.pvalues.to_numpy(),
                "conf_low": limits[:, 0],
                "conf_high": limits[:, 1],
            }
        )
        return (
            frame if self.component is None else frame.assign(component=self.component)
        )

    def glance(self):
        row = {"nobs": self.nobs, "llf": self.fit.llf, "aic": self.fit.aic}
        if hasattr(self.fit, "rsquared"):
            row["rsquared"] = self.fit.rsquared
        return pd.DataFrame([row])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"x": rng.normal(size=200), "g": rng.choice(list("abc"), 200)})
    frame["y"] = 1 + 0.5 * frame.x + (frame.g == "b") + rng.normal(size=200)
    frame["count"] = rng.poisson(np.exp(0.3 * frame.x))
    return frame


@pytest.fixture(scope="module")
def ols(data):
    return smf.ols("y ~ x + C(g)", data).fit()


@pytest.fixture(scope="module")
def poisson(data):
    return smf.poisson("count ~ x", data).fit(disp=0)


def page(results, notes=("A note.",)):
    table = coefficient_table(
        results.params,
        results.bse,
        results.tvalues,
        results.pvalues,
        results.conf_int(),
        results.use_t,
    )
    header = Pairs((("Method", "OLS"), ("Observations", 200), ("AIC", 570.123)))
    return Summary("Least squares", "y ~ x + g", (header, table, Notes(notes)))


class Balance(HTMLParser):
    """Checks that tags close in order and gathers the text of every cell."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def parsed(html):
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


# ------------------------------------------------------------------- text


def test_golden_text():
    table = coefficient_table(
        pd.Series({"Intercept": 1.25, "x": -0.0012345, "alpha": 3e-7}),
        pd.Series([0.5, 0.00123, 1e-8]),
        pd.Series([2.5, -1.00366, np.nan]),
        pd.Series([0.0124, 0.3156, np.nan]),
        np.array([[0.27, 2.23], [-0.003645, 0.001176], [2.8e-7, 3.2e-7]]),
        use_t=False,
        component=["mean", "mean", "alpha"],
    )
    header = Pairs((("Family", "poisson (log)"), ("SE", "HC1"), ("AIC", 18858.61)), 2)
    text = Summary("Count model", "y ~ x", (header, table, Notes(("Done.",)))).as_text(
        60
    )
    # the numbers need 68 columns, so the page is wider than the 60 asked for
    assert text.splitlines() == [
        "Count model                                                    y ~ x",
        "=" * 68,
        "Family  poisson (log)            AIC  18858.61",
        "SE      HC1",
        "-" * 68,
        "                coef    std err       z  P>|z|     [0.025     0.975]",
        "-" * 68,
        "mean",
        "Intercept     1.2500     0.5000   2.500  0.012     0.2700     2.2300",
        "x            -0.0012     0.0012  -1.004  0.316    -0.0036     0.0012",
        "-" * 68,
        "alpha",
        "alpha      3.000e-07  1.000e-08                 2.800e-07  3.200e-07",
        "=" * 68,
        "Done.",
    ]


def test_page_is_78_columns_wide(ols):
    lines = str(page(FakeResults(ols), notes=("word " * 60,))).splitlines()
    assert max(map(len, lines)) == 78
    assert lines[1] == "=" * 78
    assert sum(line == "-" * 78 for line in lines) == 1
    heads = next(line.split() for line in lines if "std err" in line)
    assert heads == ["coef", "std", "err", "t", "P>|t|", "[0.025", "0.975]"]
    assert not any(re.search(r"\d\d:\d\d", line) for line in lines)


def test_numbers_are_those_of_the_fit(ols):
    row = next(
        s for s in str(page(FakeResults(ols))).splitlines() if s.startswith("x ")
    )
    low, high = ols.conf_int().loc["x"]
    values = [
        ols.params["x"],
        ols.bse["x"],
        ols.tvalues["x"],
        ols.pvalues["x"],
        low,
        high,
    ]
    np.testing.assert_allclose([float(v) for v in row.split()[1:]], values, atol=6e-4)


def test_long_names_widen_the_page_and_are_not_cut(ols):
    name = "C(a_rather_long_variable_name, contr.treatment)[T.with_a_long_level]"
    params = ols.params.rename({"x": name})
    table = coefficient_table(
        params, ols.bse, ols.tvalues, ols.pvalues, ols.conf_int(), True
    )
    lines = Summary("t", "y ~ x", (table,)).as_text().splitlines()
    assert any(line.startswith(name + " ") for line in lines)
    assert len(lines[1]) == max(map(len, lines)) > 78


def test_long_formula_breaks_outside_brackets():
    formula = (
        "y ~ " + " + ".join(f"variable_{i}" for i in range(6)) + " + (1 + x | group)"
    )
    text = Summary("Linear mixed model", formula, ()).as_text(78)
    assert "(1 + x | group)" in text
    assert " ".join(text.splitlines()[1:-2]).split() == formula.split()


def test_header_uses_fewer_columns_where_values_are_long():
    pairs = Pairs(tuple((f"label{i}", "v" * 28) for i in range(6)))
    lines = Summary("", "", (pairs,)).as_text().splitlines()
    assert len(lines) == 2 + 3
    assert max(map(len, lines)) <= 78


def test_conf_level_sets_the_heads(ols):
    table = coefficient_table(
        ols.params, ols.bse, ols.tvalues, ols.pvalues, ols.conf_int(0.1), True, 0.9
    )
    assert list(table.frame.columns[-2:]) == ["[0.05", "0.95]"]


def test_nan_standard_errors_are_shown():
    table = coefficient_table(
        pd.Series({"x": 1.0}), *[pd.Series([np.nan])] * 3, [[np.nan, np.nan]], False
    )
    assert list(table.frame.iloc[0]) == ["1.0000", "nan", "", "", "nan", "nan"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: Table(f, {"b": ".3f"}), "not in the table"),
        (lambda f: Table(f, align="x"), "letters"),
        (lambda f: Table(f, footer=9), "footer"),
        (lambda f: coefficient_table(*[f["a"]] * 4, [[0, 1]], True), "pairs of limits"),
        (
            lambda f: coefficient_table(*[f["a"]] * 4, f[["a", "a"]], True, 95),
            "0 and 1",
        ),
    ],
)
def test_wrong_tables_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(pd.DataFrame({"a": [1.0, 2.0]}))


def test_degrees_of_freedom_have_a_column(ols):
    df = np.array([17.0, np.nan, 123456.7, 6.444])
    columns = (ols.params, ols.bse, ols.tvalues, ols.pvalues, ols.conf_int())
    frame = coefficient_table(*columns, True, df=df).frame
    assert list(frame)[:4] == ["coef", "std err", "df", "t"]
    assert list(frame["df"]) == ["17.00", "", "1.235e+05", "6.44"]
    with pytest.raises(ValueError, match="1 degrees of freedom"):
        coefficient_table(*columns, True, df=df[:1])


def test_table_that_is_not_spread():
    frame = pd.DataFrame({"x": [0.5]}, index=["Days"])
    wide, narrow = (
        Summary("", "", (Table(frame, spread=spread),)).as_text()
        for spread in (True, False)
    )
    assert narrow.splitlines()[2] == "Days  0.5000"
    assert len(wide.splitlines()[2]) == 78


def test_mixed_table_of_random_effects():
    frame = pd.DataFrame(
        {
            "Groups": ["plate", "Residual"],
            "Variance": [0.7169, 0.3024],
            "Corr": ["", None],
        }
    )
    text = Summary(
        "", "", (Table(frame, caption="Random effects", index=False),)
    ).as_text()
    lines = text.splitlines()
    assert lines[1] == "Random effects"
    assert lines[2].split() == ["Groups", "Variance", "Corr"]
    assert lines[3].split() == ["plate", "0.7169"]


# ------------------------------------------------------ HTML and Markdown


def nasty_page(ols):
    params = ols.params.rename({"x": NASTY})
    table = coefficient_table(
        params, ols.bse, ols.tvalues, ols.pvalues, ols.conf_int(), True, caption=NASTY
    )
    pairs = Pairs(((NASTY, NASTY), ("n", 3)))
    return Summary(NASTY, NASTY, (pairs, table, Notes((NASTY, "*** p < 0.05"))))


def test_html_is_well_formed_and_escaped(ols):
    html = nasty_page(ols)._repr_html_()
    parser = parsed(html)
    assert "script" not in parser.tags
    assert {"table", "thead", "tbody", "th", "td", "caption"} <= parser.tags
    assert NASTY in parser.cells
    assert f"{ols.params['x']:.4f}" in parser.cells


def test_html_etable_has_a_foot(ols, poisson):
    parser = parsed(etable(FakeResults(ols), FakeResults(poisson)).as_html())
    assert "tfoot" in parser.tags
    assert f"{ols.params['x']:.3f}***" in parser.cells


def test_markdown_tables_have_equal_columns(ols):
    text = nasty_page(ols).as_markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    heads = next(row for row in rows if "std err" in row)
    wide = rows[rows.index(heads) :]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in wide} == {8}
    assert r"P>\|t\|" in heads


# ------------------------------------------------------------------ LaTeX

BOOKTABS = r"""\ProvidesPackage{booktabs}
\newcommand{\toprule}{\hline}
\newcommand{\midrule}{\hline}
\newcommand{\bottomrule}{\hline}
"""


def compiled(tmp_path, body):
    """Compile a document; where booktabs.sty is missing its rules become hlines."""
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("pdflatex is not installed")
    kpsewhich = shutil.which("kpsewhich")
    found = kpsewhich and subprocess.run(
        [kpsewhich, "booktabs.sty"], capture_output=True
    )
    if not found or found.returncode:
        (tmp_path / "booktabs.sty").write_text(BOOKTABS)
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(
        document + body + "\n\\end{document}\n", encoding="utf-8"
    )
    outcome = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stdout.decode(errors="replace")[-2000:]


def test_latex_compiles(tmp_path, ols, poisson):
    first = FakeResults(ols, response=NASTY, component=NASTY)
    second = FakeResults(poisson, component=["count", "[zero] *"])
    labels = {"x": NASTY, "C(g)[T.b]": "[starts with a bracket", "C(g)[T.c]": "* star"}
    side = etable(first, second, labels=labels, headers=[NASTY, "(2)"], se="ci")
    plain = compare(FakeResults(ols), ols)
    pages = [nasty_page(ols), side, plain]
    compiled(tmp_path, "\n\n".join(page.as_latex() for page in pages))


def test_latex_numbers_meet_at_the_point(ols):
    lines = etable(FakeResults(ols), stats=["llf"]).as_latex().splitlines()
    x = ols.params["x"]
    assert r"\begin{tabular}{lr@{}l}" in lines
    assert rf"x & 0 & .{round(1000 * x)}$^{{***}}$ \\" in lines
    assert rf"Log-likelihood & \multicolumn{{2}}{{c}}{{$-${-ols.llf:.1f}}} \\" in lines
    assert r"C(g){[}T.b{]} & " in "\n".join(lines)


# ----------------------------------------------------------------- etable


def test_etable_numbers_and_stars(ols, poisson):
    table = etable(FakeResults(ols, "y"), FakeResults(poisson, "count"))
    assert isinstance(table, Etable)
    frame = table.frame
    assert list(frame.columns) == [("(1)", "y"), ("(2)", "count")]
    cells = frame.xs("x", level="term")
    for j, fit in enumerate((ols, poisson)):
        p = fit.pvalues["x"]
        stars = "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""
        assert cells.iloc[0, j] == f"{fit.params['x']:.3f}{stars}"
        assert cells.iloc[1, j] == f"({fit.bse['x']:.3f})"
    assert list(frame.xs("C(g)[T.b]", level="term").iloc[:, 1]) == ["", ""]
    statistics = frame.loc["statistics"].droplevel("row")
    assert list(statistics.loc["Observations"]) == ["200", "200"]
    assert list(statistics.loc["R²"]) == [f"{ols.rsquared:.3f}", ""]
    assert list(statistics.loc["Std. errors"]) == ["classical", "classical"]
    assert "BIC" not in statistics.index
    assert "*** p < 0.001, ** p < 0.01, * p < 0.05" in " ".join(str(table).split())


def test_etable_aligns_decimal_points(ols, poisson):
    lines = str(etable(FakeResults(ols), FakeResults(poisson))).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) <= {"-", "="}]
    body = [line for line in lines[rules[1] + 1 : rules[2]] if len(line) < 45]
    places = {line.rindex(".") for line in body if line.startswith("C(")}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("se", "expected"),
    [
        ("t", lambda fit: f"({fit.tvalues['x']:.2f})"),
        ("p", lambda fit: f"({fit.pvalues['x']:.2f})"),
        ("ci", lambda fit: "[{:.3f}, {:.3f}]".format(*fit.conf_int().loc["x"])),
    ],
)
def test_etable_rows_below(ols, se, expected):
    frame = etable(FakeResults(ols), se=se, digits=2, stars=False).frame
    cells = frame.xs("x", level="term").iloc[:, 0].to_list()
    # a standard error of 0.07 needs three decimals to show two of its digits
    assert cells[0] == f"{ols.params['x']:.3f}"
    assert cells[1] == expected(ols)


def test_small_standard_errors_get_two_digits(data):
    fit = smf.ols("y ~ z", data.assign(z=1000 * data.x)).fit()
    cell = etable(FakeResults(fit), stars=False).frame.xs("z", level="term").iloc[1, 0]
    assert float(cell.strip("()")) == pytest.approx(fit.bse["z"], rel=0.06)


def test_etable_selects_orders_and_labels(ols):
    one = FakeResults(ols)
    terms = etable(one, drop=r"C\(", order="^x$", labels={"x": "Dose"}).frame.loc[""]
    assert list(dict.fromkeys(terms.index.get_level_values("term"))) == [
        "Dose",
        "Intercept",
    ]
    kept = etable(one, keep=["^x", r"T\.c"]).frame.loc[""]
    assert set(kept.index.get_level_values("term")) == {"x", "C(g)[T.c]"}


def test_etable_components(ols, poisson):
    zip_like = FakeResults(poisson, component=["count", "zero"])
    frame = etable(FakeResults(ols), zip_like).frame
    assert list(frame.loc[("", "Intercept", "estimate")].astype(bool)) == [True, True]
    assert list(frame.loc[("zero", "x", "estimate")].astype(bool)) == [False, True]
    assert "\nzero\n" in str(etable(FakeResults(ols), zip_like))
    assert "\ncount\n" in str(etable(zip_like))


def test_etable_writes_files(tmp_path, ols):
    path = tmp_path / "table.tex"
    table = etable(FakeResults(ols), filename=path)
    assert path.read_text() == table.as_latex() + "\n"
    etable(FakeResults(ols), filename=tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv").shape[1] == 4
    assert str(etable(FakeResults(ols), output="markdown")).startswith("|")
    assert str(etable(FakeResults(ols), output="html")).startswith("<div")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "word"}, "text, html, latex"),
        ({"se": "hc1"}, "one of"),
        ({"stars": {5: "*"}}, "between 0 and 1"),
        ({"digits": 2.5}, "integer"),
        ({"headers": ["a", "b"]}, "1 names"),
        ({"keep": "C("}, "regular expression"),
        ({"keep": "nothing"}, "leave no term"),
        ({"stats": ["rsqared"]}, "no model has the statistic 'rsqared'"),
        ({"stats": "nobs"}, "list of names"),
    ],
)
def test_etable_refuses_wrong_options(ols, options, message):
    with pytest.raises(ValueError, match=message):
        etable(FakeResults(ols), **options)


def test_etable_needs_results(ols):
    with pytest.raises(ValueError, match="at least one"):
        etable()
    with pytest.raises(ValueError, match="deepstats models"):
        etable(ols.params)


# ---------------------------------------------------------------- compare


def test_compare_with_statsmodels_formula(ols):
    outcome = compare(FakeResults(ols), ols, tolerance=1e-12)
    assert isinstance(outcome, Comparison)
    assert outcome.max_rel == {"coef": 0.0, "se": 0.0, "llf": 0.0}
    assert outcome.agrees
    assert "All within the tolerance 1e-12." in str(outcome)
    assert outcome.frame.index[-1] == "Log-likelihood"
    parsed(outcome.as_html())


def test_compare_with_statsmodels_arrays(data):
    ours = smf.ols("y ~ x", data).fit()
    theirs = sm.OLS(data.y.to_numpy(), sm.add_constant(data[["x"]].to_numpy())).fit()
    outcome = compare(FakeResults(ours), theirs)
    # only the constant can be matched: arrays have no column names
    assert list(outcome.frame.index) == ["Intercept", "Log-likelihood"]
    assert outcome.unmatched == {"results": ("x",), "other": ("x1",)}
    assert "Only in deepstats: x." in str(outcome)
    assert "Only in the other: x1." in str(outcome)
    assert outcome.max_rel["coef"] < 1e-10


def test_compare_finds_differences(ols):
    coef = ols.params.rename({"Intercept": "(Intercept)", "C(g)[T.b]": "gb"})
    coef = coef.rename({"C(g)[T.c]": "g[T.c]"})
    other = {"coef": dict(coef), "se": dict(ols.bse * 1.01), "llf": ols.llf}
    other["se"] = dict(zip(coef.index, ols.bse * 1.01, strict=True))
    other["coef"]["x"] *= 2
    outcome = compare(FakeResults(ols), other, tolerance=1e-3)
    assert outcome.unmatched == {"results": (), "other": ()}
    assert outcome.max_rel["coef"] == pytest.approx(0.5)
    assert outcome.max_rel["se"] == pytest.approx(1 - 1 / 1.01)
    assert outcome.frame.loc["x", "diff"] == pytest.approx(abs(ols.params["x"]))
    assert not outcome.agrees
    assert "Estimates, standard errors differ by more than" in str(outcome)


def test_compare_with_files(tmp_path, ols):
    frame = pd.DataFrame(
        {"term": ols.params.index, "estimate": ols.params, "std.error": ols.bse}
    )
    frame.to_csv(tmp_path / "tidy.csv", index=False)
    outcome = compare(FakeResults(ols), tmp_path / "tidy.csv", tolerance=1e-10)
    assert outcome.agrees
    assert set(outcome.max_rel) == {"coef", "se"}
    entry = {"coef": dict(ols.params), "HC1": dict(ols.bse), "se_oim": dict(ols.bse)}
    (tmp_path / "entry.json").write_text(json.dumps(entry))
    path = str(tmp_path / "entry.json")
    robust = FakeResults(ols, cov=("HC1", "robust"))
    assert "Standard errors (robust; other: HC1)" in str(compare(robust, path))
    assert "other: se_oim" in str(compare(FakeResults(ols), path))
    assert "other: HC1" in str(compare(FakeResults(ols), path, se="HC1"))


def test_compare_leaves_other_kinds_of_errors_alone(ols):
    entry = {"coef": dict(ols.params), "se_opg": dict(ols.bse)}
    outcome = compare(FakeResults(ols), entry)
    assert "se" not in outcome.max_rel
    assert "no standard errors of the same kind" in str(outcome)


def test_compare_two_of_ours_and_components(poisson):
    zip_like = FakeResults(poisson, component=["count", "zero"])
    assert compare(zip_like, zip_like, tolerance=1e-12).agrees
    names = {
        "(Intercept)": poisson.params["Intercept"],
        "inflate_x": poisson.params["x"],
    }
    outcome = compare(zip_like, {"coef": names}, tolerance=1e-12)
    assert outcome.agrees
    assert list(outcome.frame.index) == ["Intercept", "zero_x"]


def test_compare_does_not_take_a_zero_part_for_the_mean(poisson):
    ours = FakeResults(poisson, component=["zero", "zero"])
    with pytest.raises(ValueError, match="no term matches"):
        compare(ours, {"coef": dict(poisson.params)})
    thresholds = FakeResults(poisson, component=["mu", "thresholds"])
    assert compare(thresholds, poisson, tolerance=1e-12).agrees


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        ({"coef": {"q": 1.0}}, {}, "no term matches"),
        ({"ols": {"coef": {}}}, {}, "pass that entry"),
        ({"coef": {"x": 1.0}}, {"se": "HC9"}, "not among"),
        ({"coef": {"x": 1.0}}, {"tolerance": 0}, "positive"),
        (3.0, {}, "cannot compare with float"),
        ("fit.rds", {}, "json or .csv"),
    ],
)
def test_compare_refuses(ols, other, options, message):
    with pytest.raises(ValueError, match=message):
        compare(FakeResults(ols), other, **options)


def test_agrees_needs_a_tolerance(ols):
    with pytest.raises(ValueError, match="tolerance"):
        _ = compare(FakeResults(ols), ols).agrees


def test_etable_breaks_long_standard_error_names(ols):
    cov = ("cluster", "cluster by firm (500) and year (10)")
    table = etable(FakeResults(ols, cov=cov), FakeResults(ols))
    lines = [line.split() for line in str(table).replace("\xa0", " ").splitlines()]
    at = next(i for i, line in enumerate(lines) if line[:1] == ["Std."])
    assert lines[at : at + 3] == [
        ["Std.", "errors", "cluster", "by", "classical"],
        ["firm", "(500)", "and"],
        ["year", "(10)"],
    ]
    row = table.frame.xs("cov_type", level="row").iloc[0]
    assert list(row) == [cov[1], "classical"]
