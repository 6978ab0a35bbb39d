"""Write the pages of figures from benchmarks/results, one for each benchmark."""

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
would be too many, the Schur complement is a symmetric product of a dense matrix
instead. It is linear in the weights of the levels, and these barely move from step to
step: where those at hand combine to the weights that are wanted, to rounding, the
products at hand are combined too. Crossed by 10,000 and 1,000 levels a fit takes three
such products instead of seven.
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
a million rows crossed by 10,000 and 1,000 levels glmm took from 7.0 to 10.6 s in five
runs, deepstats 1.2 to 1.3 in the last three. These two of that case, the small models,
MathAchieve, InstEval with four factors and the growth tables were run last, by later
code than the rest.

"""

TRAJECTORIES = """# Performance: group-based trajectory models

This page is written by `docs/generate_performance.py` from the numbers of the last
benchmark of `benchmarks/trajectory.py`. Formula and long data frame go in, the table of
coefficients with standard errors comes out. flexmix and StepMix are run beside;
lcmm, trajeR, crimCV and gbtmkit cannot be installed where it is run, and are shown with
the processor seconds recorded of them, marked as such.

## Where the time goes

After one pass over the rows, units are what is left: cross-products of each unit for
normal responses, whatever its times; for other families sums over the few distinct
rows of the design. For N units, K groups, S starts, F such sums a unit, P parameters:

| | flops | gaussian, K = 3, quadratic (F = 11, P = 14) |
|---|---|---|
| log-densities of an EM step | 2 N K S F | |
| sums of its M-step | 2 N K S F | 0.7 ms for N = 5,000, S = 1 |
| exact derivatives of the log-likelihood | about 4 N K P² | 3 ms |

EM brings a start near to its maximum, Newton's method with the exact Hessian takes it
there; what Newton's method needs are the standard errors too.

What was measured, and decided the code:

- **EM stops early.** Where no start gains more than 1e-7 of its log-likelihood in a
  step, Newton's method is quicker: one start at 5,000 units went from 0.14 s to 0.04 s.
- **Newton's method instead of slow EM in the short runs.** After ten EM steps of the
  last round, starts that still move are taken on by Newton's method; the best optimum
  was found as often (46 of 48 searches on six hard problems, with and without).
- **One Newton step in an M-step**, not two: a quarter less time, the same optima.
- **Blocks of 200,000 numbers.** Twice as large ones double the time of an EM step of 32
  starts: temporaries leave the cache, and the system maps and unmaps their memory.
  Derivatives take four times as many, for they are many small operations.
- **Small systems by Cholesky, group by group** where groups share no coefficients.

At 500 units a fit is calls of small operations, not arithmetic: the ratios are lowest
there. At a million units nearly all of a fit is Newton's method on all units: starts
are raced on a few thousand of them, and the best three go on.

"""


GLMM = """# Performance: generalised linear mixed models

This page is written by `docs/generate_performance.py` from the numbers of the last
benchmark of `benchmarks/glmms.py`. Formula and data frame go in, the table of
coefficients with standard errors comes out; all libraries use Laplace's method.

## Where the time goes

The modes of the random effects are found anew at every step of the search. One pass
over the rows gives weights, one sum by level (and by pair of levels) the equations,
which are eliminated as the linear model's are.

- **Equations are made once where it can be.** Near the last point, steps with the
  equations at hand settle the modes; new ones are made at the end, for the determinant.
- **The Hessian is one gradient a parameter**: forward differences of the exact
  gradient. Standard errors were within 6e-4 of those by central differences on 21 of 22
  reference models; on the other, epil2 with NB2, central differences of a fixed reach
  left the range of a nearly singular covariance and say nothing.
- **Sums by level are NumPy's `bincount`**: 13 µs for VerbAgg's rows, where torch's
  `index_add_` takes 18; for a million rows they are alike.
- **Closed-form third derivatives** for binomial, Poisson, NB1, NB2, zero-inflated,
  hurdle, gamma and normal responses; other families are differentiated by torch.

"""


def main() -> None:
    """Render the tables below the introductions."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import glmms_report
    import mixed_report
    import report
    import trajectory_report

    for name, page, introduction, markdown in (
        ("regression", "performance", INTRODUCTION, report.markdown),
        ("mixed", "performance_mixed", MIXED, mixed_report.markdown),
        ("glmm", "performance_glmm", GLMM, glmms_report.markdown),
        (
            "trajectory",
            "performance_trajectories",
            TRAJECTORIES,
            trajectory_report.markdown,
        ),
    ):
        found = json.loads((RESULTS / f"{name}.json").read_text())
        tables = markdown(found).split("\n", 1)[1].strip()
        (PAGES / f"{page}.md").write_text(introduction + tables + "\n")


if __name__ == "__main__":
    main()
