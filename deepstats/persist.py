"""Saving and loading fits: a zip file of JSON and plain arrays.

Nothing of a file is run. It holds what was estimated and what predictions for new data
need: formula, levels, knots, parameters, covariance. It does not hold the data.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .design import Design, Spec
from .errors import ModelError
from .families import Family, Link, Multinomial, Ordinal, get_family, get_link
from .formula import Formula, Rhs, Term
from .inference import Covariance
from .matrix import Column, ModelMatrix

if TYPE_CHECKING:
    from .results import Results

__all__ = ["load", "save", "versions"]

FORMAT, VERSION = "deepstats results", 1
_MOST_BYTES = 2_000_000_000
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    json.JSONDecodeError,
    UnicodeDecodeError,
    EOFError,
)
_ARRAYS = ("x", "bread", "covariance")

#: Models that can be saved, and where they live; a file can name no other class.
_MODELS = {
    "OLS": "linear",
    "GLM": "glm",
    "NegativeBinomialModel": "counts",
    "ZeroInflatedModel": "counts",
    "HurdleModel": "counts",
    "OrdinalModel": "categorical",
    "MultinomialModel": "categorical",
    "BetaModel": "beta",
    "QuantReg": "quantile",
    "LossRegression": "lossreg",
}
#: Attributes of a model that only its own fit needs.
_SCRATCH = ("design", "compute", "_known", "_parts")
#: Figures made from the data on demand, which a file keeps.
_FIGURES = ("_null", "llnull")


# -- plain values ---------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Turn a value into JSON that `decode` turns back, types kept.

    Raises
    ------
    TypeError
        For what is not made of numbers, strings, lists, tuples, mappings, numeric
        arrays, families and links.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(v) for v in value]}
    if isinstance(value, Mapping):
        return {"$dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"$array": encode(value.tolist()), "dtype": value.dtype.str}
    if isinstance(value, Family | Ordinal | Multinomial):
        return {"$family": encode(_family_options(value))}
    if isinstance(value, Link) and _known(value):
        return {"$link": value.name}
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r}")


def decode(value: Any) -> Any:
    """Turn what `encode` made back into the value.

    Raises
    ------
    ValueError
        For a tag that is not one of `encode`'s.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    readers: dict[str, Callable[[Any], Any]] = {
        "$float": _read_float,
        "$tuple": lambda v: tuple(decode(u) for u in v),
        "$dict": lambda v: {decode(k): decode(u) for k, u in v},
        "$array": lambda v: np.array(decode(v), dtype=_dtype(value["dtype"])),
        "$family": lambda v: get_family(**decode(v)),
        "$link": get_link,
    }
    tag = next(iter(value), None)
    if tag not in readers or set(value) - {tag, "dtype"}:
        raise ValueError(f"the file holds an entry of unknown kind: {tag!r}.")
    return readers[tag](value[tag])


def _read_float(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"the file holds an unknown number: {text!r}.")
    return float(text)


def _dtype(text: Any) -> np.dtype:
    dtype = np.dtype(str(text))
    if dtype.kind not in "biuf":
        raise ValueError(f"the file holds an array of type {text!r}.")
    return dtype


def _known(link: Link) -> bool:
    try:
        return get_link(link.name) == link
    except ValueError:
        return False


def _family_options(family: Any) -> dict[str, Any]:
    """Arguments of `get_family` that make this family again."""
    options: dict[str, Any] = {"name": family.name}
    for field in dataclasses.fields(family):
        if not field.init or (field.name == "variance_function" != family.name):
            continue
        value = getattr(family, field.name)
        if isinstance(value, Link):
            if not _known(value):
                raise TypeError(f"the link {value!r}, which is not one of deepstats'")
            value = value.name
        options[field.name] = value
    if "variance_function" in options:
        variance = options.pop("variance_function")
        if family.name == "quasi":
            options["variance"] = variance
    return options


# -- saving ---------------------------------------------------------------------------


def save(results: Results, path: str | Path) -> Path:
    """Write a fit to a file.

    Parameters
    ----------
    results : Results
    path : str or Path
        Written over if it exists.

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        For a model that cannot be saved: the message says what stands in the way.

    Notes
    -----
    Functions given as ``context=`` are not saved, only their names; `load` asks for
    them. The data are not saved either.
    """
    name = type(results.model).__name__
    if name not in _MODELS:
        raise ModelError(
            f"{results.model_name} ({name}) cannot be saved; these can: "
            f"{', '.join(sorted(_MODELS))}."
        )
    fit = results.fit_info
    arrays = {"x": fit.x, "bread": fit.bread, "covariance": results.covariance.matrix}
    text = json.dumps(_contents(results, name), allow_nan=False, indent=1)
    path = Path(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("results.json", text)
        for key, tensor in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, tensor.cpu().numpy(), allow_pickle=False)
            file.writestr(f"{key}.npy", buffer.getvalue())
    return path


def versions() -> dict[str, str]:
    """Versions of the package, of Python and of what computes."""
    from . import __version__

    return {
        "deepstats": __version__, "python": platform.python_version(),
        "torch": str(torch.__version__), "numpy": np.__version__,
        "pandas": pd.__version__,
    }  # fmt: skip


def _contents(results: Results, name: str) -> dict[str, Any]:
    fit, cov, model = results.fit_info, results.covariance, results.model
    scalars = {
        f.name: getattr(fit, f.name)
        for f in dataclasses.fields(fit)
        if f.name not in ("x", "bread")
    }
    options = {k: v for k, v in dict(cov.options or {}).items() if k != "groups"}
    parts = {
        "model": {k: v for k, v in vars(model).items() if k not in _SCRATCH},
        "design": _design_facts(model.design),
        "fit": scalars,
        "cov": {
            "kind": cov.kind, "description": cov.description, "df": cov.df,
            "groups": cov.groups, "options": options,
        },
        "use_t": results.use_t,
        "printed": {
            "header": results._header(), "notes": results._notes(),
            "glance": results._extra_glance(),
        },
        "figures": {
            k: getattr(results, k) for k in _FIGURES if hasattr(type(results), k)
        },
    }  # fmt: skip
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION, "class": name}
    found["versions"] = versions()
    for key, part in parts.items():
        try:
            found[key] = encode(part)
        except TypeError as error:
            raise ModelError(
                f"{results.model_name} cannot be saved: its {key} holds {error}."
            ) from None
    return found


def _design_facts(design: Design) -> dict[str, Any]:
    if design.absorbed or design.random:
        raise ModelError("a fit with absorbed or random effects cannot be saved.")
    spec = design.spec
    return {
        "formula": spec.formula.text,
        "terms": [t.factors for t in spec.formula.rhs.terms],
        "parts": [
            {
                "text": r.text,
                "terms": [t.factors for t in r.terms],
                "offsets": r.offsets,
            }
            for r in spec.parts
        ],
        "states": spec.states,
        "offset": spec.offset,
        "exposure": spec.exposure,
        "by_value": list(spec.by_value),
        "context": sorted(spec.context),
        "kept": spec.kept,
        "columns": [m.names for m in design.matrices],
        "n": design.n,
        "y_levels": design.y_levels,
        "y_name": design.y_name,
        "n_given": design.n_given,
        "n_missing": design.n_missing,
        "n_zero_weight": design.n_zero_weight,
        "has_constant": bool(design.has_constant),
    }


# -- loading --------------------------------------------------------------------------


def load(
    path: str | Path, *, context: Mapping[str, Callable[..., Any]] | None = None
) -> Results:
    """Read a fit from a file that `Results.save` wrote.

    Parameters
    ----------
    path : str or Path
    context : mapping of str to callable, optional
        The functions of the formula that were given as ``context=`` to the model.

    Returns
    -------
    Results
        Estimates, tests, tables and predictions for new data are those of the fit that
        was saved. What needs the data raises ModelError.

    Raises
    ------
    ValueError
        For a file that is damaged, of another kind, or of a newer version.

    Notes
    -----
    Nothing in the file is run: it holds JSON and arrays of numbers, classes are chosen
    from a fixed list, and the formula is interpreted, not evaluated.
    """
    try:
        return _load(Path(path), context)
    except _DAMAGE as e:
        raise ValueError(f"{path} is damaged or not a file of deepstats: {e}.") from e
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(
            f"{path} is not a complete file of deepstats: {type(e).__name__} {e}."
        ) from e


def _load(path: Path, context: Mapping[str, Callable[..., Any]] | None) -> Results:
    with zipfile.ZipFile(path) as file:
        names = {i.filename: i.file_size for i in file.infolist()}
        if "results.json" not in names:
            raise ValueError(
                f"{path} is not a file of deepstats: no results.json in it."
            )
        if sum(names.values()) > _MOST_BYTES:
            raise ValueError(f"{path} unpacks to more than {_MOST_BYTES / 1e9:g} GB.")
        contents = json.loads(file.read("results.json").decode())
        _check_header(contents, path)
        arrays = {key: _array(file.read(f"{key}.npy"), key) for key in _ARRAYS}
    parts = {
        k: decode(contents[k])
        for k in ("model", "design", "fit", "cov", "use_t", "printed", "figures")
    }
    design = _hollow_design(parts["design"], dict(context or {}))
    model = _model_class(contents["class"]).from_saved(parts["model"], design)
    p = len(model.parameters)
    _check_shapes(arrays, p)
    cov = Covariance(arrays["covariance"], **parts["cov"])
    fit = {"x": arrays["x"], "bread": arrays["bread"], **parts["fit"]}
    printed = parts["printed"]
    # What a page says of the data it says again without them.
    kept = {
        "_header": partial(list, printed["header"]),
        "_notes": partial(list, printed["notes"]),
        "_extra_glance": partial(dict, printed["glance"]),
        **{k: v for k, v in parts["figures"].items() if k in _FIGURES},
    }
    return model.results_class.from_saved(model, fit, cov, parts["use_t"], kept)


def _check_header(contents: Any, path: Path) -> None:
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of deepstats' results.")
    version = contents.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{path} has no valid version: {version!r}.")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer deepstats (format {version}; this one "
            f"reads up to {VERSION}): update deepstats."
        )


def _array(data: bytes, name: str) -> torch.Tensor:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{name}.npy is not a plain array: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype != np.float64:
        raise ValueError(f"{name}.npy is not an array of float64.")
    return torch.from_numpy(values)


def _check_shapes(arrays: dict[str, torch.Tensor], p: int) -> None:
    expected = {"x": (p,), "bread": (p, p), "covariance": (p, p)}
    for name, shape in expected.items():
        if tuple(arrays[name].shape) != shape:
            raise ValueError(
                f"{name}.npy has shape {tuple(arrays[name].shape)}; the {p} parameters "
                f"of the model need {shape}."
            )


def _model_class(name: Any) -> Any:
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(f"the file names an unknown model: {str(name)[:60]!r}.")
    return getattr(import_module(f"deepstats.models.{_MODELS[name]}"), name)


def _hollow_design(facts: dict[str, Any], context: dict[str, Callable]) -> Design:
    """Build a design without rows, which rebuilds its columns from new data."""
    missing = [n for n in facts["context"] if n not in context]
    if missing:
        raise ValueError(
            f"the formula {facts['formula']!r} calls {', '.join(missing)}, which a "
            "file cannot hold: give load(..., context={'"
            + missing[0]
            + "': function})."
        )
    context = {n: context[n] for n in facts["context"]}
    formula = Formula.parse(facts["formula"], tuple(context))
    rhs = dataclasses.replace(formula.rhs, terms=_terms(facts["terms"]))
    spec = Spec(
        dataclasses.replace(formula, rhs=rhs),
        facts["states"],
        tuple(
            Rhs(_terms(r["terms"]), offsets=r["offsets"], text=r["text"])
            for r in facts["parts"]
        ),
        facts["offset"], facts["exposure"], context, None, facts["kept"],
        tuple(facts["by_value"]),
    )  # fmt: skip
    matrices = [
        ModelMatrix(0, names, tuple(Column() for _ in names), list(range(len(names))))
        for names in facts["columns"]
    ]
    return Design(
        spec, facts["n"], None, facts["y_levels"], facts["y_name"], matrices[0],
        tuple(matrices[1:]), index=pd.RangeIndex(0), n_given=facts["n_given"],
        n_missing=facts["n_missing"], n_zero_weight=facts["n_zero_weight"],
        has_constant=facts["has_constant"],
    )  # fmt: skip


def _terms(factors: list[tuple[str, ...]]) -> tuple[Term, ...]:
    return tuple(Term(tuple(str(e) for e in f)) for f in factors)
