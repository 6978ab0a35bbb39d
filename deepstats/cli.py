"""The command line: fit a model to a file and print its table."""

from __future__ import annotations

import argparse
import ast
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

import deepstats

from . import datasets
from .errors import DesignError, FormulaError

__all__ = ["main"]

MODELS = (
    "ols",
    "wls",
    "glm",
    "logit",
    "probit",
    "poisson",
    "negativebinomial",
    "zip",
    "zinb",
    "hurdle",
    "ordinal",
    "mnlogit",
    "betareg",
    "quantreg",
)
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
    ".feather": pd.read_feather,
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
FIT_OPTIONS = {"bandwidth", "information", "kernel", "maxiter", "q", "tol", "use_t"}
GIVEN = ("family", "link", "weights", "freq_weights", "offset", "exposure")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; `sys.argv[1:]` by default.

    Returns
    -------
    int
        The exit code: 0 when all went well, 2 for what the user can mend.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _warnings_in_one_line():
            arguments.command(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"deepstats: error: {_in_short(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepstats", description="Regression tables from the command line."
    )
    parser.add_argument(
        "--version", action="version", version=f"deepstats {deepstats.__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_data(commands)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a model and print its summary",
        description="Fit a model and print its summary.",
        epilog='example: deepstats fit "drvisits ~ private + age" @docvisits '
        "--family poisson --cov HC1",
    )
    fit.set_defaults(command=_fit)
    fit.add_argument("formula", help='for example "y ~ x + C(g)"')
    fit.add_argument("data", help="a .csv, .parquet or .feather file, or @dataset")
    fit.add_argument("--family", help="gaussian, binomial, poisson, gamma, ...")
    fit.add_argument("--link", help="identity, log, logit, probit, ...")
    fit.add_argument(
        "--model",
        choices=[name for name in MODELS if hasattr(deepstats, name)],
        help="the call to use, where the formula and family do not say it",
    )
    fit.add_argument("--cov", help="nonrobust, HC0 ... HC3, cluster, HAC, opg, ...")
    fit.add_argument(
        "--groups",
        metavar="COL[,COL]",
        help="cluster by one or two columns (implies --cov cluster)",
    )
    fit.add_argument("--maxlags", type=int, metavar="N", help="lags, with --cov HAC")
    fit.add_argument("--weights", metavar="EXPR", help="analytic (variance) weights")
    fit.add_argument("--freq-weights", metavar="EXPR", help="frequency weights")
    fit.add_argument("--offset", metavar="EXPR", help="added to the linear predictor")
    fit.add_argument("--exposure", metavar="EXPR", help="its logarithm is an offset")
    fit.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any further option of the model, such as loglike=nb1",
    )
    fit.add_argument("--html", type=Path, metavar="FILE", help="write the table here")
    fit.add_argument("--latex", type=Path, metavar="FILE", help="write the table here")
    fit.add_argument("--save", type=Path, metavar="FILE", help="save the fit here")


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="list the data sets, or print one as csv",
        description="List the built-in data sets, or print one as csv.",
    )
    data.set_defaults(command=_data)
    data.add_argument("name", nargs="?", help="a name from the list")


def _fit(arguments: argparse.Namespace) -> None:
    frame = _read(arguments.data)
    options = {
        name: value for name in GIVEN if (value := getattr(arguments, name)) is not None
    }
    options |= _options(arguments.option)
    at_fit = _covariance(arguments)
    if arguments.model is None:
        results = deepstats.fit(arguments.formula, frame, **options, **at_fit)
    else:
        at_fit |= {name: options.pop(name) for name in FIT_OPTIONS & options.keys()}
        model = getattr(deepstats, arguments.model)
        results = model(arguments.formula, data=frame, **options).fit(**at_fit)
    summary = results.summary()
    print(summary.as_text())
    if arguments.html:
        arguments.html.write_text(summary.as_html(), encoding="utf-8")
    if arguments.latex:
        arguments.latex.write_text(summary.as_latex(), encoding="utf-8")
    if arguments.save:
        results.save(arguments.save)


def _data(arguments: argparse.Namespace) -> None:
    if arguments.name:
        print(datasets.load(arguments.name).to_csv(index=False), end="")
        return
    width = max(map(len, datasets.DATASETS))
    for name, dataset in datasets.DATASETS.items():
        print(f"{name:<{width}}  {dataset.description}")


def _read(source: str) -> pd.DataFrame:
    if source.startswith("@"):
        return datasets.load(source[1:])
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in READERS:
        raise DesignError(
            f"cannot tell the format of {source!r}: give a file that ends in "
            f"{', '.join(READERS)}, or @name for a data set of `deepstats data`"
        )
    return READERS[suffixes[-1]](path)


def _covariance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Translate the options on standard errors to keywords of `fit`."""
    kind, keywords = arguments.cov, {}
    if arguments.groups is not None:
        names = arguments.groups.split(",")
        kind = kind or "cluster"
        keywords["groups"] = names[0] if len(names) == 1 else names
    if arguments.maxlags is not None:
        keywords["maxlags"] = arguments.maxlags
    given = {"cov_type": kind, "cov_kwds": keywords}
    return {name: value for name, value in given.items() if value}


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise DesignError(f"--option takes NAME=VALUE, not {pair!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"deepstats: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _in_short(error: Exception) -> str:
    """One line; a formula error keeps the line that points at the mistake."""
    if isinstance(error, FormulaError):
        return str(error)
    return " ".join(str(error).split()) or type(error).__name__
