"""Write docs/accuracy.md: digits on NIST's linear regression sets, route by route.

Run from the repository, with ``../shared/reference/data`` beside it:
``python docs/generate_accuracy.py``.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_nist as nist  # noqa: E402

import deepstats as ds  # noqa: E402
from deepstats import compute, leastsquares  # noqa: E402

DATA = ROOT.parent / "shared" / "reference" / "data"
CERTIFIED = json.loads(
    (ROOT / "tests" / "reference" / "nist_certified.json").read_text()
)

HEAD = """# Accuracy

The eleven linear regression sets of NIST's Statistical Reference Datasets, fitted by
formula. Each cell is the log relative error of the worst coefficient / of the worst
standard error: the number of correct digits, at most 15. Wampler1 and Wampler2 fit
exactly, so that their certified standard errors are zero and the second number is the
digits after the decimal point.

This page is written by `docs/generate_accuracy.py`, and `tests/test_nist.py` holds the
first two rows to the row "column-scaled CholeskyQR2".

"""

TAIL = """
*Chosen by deepstats*: problems of this size, and all that are ill-conditioned, go to
Householder QR in the widest floating-point format of the machine, 80 bits here, with
blocks of rows stacked on the triangle of those before. Whole powers such as `I(x**10)`
are kept as products of the column and multiplied out in that format. That matters for
Filip: its powers rounded to 64 bits first have an *exact* solution with only
{rounded:.1f} digits in common with the certified one (so does `poly(x, 10, raw=True)`).

*In tiny blocks*: the same with seven rows to a block. *Cross-products* with one step of
refinement is the route for large, well-conditioned data (condition number of the scaled
columns to 1,000: here Norris, Pontius and NoInt), *Cholesky QR, twice* the one for
large data to a condition number of a million; both are shown for all sets to tell
where they end. A dash says that the factorisation broke down.

Rows marked * are of other programs with their default settings, measured in the same
way (statsmodels 0.15.0, R 4.2.2, pyfixest 0.60.0); the last is a prototype whose digits
are the bar for this package.
"""

PEERS = {
    "statsmodels, default *": "13.0/13.8 6.2/9.2 14.7 14.7 0.0/0.0 10.9/12.2 9.6 10.2 "
    "9.4/10.2 7.8/10.2 5.9/10.2",
    "R lm, default *": "12.5/14 12.7/13.2 14.7 14.7 – 13.0/14.1 9.8 13.6 9.3/13.6 "
    "7.5/13.6 5.5/13.6",
    "pyfixest *": "12.3/13.8 12.1/12.9 14.7 14.7 – 7.2/8.5 6.5 9.3 6.5/10.5 6.5/10.5 "
    "6.5/10.5",
    "column-scaled CholeskyQR2 *": "12.6/13.9 12.4/13.7 14.7 14.7 7.4/8.1 11.1/12.3 "
    "9.4 12.9 9.5/13.9 8.1/13.9 6.1/13.9",
}


@contextmanager
def patched(target: object, values: dict[str, object]):
    """Set attributes for a while."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def data(name: str) -> pd.DataFrame:
    """Return one of the sets."""
    return pd.read_csv(DATA / f"reg_nist_{name.lower()}.csv")


def cell(name: str) -> str:
    """Return the digits of a set as it is fitted now."""
    try:
        coefficients, deviations, _ = nist.lre(name, data(name), CERTIFIED)
    except np.linalg.LinAlgError:
        return "–"
    except RuntimeError:  # torch's linear algebra
        return "–"
    return f"{abs(coefficients):.1f}/{abs(deviations):.1f}"


def row(title: str, cells: list[str]) -> str:
    """Return a line of the table."""
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    """Write the page."""
    names = list(nist.BARS)
    lines = [row("", names), "|---" * (len(names) + 1) + "|"]
    lines.append(row("**chosen by deepstats**", [cell(n) for n in names]))
    tiny = {
        "block_rows": lambda self, *sizes: 7,
        "resident": lambda self, count: False,
    }
    with patched(compute.Compute, tiny):
        lines.append(row("in tiny blocks", [cell(n) for n in names]))
    titles = {"gram": "cross-products, refined", "cholesky": "Cholesky QR, twice"}
    for route, title in titles.items():
        with patched(leastsquares, nist.ROUTES[route]):
            lines.append(row(title, [cell(n) for n in names]))
    lines += [row(title, cells.split()) for title, cells in PEERS.items()]
    result = ds.OLS("y ~ poly(x, 10, raw=True)", data("Filip")).fit()
    values = list(CERTIFIED["Filip"]["certified"].values())
    rounded = nist.digits(result.params, [v[0] for v in values])
    text = HEAD + "\n".join(lines) + "\n" + TAIL.format(rounded=rounded)
    (ROOT / "docs" / "accuracy.md").write_text(text)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
