"""Estimates beside those of another program, with their differences."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .etable import _MAIN, _Column, _column
from .page import Notes, Summary, Table

# ------------------------------------------------------------- comparison


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Summary):
    """Estimates beside those of another fit, as `compare` returns them.

    Parameters
    ----------
    title, formula, blocks
        As in `Summary`.
    frame : DataFrame
        Indexed by term (with ``Log-likelihood`` last if both have one): estimate,
        other, diff, rel_diff and the same for standard errors. Differences are
        absolute; relative ones are relative to the other fit.
    max_rel : dict of str to float
        The largest relative difference of ``coef``, ``se`` and ``llf``, where compared.
    unmatched : dict of str to tuple of str
        Terms of ``results`` and of ``other`` that the other side does not have.
    tolerance : float or None
        The largest relative difference allowed.
    """

    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    max_rel: dict[str, float] = field(default_factory=dict)
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tolerance: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether every term is matched and every difference within the tolerance.

        Raises
        ------
        ValueError
            If no tolerance was given.
        """
        if self.tolerance is None:
            raise ValueError("give compare(..., tolerance=) to ask whether fits agree")
        close = all(value <= self.tolerance for value in self.max_rel.values())
        return close and not any(self.unmatched.values())


@dataclass(frozen=True)
class _Reference:
    """Reference values: estimates and standard errors by name, log-likelihood."""

    source: str
    coef: pd.Series
    se: pd.Series | None
    llf: float | None
    se_source: str


def compare(
    results: Any,
    other: Any,
    tolerance: float | None = None,
    *,
    se: str | None = None,
) -> Comparison:
    """Compare estimates with those of another fit or with reference values.

    Parameters
    ----------
    results : Results
        A fitted deepstats model.
    other : Results, statsmodels results, dict, or path
        Another fit; or ``{"coef": {name: value}, "se": {...}, "llf": value}``; or a
        ``.json`` file of that form; or a ``.csv`` file with columns ``term``,
        ``estimate`` and ``std_error`` (or broom's ``std.error``). Names agree over
        packages: ``(Intercept)``, ``const`` and ``Intercept``; ``C(x)[T.b]``,
        ``x[T.b]`` and ``xb``; ``a:b`` and ``b:a``.
    tolerance : float, optional
        The largest relative difference allowed; see `Comparison.agrees`.
    se : str, optional
        Which entry of a dict or JSON file holds the standard errors. By default the one
        named after the covariance of `results` (``HC1``, ``se_hc1``), else ``se``,
        ``std_error`` or, for model-based errors, ``se_oim``.

    Returns
    -------
    Comparison
        Prints itself; ``frame``, ``max_rel``, ``unmatched`` and ``agrees`` hold the
        numbers.

    Raises
    ------
    ValueError
        If nothing matches, `other` cannot be read, or `se` names no entry.
    """
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance!r} must be positive")
    own = _estimated(results)
    reference = _reference(other, results, se)
    pairs = _match_terms(list(own.rows.index), list(reference.coef.index))
    if not pairs:
        raise ValueError(
            f"no term matches: results have {[t for _, t in own.rows.index]}, "
            f"the other has {list(reference.coef.index)}"
        )
    frame = _comparison_frame(own, reference, pairs)
    missing = {
        "results": tuple(_full_name(k) for k in own.rows.index if k not in pairs),
        "other": tuple(n for n in reference.coef.index if n not in pairs.values()),
    }
    return _comparison_page(results, reference, frame, missing, tolerance)


def _estimated(results: Any) -> _Column:
    """Terms with an estimate: an aliased one agrees with nothing."""
    column = _column(results, 0.95)
    return replace(column, rows=column.rows[column.rows["estimate"].notna()])


def _reference(other: Any, results: Any, se: str | None) -> _Reference:
    if isinstance(other, (str, Path)):
        return _reference_file(Path(other), results, se)
    if isinstance(other, Mapping):
        return _reference_dict(other, results, se, "reference values")
    if se is not None:
        raise ValueError("se= chooses an entry of a dict or JSON file only")
    if hasattr(other, "tidy") and hasattr(other, "glance"):
        column = _estimated(other)
        names = [_full_name(key) for key in column.rows.index]
        llf = column.statistic("llf")
        return _Reference(
            str(getattr(other, "model_name", "other model")),
            pd.Series(column.rows["estimate"].to_numpy(float), names),
            pd.Series(column.rows["std_error"].to_numpy(float), names),
            None if llf is None else float(llf),
            str(getattr(other, "cov_description", "")),
        )
    if hasattr(other, "params") and hasattr(other, "bse"):
        return _reference_statsmodels(other)
    raise ValueError(
        f"cannot compare with {type(other).__name__}: give deepstats or statsmodels "
        "results, a dict with 'coef', or the path of a JSON or CSV file"
    )


def _reference_statsmodels(other: Any) -> _Reference:
    params = other.params
    if np.ndim(params) != 1:
        raise ValueError(
            "parameters of the other fit are a matrix; give a dict "
            '{"coef": {name: value}, "se": {name: value}} instead'
        )
    labelled = isinstance(params, pd.Series)
    names = list(params.index if labelled else other.model.exog_names)
    if len(names) != len(params):
        raise ValueError(f"{len(params)} parameters have {len(names)} names: {names}")
    llf = getattr(other, "llf", None)
    return _Reference(
        f"statsmodels {type(getattr(other, 'model', other)).__name__}",
        pd.Series(np.asarray(params, float), [str(name) for name in names]),
        pd.Series(np.asarray(other.bse, float), [str(name) for name in names]),
        None if llf is None else float(llf),
        str(getattr(other, "cov_type", "")),
    )


def _reference_file(path: Path, results: Any, se: str | None) -> _Reference:
    if path.suffix.lower() == ".json":
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise ValueError(f"{path} holds a {type(entry).__name__}, not an object")
        return _reference_dict(entry, results, se, path.name)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path} must end in .json or .csv")
    if se is not None:
        raise ValueError("se= chooses an entry of a dict or JSON file only")
    frame = pd.read_csv(path).rename(columns={"std.error": "std_error"})
    if not {"term", "estimate"} <= set(frame.columns):
        raise ValueError(
            f"{path} must have columns term, estimate and std_error; "
            f"it has {list(frame.columns)}"
        )
    names = frame["term"].astype(str).to_list()
    errors = None
    if "std_error" in frame:
        errors = pd.Series(frame["std_error"].to_numpy(float), names)
    estimates = pd.Series(frame["estimate"].to_numpy(float), names)
    return _Reference(path.name, estimates, errors, None, "std_error")


def _reference_dict(
    entry: Mapping[str, Any], results: Any, se: str | None, source: str
) -> _Reference:
    coef = entry.get("coef")
    if not isinstance(coef, (Mapping, pd.Series)):
        raise ValueError(
            f'{source}: expected {{"coef": {{name: value}}, ...}}; the keys are '
            f"{list(entry)[:10]}. If one of them is the fit, pass that entry"
        )
    key = _error_key(entry, results, se)
    errors = pd.Series(dict(entry[key]), dtype=float) if key else None
    llf = entry.get("llf")
    return _Reference(
        source,
        pd.Series(dict(coef), dtype=float),
        errors,
        None if llf is None else float(llf),
        key or "",
    )


def _error_key(entry: Mapping[str, Any], results: Any, se: str | None) -> str | None:
    """Choose the standard errors of the same kind as those of `results`."""
    tables = [k for k, v in entry.items() if isinstance(v, (Mapping, pd.Series))]
    tables = [k for k in tables if k != "coef"]
    if se is not None:
        if se not in tables:
            raise ValueError(f"se={se!r} is not among the entries {tables}")
        return se
    kind = str(getattr(results, "cov_type", "nonrobust")).lower()
    wanted = [kind, f"se_{kind}", "se", "std_error", "bse"]
    if kind in {"nonrobust", "oim", "observed", "hessian", "classical", "iid"}:
        wanted.append("se_oim")
    lowered = {k.lower(): k for k in reversed(tables)}
    return next((lowered[name] for name in wanted if name in lowered), None)


def _full_name(key: tuple[str, str]) -> str:
    part, term = key
    return term if part in _MAIN or part == term else f"{part}_{term}"


def _plain(name: str) -> str:
    return name


def _canonical(name: str) -> str:
    """Write a term as all of patsy, formulaic and R could agree to write it."""
    name = re.sub(r"\s+", "", name).replace("^", "**")
    name = re.sub(r"\b(np|numpy)\.", "", name).replace("(phi)", "phi")
    name = re.sub(r"^inflate_", "zero_", name)
    name = re.sub(r"(^|[_:])(\(Intercept\)|const|_cons)$", r"\1Intercept", name)
    name = re.sub(r"\b(?:C|factor)\((\w+)(?:,[^\[]*)?\)(?=\[|\w)", r"\1", name)
    return ":".join(sorted(name.split(":")))


def _loose(name: str) -> str:
    """Join factor and level as R does: x[T.b] becomes xb."""
    name = re.sub(r"\[(?:T\.)?([^\]]*)\]", r"\1", _canonical(name))
    return ":".join(sorted(name.split(":"))).replace("True", "TRUE")


def _match_terms(
    own: list[tuple[str, str]], names: list[str]
) -> dict[tuple[str, str], str]:
    """Pair terms with names of another package, the strictest reading first.

    A reading counts only where it is unique on both sides. Terms lose their part only
    in blocks such as thresholds: a slope of the zero part is not one of the mean.
    """
    regressions = {part for part, term in own if term == "Intercept"}
    spellings: tuple[Callable[[tuple[str, str]], str], ...] = (
        _full_name,
        lambda key: f"{key[0]}_{key[1]}",
        lambda key: f"{key[0]}:{key[1]}",
        lambda key: _full_name(key) if key[0] in regressions else key[1],
    )
    pairs: dict[tuple[str, str], str] = {}
    for reading in (_plain, _canonical, _loose):
        for spelling in spellings:
            free = [key for key in own if key not in pairs]
            left = [name for name in names if name not in pairs.values()]
            ours = _unique({key: reading(spelling(key)) for key in free})
            theirs = _unique({name: reading(name) for name in left})
            found = {ours[text]: theirs[text] for text in ours if text in theirs}
            pairs.update(found)
    return {key: pairs[key] for key in own if key in pairs}


def _unique(texts: Mapping[Any, str]) -> dict[str, Any]:
    """Invert a mapping, leaving out texts that occur twice."""
    counts = pd.Series(list(texts.values()), dtype=object).value_counts()
    return {text: key for key, text in texts.items() if counts[text] == 1}


def _differences(a: float, b: float) -> tuple[float, float]:
    """Absolute difference, and relative to b (0 when both are equal)."""
    difference = abs(a - b)
    if difference == 0:
        return 0.0, 0.0
    return difference, difference / abs(b) if b != 0 else math.inf


def _comparison_frame(
    own: _Column, reference: _Reference, pairs: dict[tuple[str, str], str]
) -> pd.DataFrame:
    records: dict[str, list[float]] = {}
    for key, name in pairs.items():
        row = own.rows.loc[key]
        a, b = float(row["estimate"]), float(reference.coef[name])
        record = [a, b, *_differences(a, b)]
        if reference.se is not None:
            a = float(row["std_error"])
            b = float(reference.se.get(name, math.nan))
            record += [a, b, *_differences(a, b)]
        records[_full_name(key)] = record
    columns = ["estimate", "other", "diff", "rel_diff"]
    columns += [f"se_{c}" for c in columns] if reference.se is not None else []
    llf = own.statistic("llf")
    if llf is not None and reference.llf is not None:
        a, b = float(llf), reference.llf
        line = [a, b, *_differences(a, b)]
        records["Log-likelihood"] = line + [math.nan] * (len(columns) - 4)
    frame = pd.DataFrame.from_dict(records, orient="index", columns=columns)
    return frame.rename_axis("term").rename(
        columns={"se_estimate": "std_error", "se_other": "other_std_error"}
    )


def _comparison_page(
    results: Any,
    reference: _Reference,
    frame: pd.DataFrame,
    missing: dict[str, tuple[str, ...]],
    tolerance: float | None,
) -> Comparison:
    terms = frame.drop(index="Log-likelihood", errors="ignore")
    max_rel = {"coef": float(terms["rel_diff"].max())}
    tables = [_comparison_table(frame, ["estimate", "other", "diff", "rel_diff"])]
    if "std_error" in frame and terms["se_rel_diff"].notna().any():
        max_rel["se"] = float(terms["se_rel_diff"].max())
        columns = ["std_error", "other_std_error", "se_diff", "se_rel_diff"]
        kind = str(getattr(results, "cov_description", ""))
        if reference.se_source and reference.se_source != kind:
            kind = f"{kind}; other: {reference.se_source}".removeprefix("; ")
        caption = f"Standard errors ({kind})" if kind else "Standard errors"
        tables.append(_comparison_table(terms, columns, caption))
    if "Log-likelihood" in frame.index:
        max_rel["llf"] = float(frame.loc["Log-likelihood", "rel_diff"])
    lines = _comparison_notes(max_rel, missing, tolerance, "se" in max_rel)
    name = str(getattr(results, "model_name", "deepstats"))
    return Comparison(
        f"{name} against {reference.source}",
        str(getattr(results, "formula_text", "")),
        (*tables, Notes(lines)),
        frame=frame,
        max_rel=max_rel,
        unmatched=missing,
        tolerance=tolerance,
    )


def _comparison_table(
    frame: pd.DataFrame, columns: list[str], caption: str | None = None
) -> Table:
    cells = {
        head: [f"{v:{'.7g' if j < 2 else '.1e'}}" if v else "0" for v in frame[name]]
        for j, (head, name) in enumerate(
            zip(["deepstats", "other", "abs diff", "rel diff"], columns, strict=True)
        )
    }
    last = len(frame) - 1
    with_llf = frame.index[-1] == "Log-likelihood" and last > 0
    return Table(
        pd.DataFrame(cells, index=list(frame.index)),
        caption=caption,
        sections=((last, ""),) if with_llf else (),
        align="rrrr",
    )


def _comparison_notes(
    max_rel: dict[str, float],
    missing: dict[str, tuple[str, ...]],
    tolerance: float | None,
    errors: bool,
) -> tuple[str, ...]:
    words = {"coef": "estimates", "se": "standard errors", "llf": "log-likelihood"}
    largest = [f"{words[k]} {value:.1e}" for k, value in max_rel.items()]
    lines = [f"Largest relative difference: {', '.join(largest)}."]
    if tolerance is not None:
        far = [words[k] for k, value in max_rel.items() if not value <= tolerance]
        verdict = f"{', '.join(far)} differ by more than" if far else "All within"
        lines.append(f"{verdict[0].upper()}{verdict[1:]} the tolerance {tolerance:g}.")
    if not errors:
        lines.append("The other has no standard errors of the same kind.")
    for side, where in (("results", "deepstats"), ("other", "the other")):
        if missing[side]:
            lines.append(f"Only in {where}: {', '.join(missing[side])}.")
    return tuple(lines)
