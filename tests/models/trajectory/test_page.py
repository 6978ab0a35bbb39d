"""The printed page: what it holds, in which order, and that it is well formed."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import MissingDataWarning, ModelError
from deepstats.models.trajectory import Trajectory, TrajectoryResults

from .data import fit
from .test_hypotheses import orders
from .test_results import counts, several, simulated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def lines(results: TrajectoryResults, **options) -> list[str]:
    return results.summary(**options).as_text().split("\n")


def value(results: TrajectoryResults, label: str) -> str:
    """Return what the header says of a label."""
    text = results.summary().as_text()
    found = re.search(rf"{re.escape(label)}  +(.*?)(?:  |\n)", text)
    assert found is not None
    return found[1].strip()


@pytest.mark.parametrize("build", [counts, several, orders])
def test_the_page_keeps_to_78_columns(build) -> None:
    assert max(map(len, lines(build()))) == 78


def test_header_tells_what_was_fitted_and_how_well() -> None:
    results = counts()
    assert value(results, "Family") == "poisson (log)"
    assert value(results, "Groups") == "2"
    assert value(results, "Units") == "90"
    assert value(results, "Rows") == "528"
    reached = results.traj.solution.reached
    assert value(results, "Starts") == f"12 (best reached {reached} times)"
    assert value(results, "SE") == "observed information"
    assert value(results, "Converged") == "yes"
    assert value(results, "Log-likelihood") == f"{results.llf:.2f}"
    assert value(results, "Parameters") == "8"
    assert value(results, "AIC") == f"{results.aic:.2f}"
    assert value(results, "BIC (units)") == f"{results.bic_units:.2f}"
    assert value(results, "BIC (rows)") == f"{results.bic_rows:.2f}"
    assert value(results, "Relative entropy") == f"{results.entropy:.4f}"
    robust = results.get_robustcov_results("HC0")
    assert value(robust, "SE") == "HC0"


def test_groups_have_share_app_and_occ() -> None:
    results = counts()
    page = lines(results)
    at = page.index("Groups")
    heads = page[at + 1].split()
    assert heads == ["share", "std", "err", "[0.025", "0.975]", "assigned", "units",
                     "APP", "OCC"]  # fmt: skip
    share, table = results.group_probs.loc["g2"], results.adequacy().loc["g2"]
    expected = [
        *(f"{100 * v:.1f}%" for v in share.iloc[:5]), str(int(share["n"])),
        f"{table['app']:.3f}", f"{table['occ']:.1f}",
    ]  # fmt: skip
    assert page[at + 3].split() == ["Group", "2", *expected]
    wide = lines(results, alpha=0.1)
    assert "[0.05" in wide[wide.index("Groups") + 1]


def test_blocks_follow_each_other_group_by_group() -> None:
    share = counts().group_probs["share"]
    heads = [line for line in lines(counts()) if re.match(r"Group \d \(|Member", line)]
    assert heads == [
        f"Group 1 ({share['g1']:.1%})", f"Group 2 ({share['g2']:.1%})",
        "Membership of group 2 (against group 1)",
    ]  # fmt: skip
    zero = fit("wheeler.zip1.g3")
    heads = [line for line in lines(zero) if re.match(r"Group \d( \(|,)|Member", line)]
    assert [re.sub(r" \(\d.*", "", h) for h in heads] == [
        "Group 1", "Group 1, inflate (logit)", "Group 2", "Group 2, inflate (logit)",
        "Group 3", "Group 3, inflate (logit)", "Membership (log odds against group 1)",
    ]  # fmt: skip


def test_levels_have_a_block_each() -> None:
    data = simulated()
    data["o"] = pd.cut(data["y"], [-99, 0, 2, 99], labels=["low", "some", "high"])
    results = Trajectory(
        "traj(o ~ t, groups=2, id=id)", data, family="multinomial"
    ).fit(starts=8)
    heads = [line for line in lines(results) if re.match(r"Group \d,", line)]
    assert heads == [
        f"Group {k}, {level} against low (logit)"
        for k in (1, 2)
        for level in ("some", "high")
    ]
    assert not {".fitted", ".resid"} & set(results.augment().columns)
    with pytest.raises(ModelError, match="no mean"):
        _ = results.fittedvalues
    assert results.test_orders()["part"].tolist() == ["1", "1", "2", "2"]
    ordinal = Trajectory("traj(o ~ t, groups=2, id=id)", data, family="ordinal").fit(
        starts=8
    )
    step = next(line for line in lines(ordinal) if line.startswith("step2"))
    assert len(step.split()) == 5
    # The mean of an ordered response is that of its codes.
    fitted = ordinal.fittedvalues
    assert ((fitted > 0) & (fitted < 2)).all()


def test_a_coefficient_is_printed_with_its_test() -> None:
    results = counts()
    row = next(line for line in lines(results) if line.startswith("I(t ** 2)"))
    ci = results.conf_int().loc["g1:I(t ** 2)"]
    at = "g1:I(t ** 2)"
    assert row.split()[3:] == [
        f"{results.params[at]:.4f}", f"{results.bse[at]:.4f}",
        f"{results.tvalues[at]:.3f}", f"{results.pvalues[at]:.3f}",
        f"{ci[0]:.4f}", f"{ci[1]:.4f}",
    ]  # fmt: skip


def test_scales_have_no_test_of_zero() -> None:
    row = next(line for line in lines(several()) if line.startswith("sigma"))
    assert len(row.split()) == 5


def test_what_is_not_identified_is_blank() -> None:
    results = fit("logit2gr")
    page = lines(results)
    assert not any(re.search(r"\bnan\b", line) for line in page)
    at = next(i for i, line in enumerate(page) if line.startswith("Group 1 (60"))
    assert page[at + 1].split()[0] == "Intercept" and len(page[at + 1].split()) == 2
    assert any(
        line.startswith("The data do not determine g1:Intercept") for line in page
    )


def test_notes_name_what_was_left_out_and_other_maxima() -> None:
    assert "Left out: 12 rows with missing values." in lines(counts())
    results = fit("epil.pois.g4")
    others = results.optima.iloc[1:]
    assert len(others)
    note = next(line for line in lines(results) if line.startswith("Other maxima: "))
    assert f"{others['llf'].iloc[0]:.2f}" in note
    data = simulated()
    data["x"] = data["x"].mask(data["id"] == 7)
    with pytest.warns(MissingDataWarning):
        gone = Trajectory("traj(y ~ t, groups=2, id=id, risk=~ x)", data).fit(starts=8)
    text = " ".join(lines(gone))
    assert "1 of 90 units are left out" in text and "(7)" in text


def test_weights_need_a_sandwich_and_the_page_says_so() -> None:
    note = "Standard errors take the sampling weights for counts of units"
    assert any(note in line for line in lines(several()))
    robust = several().get_robustcov_results("HC0")
    assert not any(note in line for line in lines(robust))


def test_one_group_has_no_table_of_groups() -> None:
    one = Trajectory("traj(y ~ poly(t, 2), groups=1, id=id)", simulated()).fit()
    page = lines(one)
    assert "Groups" not in page and not any("entropy" in line for line in page)
    assert any(line.startswith("poly(t, 2)[2]") for line in page)


def test_html_and_latex() -> None:
    results = several()
    html = results._repr_html_()
    assert html == results.summary().as_html()
    assert html.count("<table") == html.count("</table>") == 3
    assert "Group 2, n" in html and "<caption>Groups</caption>" in html
    latex = results.summary().as_latex()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert r"\textit{Group 2, n}" in latex and r"\%" in latex
    assert np.isclose(
        float(re.search(r"Log-likelihood & (-?[\d.]+)", latex)[1]),
        results.llf,
        atol=0.01,
    )
