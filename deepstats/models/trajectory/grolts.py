"""The GRoLTS checklist of reporting on trajectory studies, filled in from a fit.

References
----------
van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), The GRoLTS-checklist:
guidelines for reporting on latent trajectory studies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import ModelError
from ...expressions import expression_variables
from ...persist import versions
from ...results import counted
from .adequacy import adequacy_table
from .reading import OutcomePlan, named, polynomial
from .rows import data_rows

if TYPE_CHECKING:
    from .results import TrajectoryResults
    from .study import Outcome, Study

__all__ = ["Grolts", "Item", "grolts"]

#: Occasions whose times are listed.
_OCCASIONS = 12


@dataclass(frozen=True)
class Item:
    """One item of the checklist.

    Attributes
    ----------
    number : str
        "1" to "16", with a letter where an item has parts.
    asks : str
        What is to be reported.
    answer : str
        What the fit knows of it, in Markdown; empty where it knows nothing.
    author : str
        What is left for the author to say; empty where the fit says it all.
    """

    number: str
    asks: str
    answer: str = ""
    author: str = ""

    @property
    def status(self) -> str:
        """Whether the fit answers it: "reported", "in part" or "for the author"."""
        if not self.answer:
            return "for the author"
        return "in part" if self.author else "reported"


@dataclass(frozen=True)
class Grolts:
    """The checklist, which prints as Markdown.

    Attributes
    ----------
    title : str
    items : tuple of Item
    """

    title: str
    items: tuple[Item, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """Items as rows: asks, status, answer, author."""
        return pd.DataFrame(
            [(i.asks, i.status, i.answer, i.author) for i in self.items],
            index=pd.Index([i.number for i in self.items], name="item"),
            columns=["asks", "status", "answer", "author"],
        )

    def __str__(self) -> str:
        """Return the checklist in Markdown."""
        whole = sum(i.status == "reported" for i in self.items)
        part = sum(i.status == "in part" for i in self.items)
        lines = [
            "# GRoLTS checklist", "", self.title, "",
            f"Of {len(self.items)} items the fit answers {whole}, and {part} in part; "
            "the others are for the author to answer.", "",
        ]  # fmt: skip
        for item in self.items:
            lines += [f"**{item.number}. {item.asks}** ({item.status})", ""]
            lines += [item.answer, ""] if item.answer else []
            lines += [f"*For the author:* {item.author}", ""] if item.author else []
        lines.append(
            "van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), Structural "
            "Equation Modeling 24(3), 451-467."
        )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return str(self)


def grolts(results: TrajectoryResults) -> Grolts:
    """Fill in the checklist with what a fit knows.

    Parameters
    ----------
    results : TrajectoryResults

    Returns
    -------
    Grolts
        An item that one fit cannot answer says so; nothing is assumed.
    """
    parts = (_data_items, _model_items, _search_items, _report_items)
    items = [item for part in parts for item in part(results)]
    return Grolts(f"{results.model_name}: `{results.formula_text}`", tuple(items))


# -- the data: items 1 to 4 ------------------------------------------------------------


def _data_items(results: TrajectoryResults) -> Iterator[Item]:
    study = results.model.study
    times = _times(study)
    yield Item(
        "1", "Metric of time", _metric(times),
        "the unit of time, and where its zero is.",
    )  # fmt: skip
    yield Item(
        "2", "Mean and variance of time within a wave", _waves(times),
        "" if times else "no numeric column of time was found in the formula.",
    )  # fmt: skip
    yield Item(
        "3a", "Mechanism by which data are missing",
        "" if study.attendance is None else
        "Dropping out is modelled in each group, with the trajectories.",
        "the mechanism assumed, and why. Maximum likelihood takes data to be missing "
        "at random, given group, risk factors and the responses observed.",
    )  # fmt: skip
    yield Item(
        "3b",
        "Variables related to attrition and missing data",
        "",
        "which were looked at, and what was found.",
    )
    yield Item("3c", "How missing data were dealt with", _missing(study))
    yield Item("4", "Distribution of the observed variables", _distribution(study))


def _measured(study: Study) -> list[tuple[Outcome, OutcomePlan]]:
    """Pair the outcomes that the data have with what was asked of them."""
    return list(zip(study.measured, study.plan.outcomes, strict=False))


@dataclass(frozen=True)
class _Time:
    outcome: str
    name: str
    values: np.ndarray
    occasion: np.ndarray


def _times(study: Study) -> list[_Time]:
    """Return the numeric variable of each outcome's polynomial, else of its formula."""
    found = []
    for outcome, asked in _measured(study):
        columns = polynomial(asked.formula.rhs)
        terms = [f for t in asked.formula.rhs.terms for f in t.factors]
        names = [v for text in (*columns[:1], *terms) for v in _variables(text)]
        names = [n for n in names if n in study.table.columns]
        values = study.table.numeric(names[0]) if names else None
        if values is None:
            continue
        values = np.asarray(values, dtype=float)[data_rows(outcome)]
        unit = outcome.unit.cpu().numpy()
        order = np.lexsort((values, unit))
        starts = np.searchsorted(unit, unit)
        occasion = np.empty(len(unit), dtype=int)
        occasion[order] = np.arange(len(unit)) - starts
        found.append(_Time(outcome.name, names[0], values, occasion))
    return found


def _variables(text: str) -> list[str]:
    """Columns that an expression mentions; none where it is the name of a column."""
    plain = text.split("[")[0] if text.startswith("poly(") else text
    return list(expression_variables(plain))


def _metric(times: list[_Time]) -> str:
    lines = [
        f"{t.outcome}: `{t.name}`, from {t.values.min():g} to {t.values.max():g}, "
        f"{counted(len(np.unique(t.values)), 'distinct value')}."
        for t in times
    ]
    return "\n".join(lines)


def _waves(times: list[_Time]) -> str:
    blocks = []
    for t in times:
        frame = pd.DataFrame({"time": t.values, "occasion": t.occasion + 1})
        by = frame.groupby("occasion")["time"].agg(["size", "mean", "var"])
        shown = by.head(_OCCASIONS)
        rows = [
            (str(k), str(int(r["size"])), f"{r['mean']:.4g}", _figure(r["var"]))
            for k, r in shown.iterrows()
        ]
        head = f"{t.outcome}, by the units' first, second ... occasion:"
        more = len(by) - len(shown)
        table = _table(("occasion", "rows", f"mean of {t.name}", "variance"), rows)
        tail = f"\n\nand {counted(more, 'further occasion')}." if more else ""
        blocks.append(f"{head}\n\n{table}{tail}")
    return "\n\n".join(blocks)


def _missing(study: Study) -> str:
    lines = []
    for outcome in study.measured:
        rows = np.bincount(outcome.unit.cpu().numpy(), minlength=len(study.units))
        lines.append(
            f"{outcome.name}: {outcome.n} rows used, "
            f"{outcome.design.n_missing} left out for missing values; "
            f"{rows.min()} to {rows.max()} occasions in a unit, {rows.mean():.4g} on "
            "average."
        )
    gone = len(study.units.dropped)
    lines.append(
        f"{counted(len(study.units), 'unit')} used, {gone} left out because they have "
        "no response or lack a risk factor. All other units are used with the "
        "occasions they have (full-information maximum likelihood)."
    )
    return "\n".join(lines)


def _distribution(study: Study) -> str:
    heads = ("outcome", "rows", "mean", "sd", "min", "median", "max", "zeros")
    rows = []
    for outcome in study.measured:
        y = outcome.y.double().cpu().numpy()
        figures = (y.mean(), y.std(ddof=1), y.min(), np.median(y), y.max())
        rows.append(
            (outcome.name, str(len(y)), *(f"{v:.4g}" for v in figures),
             f"{np.mean(y == 0):.1%}")
        )  # fmt: skip
    text = _table(heads, rows)
    coded = [o for o in study.measured if o.levels is not None]
    for outcome in coded:
        y = outcome.y.double().cpu().numpy()
        counts = [int((y == code).sum()) for code in range(len(outcome.levels or ()))]
        pairs = ", ".join(f"{v}: {n}" for v, n in zip(outcome.levels or (), counts,
                                                      strict=True))  # fmt: skip
        text += f"\n\nLevels of {outcome.name} (coded from 0): {pairs}."
    return text


# -- the model: items 5 to 8 -----------------------------------------------------------


def _model_items(results: TrajectoryResults) -> Iterator[Item]:
    study = results.model.study
    yield Item(
        "5", "Software",
        ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    )  # fmt: skip
    random = [o.name for o in study.outcomes if o.effects is not None]
    yield Item(
        "6a", "Alternatives for differences within groups",
        f"This fit has random effects within groups of {', '.join(random)} (growth "
        "mixture)." if random else
        "This fit has no random effects within groups: units of a group share one "
        "trajectory (latent class growth analysis).",
        "whether the alternative was considered, or why not.",
    )  # fmt: skip
    said = {"shared": "one for all groups", "group": "one for each group"}
    scales = "; ".join(f"{o.name}: {said[o.variance]}" for _, o in _measured(study))
    yield Item(
        "6b", "Alternatives for variances that differ between groups",
        f"Scale parameters, where the family has them: {scales}.",
        "whether the alternative was considered, or why not.",
    )  # fmt: skip
    yield Item(
        "7",
        "Functional forms of the trajectories",
        _shapes(results),
        "which other forms were considered.",
    )
    yield Item(
        "8", "Covariates, so that analyses can be replicated", _covariates(study)
    )


def _shapes(results: TrajectoryResults) -> str:
    lines = []
    for _, asked in _measured(results.model.study):
        orders = "the same terms in every group"
        if asked.orders is not None:
            orders = "orders by group " + ", ".join(map(str, asked.orders))
        lines.append(
            f"{asked.name}: `~ {asked.formula.rhs.text.strip()}`, "
            f"{named(asked.family)}, {orders}."
        )
    try:
        tests = results.test_orders()
    except ModelError:
        return "\n".join(lines)
    tests = tests[tests["order"] > 0]
    rows = [
        (str(r["outcome"]), str(r["group"]), str(r["part"]), str(r["term"]),
         _figure(r["coef"]), _figure(r["std_error"]), _p(r["pvalue"]))
        for _, r in tests.iterrows()
    ]  # fmt: skip
    heads = ("outcome", "group", "part", "highest term", "coef", "std err", "p")
    return "\n".join(lines) + "\n\n" + _table(heads, rows)


def _covariates(study: Study) -> str:
    plan, lines = study.plan, []
    if plan.risk is None:
        lines.append("No risk factors of membership.")
    else:
        lines.append(
            f"Risk factors of membership: `~ {plan.risk.text.strip()}` (multinomial "
            f"logit, reference group {plan.reference}), estimated with the "
            "trajectories."
        )
    for asked in plan.outcomes:
        if asked.common:
            names = ", ".join(f"`{t.name}`" for t in asked.common)
            lines.append(f"{asked.name}: {names}, with one effect for all groups.")
        for key in ("offset", "exposure"):
            if (value := getattr(asked, key)) is not None:
                lines.append(f"{asked.name}: {key} {_told(value)}.")
    if plan.weights is not None:
        lines.append(f"Sampling weights: {_told(plan.weights)}.")
    return "\n".join(lines)


def _told(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str | float | int) else "given as values"


# -- the search and what was chosen: items 9 to 13 -------------------------------------


def _search_items(results: TrajectoryResults) -> Iterator[Item]:
    study, found = results.model.study, results.traj
    optima, best = found.optima, found.solution
    others = [s for s in optima.solutions[1:]]
    text = (
        f"{counted(optima.starts, 'start')}; the search came "
        f"{counted(optima.finished, 'time')} to a maximum, "
        f"{counted(best.reached, 'time')} to the one reported (log-likelihood "
        f"{best.llf:.4f}), which was polished by "
        f"{counted(best.steps, 'Newton step')} "
        f"({'converged' if best.converged else 'NOT CONVERGED'})."
    )
    if others:
        shown = ", ".join(f"{s.llf:.4f} ({s.reached})" for s in others[:5])
        text += f" Other maxima, and how often each was reached: {shown}."
    yield Item("9", "Starts and iterations", text, "the seed, if it was not 0.")
    figures = ", ".join(
        f"{name} {value:.2f}"
        for name, value in (
            ("AIC", results.aic), ("BIC by units", results.bic_units),
            ("BIC by rows", results.bic_rows), ("CAIC", results.caic),
            ("SABIC", results.sabic), ("ICL", results.icl),
        )
    )  # fmt: skip
    yield Item(
        "10", "Tools of model comparison",
        f"This fit, with {counted(int(results.df_model), 'parameter')}: log-likelihood "
        f"{results.llf:.4f}, {figures}.",
        "by which of these, and by what else, the model was chosen.",
    )  # fmt: skip
    yield Item(
        "11",
        "Number of fitted models, a one-group one among them",
        "",
        f"one fit of {counted(study.groups, 'group')} does not know of others.",
    )
    table = adequacy_table(results)
    rows = [
        (str(k), str(int(r["n"])), f"{r['assigned']:.1%}", f"{r['share']:.1%}")
        for k, r in table.iterrows()
    ]
    yield Item(
        "12", "Cases in each group, for every model",
        _table(("group", "units assigned", "share assigned", "model's share"), rows),
        "the same for the other models.",
    )  # fmt: skip
    yield Item(
        "13", "Entropy, where cases are classified",
        f"Relative entropy {results.entropy:.4f} (entropy {results.entropy_raw:.2f}); "
        "average posterior probabilities "
        + ", ".join(f"{k} {_figure(v)}" for k, v in table["app"].items()) + ".",
    )  # fmt: skip


# -- what is shown: items 14 to 16 -----------------------------------------------------


def _report_items(results: TrajectoryResults) -> Iterator[Item]:
    yield Item(
        "14a",
        "Plot of the estimated mean trajectories of the final model",
        "",
        "to be included.",
    )
    yield Item(
        "14b",
        "Plots of the estimated mean trajectories of every model",
        "",
        "to be included.",
    )
    yield Item(
        "14c",
        "Plot of final trajectories with the observed ones, by group",
        "",
        "to be included.",
    )
    yield Item(
        "15", "Characteristics of the final groups in numbers", _numbers(results)
    )
    yield Item(
        "16", "Syntax",
        f"`deepstats.traj({results.formula_text!r}, data, family="
        f"{_families(results)}).fit()`",
        "options given besides the formula, and where data and syntax are to be found.",
    )  # fmt: skip


def _families(results: TrajectoryResults) -> str:
    names = [named(o.family) for o in results.model.study.measured]
    return repr(names[0] if len(names) == 1 else names)


def _numbers(results: TrajectoryResults) -> str:
    shares = results.group_probs
    heads = ("group", "n", "share", "std err", "95% limits")
    rows = [
        (str(k), str(int(r["n"])), f"{r['share']:.4f}", _figure(r["std_error"]),
         f"{_figure(r['conf_low'])} to {_figure(r['conf_high'])}")
        for k, r in shares.iterrows()
    ]  # fmt: skip
    tidy = results.tidy()
    lines = [
        (str(r["term"]), _figure(r["estimate"]), _figure(r["std_error"]),
         f"{_figure(r['conf_low'])} to {_figure(r['conf_high'])}", _p(r["p_value"]))
        for _, r in tidy.iterrows()
    ]  # fmt: skip
    coefficients = _table(("coefficient", "estimate", "std err", "95% limits", "p"),
                          lines)  # fmt: skip
    return (
        f"{_table(heads, rows)}\n\n{coefficients}\n\n"
        f"Standard errors: {results.cov_description}."
    )


# -- Markdown --------------------------------------------------------------------------


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(_escaped(c) for c in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _figure(value: float) -> str:
    return "not available" if not np.isfinite(value) else f"{value:.4g}"


def _p(value: float) -> str:
    if not np.isfinite(value):
        return "not available"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
