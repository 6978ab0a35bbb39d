"""Write the pages of figures from benchmarks/results: regression and mixed models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = Path(__file__).parent

INTRODUCTION = """# Performance

This page is written by `docs/generate_performance.py` from the numbers of the last
benchmark (`make bench`, described in `benchmarks/README.md`). Libraries are run side
by side, in fresh processes, on the same data; a bar that is not met says so. All
libraries, tasks and sizes were run by one command, while other work went on beside;
deepstats and glum, the fastest peer, were then run once more side by side on a quiet
machine. Of deepstats the second run is shown, of glum the better of the two: its time
depends on whether the system has large pages of memory to give. Five million rows of
least squares took it 2.3 s on a machine just started and 5.6 s later. With two
threads processor seconds are summed over both, so that a ratio below a bar there can
stand beside a shorter wait.

## Where the time goes

A model matrix is never formed. A block of rows is laid out as (columns, rows): filling
a column is one contiguous copy, a Gram matrix one product of a thin matrix with its
transpose. Factors with more than sixteen columns enter sums through their codes.

| for n rows and k columns | passes over 8 n k bytes | flops |
|---|---|---|
| cross-products, information | 1 | 2 n k² |
| residuals | 1 | 4 n k |
| least squares, classical | 1 (well conditioned) or 2 | 2 n k² + 4 n k |
| with HC or clusters | one more | 4 n k² + 6 n k |
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

MIXED = """# Performance: mixed models

This page is written by `docs/generate_performance.py` from the numbers of the last
benchmark of `benchmarks/mixed.py`. Formula and data frame go in, the table of fixed
effects with standard errors comes out (with Satterthwaite's degrees of freedom where a
library has them: deepstats, glmm, mixedlm).

## Where the time goes

After one pass over the rows nothing depends on their number. With q effects outside the
largest factor (and what nests in it), an iteration is

| | flops | InstEval (q = 1,142) |
|---|---|---|
| Schur complement from the list of pairs of levels | 2 a pair | 5 ms |
| its Cholesky factor | q³ / 3 | 15 ms |
| its inverse, for the exact gradient | 2 q³ / 3 | 28 ms |

and a fit takes three to seven of them. Where levels meet so many others that pairs
would be too many, the Schur complement is one symmetric product of a dense matrix
instead.
Degrees of freedom take one more product of q by q matrices.

What was measured on the machine below, and decided the code:

- **LAPACK by SciPy.** On a CPU the inverse from a Cholesky factor takes SciPy's
  OpenBLAS 28 ms for q = 1,142 and torch 36, 400 against 670 for q = 3,000.
- **The transpose of a tall matrix times few columns.** torch takes 68 ms for
  (10,000 x 1,000)' times three columns, a product read along the rows 8.
- **One matrix for small models.** Up to 120 effects in all, one dense matrix of
  cross-products in NumPy: no part of the general machinery is made until it is asked
  for.

Small models are where deepstats loses: glmm, all in Rust, needs half a millisecond, and
formula, frame and table alone take deepstats more than that.

Times of a library differ from run to run with the memory the system has to give: for
a million rows crossed by 10,000 and 1,000 levels glmm took 10.4 s in the run below and
7.0 to 7.8 s in the run of the growth tables, deepstats 2.3 s in both. The small models,
MathAchieve, InstEval with four factors and the growth tables were run last, by later
code than the rest.

"""


def main() -> None:
    """Render the tables below the introductions."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import mixed_report
    import report

    for name, page, introduction, markdown in (
        ("regression", "performance", INTRODUCTION, report.markdown),
        ("mixed", "performance_mixed", MIXED, mixed_report.markdown),
    ):
        found = json.loads((RESULTS / f"{name}.json").read_text())
        tables = markdown(found).split("\n", 1)[1].strip()
        (PAGES / f"{page}.md").write_text(introduction + tables + "\n")


if __name__ == "__main__":
    main()
