"""Write docs/performance.md from benchmarks/results/regression.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "regression.json"
PAGE = Path(__file__).with_name("performance.md")

INTRODUCTION = """# Performance

This page is written by `docs/generate_performance.py` from the numbers of the last
benchmark (`make bench`, described in `benchmarks/README.md`). Libraries are run side by
side, in fresh processes, on the same data; a bar that is not met says so. The tables
put together runs of one afternoon: one for each number of rows (at five million without
statsmodels and pyfixest, which take minutes there and were the slower ones below), and
one of deepstats with one thread and two (least squares at a million rows: three
processes each).

## Where the time goes

A model matrix is never formed. A block of rows is laid out as (columns, rows): filling
a column is one contiguous copy, a Gram matrix one product of a thin matrix with its
transpose. Factors with more than sixteen columns enter sums through their codes.

| for n rows and k columns | passes over 8 n k bytes | flops |
|---|---|---|
| cross-products, information | 1 | 2 n k² |
| residuals | 1 | 4 n k |
| least squares, classical | 2 | 2 n k² + 4 n k |
| with HC or clusters | 3 | 4 n k² + 6 n k |
| Poisson, logit | about 4 | 6 n k² + 4 n exponentials |

Poisson and logit start at the estimates of every twentieth row, take about three Newton
steps on all rows, and one pass for deviance and log-likelihood; HC takes one more.

What was measured on the machine below, and decided the constants in the code:

- **Blocks of 3 MB** (about 18,000 rows of 21 columns). Smaller ones pay for the call of
  each operation, larger ones leave the cache.
- **Small products by numpy.** For up to 32 columns OpenBLAS's product of small matrices
  takes 21 ns a row of 21 columns; the symmetric routine takes 38, torch's `addmm` 48.
- **64-bit codes.** `index_add_` takes 13 ns a row with 64-bit codes and 67 with 32-bit
  ones.
- **One thread inside an operation.** Two threads inside such small products cost up to
  five times what they save. With several threads, workers take whole blocks; each
  operation still hands over Python's lock, so a second worker is used from 128 blocks
  on (about 2.3 million rows of 21 columns) and gains a fifth to a half.
- **Accumulated in float64**, whatever the precision of the blocks.

Not done yet: strided views of a consolidated frame instead of column copies; refinement
and meat in one pass.

"""


def main() -> None:
    """Render the tables below the introduction."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from report import markdown

    found = json.loads(RESULTS.read_text())
    tables = markdown(found).split("\n", 1)[1].strip()
    PAGE.write_text(INTRODUCTION + tables + "\n")


if __name__ == "__main__":
    main()
