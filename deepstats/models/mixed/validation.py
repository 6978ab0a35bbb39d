"""Cross-validation of mixed models, over rows and over whole groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import linalg

from ...compute import one_thread
from ...design import Grouping
from ...errors import DesignError, listed
from .diagnostics import fit_without
from .fitted import Fitted
from .products import Vector
from .rowvariance import Rows

if TYPE_CHECKING:
    from .results import MixedResults

__all__ = ["cross_validate"]


@one_thread()
def cross_validate(
    results: MixedResults,
    folds: int = 10,
    groups: str | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Refit without each fold and predict the rows left out.

    Parameters
    ----------
    results : MixedResults
    folds : int, default 10
    groups : str, optional
        A grouping factor or a column: all rows of a level are left out together, and
        its own random effects are then predicted at the population value, zero. By
        default each row is on its own.
    seed : int, optional
        Of the random division into folds.

    Returns
    -------
    DataFrame
        A row a fold: rows left out (n), levels left out (levels, with `groups`),
        root mean squared error (rmse), mean absolute error (mae), logarithm of the
        predictive density for each row (log_density), and whether the fit converged.
        ``attrs`` has rmse, mae and log_density over all rows.

    Notes
    -----
    The predictive density is normal, with the variances of the fit without the fold
    taken as known and the error of its fixed effects and conditional modes added. Rows
    of one level are judged together, by their joint density; without `groups` each row
    by its own.

    Examples
    --------
    >>> import deepstats as ds
    >>> data = {"y": [1.0, 1.4, 3.1, 2.9, 2.2, 1.9, 4.0, 4.4],
    ...         "g": ["a", "a", "b", "b", "c", "c", "d", "d"]}
    >>> fit = ds.lmer("y ~ 1 + (1 | g)", data).fit()
    >>> fit.cross_validate(4, groups="g", seed=1)["rmse"].round(2).tolist()
    [1.89, 0.53, 0.76, 2.13]
    """
    design = results.model.design
    grouping = None if groups is None else _grouping(results, groups)
    units = design.n if grouping is None else len(grouping)
    what = "rows" if grouping is None else f"levels of {grouping.name}"
    if int(folds) != folds or not 2 <= folds <= units:
        raise ValueError(
            f"folds must be a whole number from 2 to the {units} {what}, not {folds!r}."
        )
    order = np.random.default_rng(seed).permutation(units)
    fold_of = np.empty(units, dtype=np.int64)
    fold_of[order] = np.arange(units) % int(folds)
    codes = np.arange(design.n) if grouping is None else grouping.codes
    data = _Columns.of(results)
    rows, index = [], range(1, int(folds) + 1)
    for fold in range(int(folds)):
        out = np.flatnonzero(fold_of[codes] == fold)
        judged = _judge(results, data, out, fold + 1, grouping)
        levels = {} if grouping is None else {"levels": int((fold_of == fold).sum())}
        rows.append({"n": len(out), **levels, **judged})
    frame = pd.DataFrame(rows, index=pd.Index(index, name="fold"))
    share = frame["n"] / frame["n"].sum()
    frame.attrs = {
        "rmse": float(np.sqrt((share * frame["rmse"] ** 2).sum())),
        "mae": float((share * frame["mae"]).sum()),
        "log_density": float((share * frame["log_density"]).sum()),
    }
    return frame


def _grouping(results: MixedResults, groups: str) -> Grouping:
    factors = {r.grouping.name: r.grouping for r in results.model.design.random}
    return factors.get(groups) or results.model.design.grouping(groups)


@dataclass(frozen=True, eq=False)
class _Columns:
    """What predictions need of all rows.

    Attributes
    ----------
    X : ndarray, shape (n, p)
    Z : list of ndarray, each (n, K)
        By term.
    codes : list of ndarray, each (n,)
        By term.
    noise : ndarray, shape (n,)
        Residual variances over sigma^2.
    target : ndarray, shape (n,)
        Response less offset.
    """

    X: np.ndarray
    Z: list[np.ndarray]
    codes: list[np.ndarray]
    noise: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, results: MixedResults) -> _Columns:
        design, compute = results.model.design, results.model.compute
        cpu = compute.on_cpu()
        wide = design.X.k + sum(r.Z.k for r in design.random)
        compute.require(
            design.n * wide, f"the {wide} columns of {design.n:,} rows",
            "raise the budget with set_default_device(memory=...).",
        )  # fmt: skip
        w, offset = design.weights, design.offset
        y = np.asarray(design.y, dtype=np.float64)
        return cls(
            design.X.to_dense(cpu).numpy(),
            [r.Z.to_dense(cpu).numpy() for r in design.random],
            [r.grouping.codes for r in design.random],
            np.ones(design.n) if w is None else 1 / w,
            y if offset is None else y - offset,
        )

    def rows(self, fitted: Fitted, out: np.ndarray) -> Rows:
        """Return some rows in the coordinates of a fit."""
        codes, z = [], []
        for j in range(len(fitted.structure.factors)):
            orders = [t.order for t in fitted.structure.of(j)]
            part = np.concatenate([self.Z[o][out] for o in orders], axis=1)
            codes.append(torch.from_numpy(self.codes[orders[0]][out].astype(np.int64)))
            z.append(torch.from_numpy(part @ fitted.units[j]))
        X = torch.from_numpy(self.X[out]) @ fitted.products.R.cpu()
        device = fitted.factorisation.L.device
        return Rows([c.to(device) for c in codes], [v.to(device) for v in z],
                    X.to(device))  # fmt: skip

    def mean(self, fitted: Fitted, out: np.ndarray) -> np.ndarray:
        """Predictions; a level without rows has conditional modes of zero."""
        mean = self.X[out] @ fitted.beta
        for Z, codes, b in zip(self.Z, self.codes, fitted.term_modes, strict=True):
            mean += (Z[out] * b[codes[out]]).sum(1)
        return mean


def _judge(
    results: MixedResults, data: _Columns, out: np.ndarray, fold: int,
    grouping: Grouping | None,
) -> dict[str, float]:  # fmt: skip
    """Errors and log-density of the rows of a fold, from a fit without them."""
    design = results.model.design
    gone = np.zeros(design.n, dtype=bool)
    gone[out] = True
    fitted, kept = fit_without(results, gone, f"fold {fold}")
    if len(kept) < design.X.k:
        lost = [n for j, n in enumerate(design.X.names) if j not in kept]
        raise DesignError(
            f"without fold {fold} the coefficients of {listed(lost)} cannot be "
            "estimated, so its rows cannot be predicted; use more folds, or merge rare "
            "levels."
        )
    error = data.target[out] - data.mean(fitted, out)
    if grouping is None:
        spread = fitted.inverse.quadratic(data.rows(fitted, out)).cpu().numpy()
        variance = fitted.sigma**2 * (spread + data.noise[out])
        total = -0.5 * float((np.log(2 * np.pi * variance) + error**2 / variance).sum())
    else:
        codes = grouping.codes[out]
        total = sum(
            _joint(fitted, data, out[codes == c], error[codes == c])
            for c in np.unique(codes)
        )
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "log_density": total / len(out),
        "converged": bool(fitted.found.converged),
    }


def _joint(fitted: Fitted, data: _Columns, out: np.ndarray, error: np.ndarray) -> float:
    """Joint log-density of rows."""
    rows, products = data.rows(fitted, out), fitted.products
    effects = sum(f.q for f in products.structure.factors)
    fitted.compute.require(
        4 * len(out) * (effects + len(out)),
        f"the joint density of {len(out):,} rows",
        "leave out smaller groups.",
    )
    at = torch.arange(rows.n, device=rows.x.device)
    parts = []
    for f, codes, z in zip(products.structure.factors, rows.codes, rows.z, strict=True):
        part = z.new_zeros(f.k, f.m, rows.n)
        part[:, codes, at] = z.T
        parts.append(part)
    U: Vector = products.from_factors(parts, rows.x.T.contiguous())
    spread = U.gram(fitted.factorisation.solve(U)).cpu().numpy()
    covariance = fitted.sigma**2 * (spread + np.diag(data.noise[out]))
    L = np.linalg.cholesky((covariance + covariance.T) / 2)
    half = linalg.solve_triangular(L, error, lower=True)
    logs = 2 * np.log(np.diag(L)).sum() + len(out) * np.log(2 * np.pi)
    return -0.5 * float(logs + half @ half)
