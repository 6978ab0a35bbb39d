"""One model fitted to many responses: estimates and inference of every replicate."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from ...compute import one_thread
from ...errors import DesignError, ModelError
from ...inference import linear_hypotheses
from .bootstrap import parameter_frame, start_of
from .criterion import Criterion
from .degrees import (
    DDF,
    _t_below,
    _t_quantile,
    contrast_test,
    kenward_roger,
    satterthwaite,
)
from .fitted import Fitted
from .replicated_degrees import KenwardRogers, kenward_rogers, satterthwaites
from .replicates import Refitted, at_once, refit_many
from .responses import Responses, RowSpace
from .search import minimise
from .together import Together

if TYPE_CHECKING:
    from .model import LinearMixed
    from .results import MixedResults

__all__ = ["RefitInference", "Refits", "refits"]

# Restrictions whose variance is below this share of the largest repeat others.
_RANK = 1.5e-8


@dataclass(frozen=True, eq=False)
class RefitInference:
    """Inference on the fixed effects of every replicate.

    Attributes
    ----------
    params, bse, df : DataFrame, shape (R, p)
        Estimates, standard errors and degrees of freedom; a row for each response, NaN
        where the fit did not converge.
    ddf : str
        How the degrees of freedom were found.
    """

    params: pd.DataFrame
    bse: pd.DataFrame
    df: pd.DataFrame
    ddf: str

    @property
    def tvalues(self) -> pd.DataFrame:
        """Estimates over standard errors."""
        return self.params / self.bse

    @property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values."""
        t = self.tvalues
        values = 2 * _t_below(-np.abs(t.to_numpy()), self.df.to_numpy())
        return pd.DataFrame(values, t.index, t.columns)

    def conf_int(self, alpha: float = 0.05) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return lower and upper limits of level ``1 - alpha``; each (R, p)."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}.")
        half = _t_quantile(1 - alpha / 2, self.df.to_numpy()) * self.bse
        return self.params - half, self.params + half


@dataclass(frozen=True, eq=False)
class Refits:
    """Fits of one model to many responses.

    Attributes
    ----------
    model : LinearMixed
        Its design is that of all fits.
    reml : bool
    found : Refitted
        Estimates of all responses.
    pieces : list of (Responses, Refitted)
        The same in numbers that were fitted at once, with their cross-products.
    """

    model: LinearMixed
    reml: bool
    pieces: list[tuple[Responses, Refitted]]
    found: Refitted = field(init=False)

    def __post_init__(self) -> None:
        found = Refitted.joined([piece for _, piece in self.pieces])
        object.__setattr__(self, "found", found)

    def __len__(self) -> int:
        return len(self.found.converged)

    def __repr__(self) -> str:
        found = self.found
        return (
            f"<{len(self)} fits of {self.model.design.spec.formula.text}: "
            f"{int(found.converged.sum())} converged, "
            f"{int((found.singular & found.converged).sum())} singular>"
        )

    @property
    def names(self) -> list[str]:
        """Fixed effects."""
        return list(self.model.design.X.names)

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, a row for each response; NaN without convergence."""
        values = np.where(self.converged[:, None], self.found.beta, np.nan)
        return pd.DataFrame(values, columns=self.names)

    @property
    def converged(self) -> np.ndarray:
        """Which fits converged; (R,)."""
        return self.found.converged

    @property
    def singular(self) -> np.ndarray:
        """Which fits have a covariance on the edge of its range; (R,)."""
        return self.found.singular

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All parameters, a row for each response; columns as of `MixedBootstrap`."""
        found, (structure, _) = self.found, self.model.prepare()
        out = parameter_frame(
            structure, found.x, found.variance, found.beta, self.names,
            self.model.sigma is not None,
        )  # fmt: skip
        out.loc[~self.converged] = np.nan
        return out

    @one_thread()
    def inference(self, ddf: str = "satterthwaite") -> RefitInference:
        """Find standard errors and degrees of freedom of every coefficient.

        Parameters
        ----------
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            As of `LinearMixed.fit`. "kenward-roger" changes the standard errors too,
            and needs fits by REML.

        Returns
        -------
        RefitInference

        Notes
        -----
        Where the columns left by the factor with most effects are few (one grouping
        factor, or a second with not too many levels) all replicates are worked on at
        once; otherwise one after the other.
        """
        self._check(ddf)
        p = len(self.names)
        bse, df = np.full((2, len(self), p), np.nan)
        start = 0
        for responses, found in self.pieces:
            good = np.flatnonzero(found.converged)
            if len(good):
                C, nu = self._coefficients(responses, found, good, ddf)
                variances = np.einsum("rii->ri", C)
                bse[start + good], df[start + good] = np.sqrt(variances), nu
            start += len(found.converged)
        frames = (pd.DataFrame(values, columns=self.names) for values in (bse, df))
        return RefitInference(self.params, *frames, ddf)

    def _check(self, ddf: str) -> None:
        if ddf not in DDF:
            raise ValueError(f"ddf must be one of {', '.join(DDF)}; not {ddf!r}.")
        if ddf == "kenward-roger" and not self.reml:
            raise ModelError(
                "Kenward-Roger degrees of freedom need fits by REML; use "
                "ddf='satterthwaite'."
            )

    @property
    def _df_residual(self) -> float:
        products = self.model.prepare()[1]
        return float(products.n - products.p)

    def _problem(self, responses: Responses) -> Together | None:
        """Return all criteria at once, where that pays."""
        products = self.model.prepare()[1]
        if not Together.pays(products):
            return None
        return Together(products, responses, self.reml, self.model.sigma)

    def _alone(self, responses: Responses, found: Refitted, number: int) -> Fitted:
        """Fit one replicate by itself, from where it was found."""
        products = responses.products(self.model.prepare()[1], number)
        criterion = Criterion(products, self.reml, self.model.sigma)
        search = minimise(criterion, found.x[number])
        return Fitted(search, criterion, self.model.compute)

    def _coefficients(
        self, responses: Responses, found: Refitted, good: np.ndarray, ddf: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Covariances (R, p, p) and degrees of freedom (R, p) of some replicates."""
        p = len(self.names)
        if ddf in ("residual", "normal"):
            df = np.inf if ddf == "normal" else self._df_residual
            return found.cov_beta[good], np.full((len(good), p), df)
        problem, each = self._problem(responses), np.eye(p)
        if problem is None:
            fits = [self._alone(responses, found, number) for number in good]
            if ddf == "satterthwaite":
                df = np.stack([satterthwaite(one, each) for one in fits])
                return found.cov_beta[good], df
            singles = [kenward_roger(one) for one in fits]
            df = np.array([[k.moments(r[None])[0] for r in each] for k in singles])
            return np.stack([k.covariance for k in singles]), df.reshape(-1, p)
        if ddf == "satterthwaite":
            df = satterthwaites(problem, found.x[good], good, each)
            return found.cov_beta[good], df
        all_at_once = kenward_rogers(problem, found.x[good], good)
        columns = [all_at_once.moments(r[None])[0] for r in each]
        df = np.stack(columns, axis=1) if columns else np.empty((len(good), 0))
        return all_at_once.covariance, df

    # -- joint tests -----------------------------------------------------------------

    @one_thread()
    def wald_pvalues(self, hypotheses: Any, ddf: str = "satterthwaite") -> np.ndarray:
        """Test linear hypotheses jointly in every replicate.

        Parameters
        ----------
        hypotheses : str, sequence of str or array_like
            As of `MixedResults.wald_test`, which is the test of each.
        ddf : str
            As of `inference`.

        Returns
        -------
        ndarray, shape (R,)
            NaN where the fit did not converge.
        """
        self._check(ddf)
        if not self.names:
            raise ModelError("the fixed part is empty: it has nothing to test.")
        R, q, _ = linear_hypotheses(hypotheses, self.names)
        if not R.any():
            raise ValueError("the hypothesis restricts no coefficient.")
        out = [np.full(len(found.converged), np.nan) for _, found in self.pieces]
        for p, (responses, found) in zip(out, self.pieces, strict=True):
            good = np.flatnonzero(found.converged)
            if len(good):
                p[good] = self._tested(responses, found, good, R, q, ddf)
        return np.concatenate(out)

    def _tested(
        self, responses: Responses, found: Refitted, good: np.ndarray, R: np.ndarray,
        q: np.ndarray, ddf: str,
    ) -> np.ndarray:  # fmt: skip
        moved = ddf in ("satterthwaite", "kenward-roger")
        problem = self._problem(responses) if moved else None
        if moved and problem is None:
            return np.array([
                contrast_test(
                    self.model.results(self._alone(responses, found, number), ddf),
                    R, q, True,
                ).pvalue
                for number in good
            ])  # fmt: skip
        beta = found.beta[good]
        if ddf == "kenward-roger":
            all_at_once = kenward_rogers(problem, found.x[good], good)
            return _kenward_roger_tests(all_at_once, beta, *_independent(R, q))
        values, vectors = np.linalg.eigh(R @ found.cov_beta[good] @ R.T)
        keep = values > _RANK * values[:, -1:]
        turned = vectors.transpose(0, 2, 1) @ R
        with np.errstate(divide="ignore", invalid="ignore"):
            t2 = np.einsum("rcq,rc->rq", vectors, beta @ R.T - q) ** 2 / values
        rank = keep.sum(1)
        F = np.where(keep, t2, 0.0).sum(1) / np.maximum(rank, 1)
        if ddf == "normal":
            return special.chdtrc(rank, rank * F)
        if ddf == "residual":
            return special.fdtrc(rank, self._df_residual, F)
        nu = satterthwaites(problem, found.x[good], good, turned)
        return special.fdtrc(rank, _joint_df(nu, keep), F)


def _independent(R: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Restrictions without those that follow from others."""
    lengths = np.maximum(np.linalg.norm(R, axis=1), 1e-300)
    left, sizes, _ = np.linalg.svd(R / lengths[:, None], full_matrices=False)
    turn = left[:, sizes > _RANK * sizes[0]].T / lengths
    return turn @ R, turn @ q


def _kenward_roger_tests(
    found: KenwardRogers, beta: np.ndarray, R: np.ndarray, q: np.ndarray
) -> np.ndarray:
    """P-values of ``R beta = q``, R of full rank."""
    rank, difference = len(R), beta @ R.T - q
    solved = np.linalg.solve(R @ found.covariance @ R.T, difference[:, :, None])
    df, scale = found.moments(R)
    F = scale * (difference * solved[:, :, 0]).sum(1) / rank
    known = np.isinf(df)
    by_f = special.fdtrc(rank, np.where(known, 1.0, df), F)
    return np.where(known, special.chdtrc(rank, rank * F), by_f)


def _joint_df(nu: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Denominator degrees of freedom of a mean of squared t (Fai & Cornelius 1996)."""
    out = np.empty(len(nu))
    for number, (values, kept) in enumerate(zip(nu, keep, strict=True)):
        own = values[kept]
        if not len(own) or np.ptp(own) < 1e-8:
            out[number] = own.mean() if len(own) else np.nan
        elif (own <= 2).any():
            out[number] = 2.0
        else:
            E = (1 / (1 - 2 / own)).sum()
            out[number] = 2 * E / (E - len(own))
    return np.minimum(out, 1e300)


@one_thread()
def refits(results: MixedResults, Y: Any, reml: bool | None = None) -> Refits:
    """Fit the model of a fit to many responses.

    Parameters
    ----------
    results : MixedResults
    Y : array_like, shape (n, R)
        A column for each response, as `MixedResults.simulate` gives them; rows as used
        by the fit, or those of its data.
    reml : bool, optional
        That of the fit when None.

    Returns
    -------
    Refits

    Raises
    ------
    DesignError
        For values that are missing, or a response that the fixed effects fit exactly.
    """
    model, fitted = results.model, results.mixed
    Y = _columns(results, Y)
    reml = results.reml if reml is None else bool(reml)
    products, compute = fitted.products, model.compute
    space = RowSpace(model.design, products, compute)
    start, block = start_of(fitted.structure, fitted.x), at_once(products, compute)
    pieces = []
    for begin in range(0, Y.shape[1], block):
        part = Y[:, begin : begin + block]
        responses = space.meet(part)
        least = 1e-24 * np.maximum((part**2).sum(0), 1e-300)
        exact = responses.squares.cpu().numpy() <= least
        if exact.any():
            raise DesignError(
                f"the fixed effects fit response {begin + int(np.argmax(exact))} "
                "exactly; there is nothing left for random effects."
            )
        found = refit_many(products, responses, reml, model.sigma, start)
        pieces.append((responses, found))
    return Refits(model, reml, pieces)


def _columns(results: MixedResults, Y: Any) -> np.ndarray:
    values = np.asarray(results.model.design.values(Y, "Y"))
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiub":
        raise DesignError("Y must have a column of numbers for each response.")
    out = values.astype(np.float64)
    if not np.isfinite(out).all():
        bad = int((~np.isfinite(out)).any(0).sum())
        raise DesignError(f"{bad} of the responses have missing or infinite values.")
    return out
