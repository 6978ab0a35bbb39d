"""Test random effects against tails heavier than the normal distribution's.

Were the effects of a factor multivariate t with nu degrees of freedom, the derivative
of the log-likelihood in ``1 / nu`` at the normal distribution, nu = infinity, would be
the posterior mean of that of the effects' log-density,

    sum over levels of E(q^2 / 4 - K q / 2 + (K^2 - 2 K) / 4 | y),   q = b'V^-1 b

of K effects a level: a score test, whose null distribution is found by fitting data
simulated from the fit. Posteriors are normal about the modes, for data and simulations
alike. For one effect a level the statistic is the mean of its fourth Hermite
polynomial, its kurtosis, up to what the variance has already fitted.

For one grouping factor with one effect the gradient function says where the
distribution is wrong: the mean over groups of ``f(y_i | b) / f(y_i)`` is one at every b
if the effects are normal; above one, there should be more mass near b.

References
----------
Lange, Little & Taylor (1989), Robust statistical modeling using the t distribution,
Journal of the American Statistical Association 84. Pinheiro, Liu & Wu (2001), Efficient
algorithms for robust estimation in linear mixed-effects models using the multivariate t
distribution, Journal of Computational and Graphical Statistics 10. Verbeke &
Molenberghs (2013), The gradient function as an exploratory goodness-of-fit assessment
of the random-effects distribution in mixed models, Biostatistics 14.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ...compute import one_thread
from ...errors import ConvergenceWarning, ModelError, caution, listed
from .bootstrap import replicates
from .laplace import Laplace, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import MixedGLMResults

__all__ = ["TailTest", "heavy_tails"]

#: Where the gradient function is found, in standard deviations.
_GRID = np.linspace(-3.5, 3.5, 57)
_LEAST = 20
#: Points of the adaptive quadrature behind it.
_NODES = 15
#: Effects that vary less than this, standardised, are those of a variance of zero.
_FLAT = 1e-6


@dataclass(frozen=True, eq=False)
class TailTest:
    """A test of normal random effects against heavier tails.

    Attributes
    ----------
    factor : str
    statistic : float
        Score of ``1 / nu``; positive where tails are heavier than normal.
    draws : ndarray, shape (simulations,)
        The statistic of fits to simulated data.
    pvalue : float
        Share of fits with a statistic as large, the data's own among them.
    modes : DataFrame
        Columns mode, quantile, low and high: sorted standardised modes of the first
        effect, the median of the simulated ones of the same rank, and the 2.5 and
        97.5 percent points.
    gradient : DataFrame or None
        Columns effect (in standard deviations), gradient, low and high; None but for
        one grouping factor with one effect.
    failed : int
        Simulations whose fit did not converge.
    """

    factor: str
    statistic: float
    draws: np.ndarray
    pvalue: float
    modes: pd.DataFrame
    gradient: pd.DataFrame | None
    failed: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw modes against those of simulated fits, with their band.

        Parameters
        ----------
        ax : Axes, optional
        """
        from ...plots import _GREY, OKABE_ITO, _axes

        ax, frame = _axes(ax, (4.6, 3.9)), self.modes
        ax.fill_between(
            frame["quantile"], frame["low"], frame["high"], color="0.88", linewidth=0,
            label="95% of simulations",
        )  # fmt: skip
        ends = frame["quantile"].iloc[[0, -1]]
        ax.plot(ends, ends, color=_GREY, linewidth=0.9)
        ax.plot(
            frame["quantile"], frame["mode"], linestyle="none", marker="o",
            markersize=3.5, color=OKABE_ITO[0],
        )  # fmt: skip
        ax.set_xlabel("Median of simulated modes")
        ax.set_ylabel("Standardised mode")
        ax.set_title(f"{self.factor}: p = {self.pvalue:.3f}", loc="left")
        ax.legend(frameon=False, loc="best", fontsize=9)
        return ax

    def plot_gradient(self, ax: Axes | None = None) -> Axes:
        """Draw the gradient function with its band.

        Parameters
        ----------
        ax : Axes, optional

        Raises
        ------
        ModelError
            Where there is none: for several factors, or effects of a level.
        """
        from ...plots import _GREY, OKABE_ITO, _axes

        if self.gradient is None:
            raise ModelError(
                "the gradient function is for one grouping factor with one effect."
            )
        ax, frame = _axes(ax, (4.6, 3.9)), self.gradient
        ax.fill_between(
            frame["effect"], frame["low"], frame["high"], color="0.88", linewidth=0,
            label="95% of simulations",
        )  # fmt: skip
        ax.axhline(1.0, color=_GREY, linewidth=0.9)
        ax.plot(frame["effect"], frame["gradient"], color=OKABE_ITO[0], linewidth=1.6)
        ax.set_xlabel(f"Effect of {self.factor} (standard deviations)")
        ax.set_ylabel("Gradient function")
        ax.set_title("More mass wanted above one", loc="left")
        ax.legend(frameon=False, loc="best", fontsize=9)
        return ax

    def __repr__(self) -> str:
        return (
            f"<heavy tails of {self.factor}: score {self.statistic:.4g}, expected "
            f"{self.draws.mean():.4g}, p = {self.pvalue:.4g} ({len(self.draws)} "
            "simulations)>"
        )


@one_thread()
def heavy_tails(
    results: MixedGLMResults, factor: str | None = None, nsim: int = 200,
    seed: int | None = None,
) -> TailTest:  # fmt: skip
    """Test the random effects of a factor against heavier tails, by simulation.

    Parameters
    ----------
    results : MixedGLMResults
    factor : str, optional
        Grouping factor; by default the one with most levels.
    nsim : int, default 200
        Data sets simulated from the fit, each fitted again.
    seed : int, optional

    Returns
    -------
    TailTest

    Raises
    ------
    ModelError
        Where the variance is estimated as zero, and for variational fits.

    Warns
    -----
    ConvergenceWarning
        With the number of simulations whose fit did not converge.
    """
    if nsim < _LEAST:
        raise ValueError(f"nsim must be at least {_LEAST}, not {nsim!r}.")
    if not isinstance(results.found.point.laplace, Laplace):
        raise ModelError(
            "a variational fit has a bound of the log-likelihood, and no score tests; "
            "use the exact fit."
        )
    factors = results.found.point.laplace.structure.factors
    names = [f.name for f in factors]
    if factor is None:
        factor = max(factors, key=lambda f: f.m).name
    if factor not in names:
        raise ValueError(f"factor={factor!r} must be one of {listed(names)}.")
    number = names.index(factor)
    own = _Found.of(results.found.point, number)
    if not np.ptp(own.modes) > _FLAT:
        raise ModelError(
            f"the variance of {factor} is zero: its effects have no distribution."
        )
    generator = np.random.default_rng(seed)
    drawn = [
        _Found.of(fit[1].point, number) if fit is not None else None
        for fit in replicates(results, nsim, generator)
    ]
    kept = [d for d in drawn if d is not None]
    if failed := nsim - len(kept):
        caution(
            f"{failed} of {nsim} simulated data sets could not be fitted and are left "
            "out.",
            ConvergenceWarning,
        )
    if len(kept) < _LEAST:
        raise ModelError("hardly any simulated data set could be fitted.")
    draws = np.array([d.statistic for d in kept])
    above = int((draws >= own.statistic).sum())
    low, middle, high = np.quantile([d.modes for d in kept], [0.025, 0.5, 0.975], 0)
    modes = pd.DataFrame(
        {"mode": own.modes, "quantile": middle, "low": low, "high": high}
    )
    gradient = None
    if own.gradient is not None:
        ends = np.quantile([d.gradient for d in kept], [0.025, 0.975], axis=0)
        gradient = pd.DataFrame(
            {"effect": _GRID, "gradient": own.gradient, "low": ends[0], "high": ends[1]}
        )
    return TailTest(
        factor, own.statistic, draws, (above + 1) / (len(draws) + 1), modes, gradient,
        failed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Found:
    """What is found of one fit.

    Attributes
    ----------
    statistic : float
    modes : ndarray, shape (m,)
        Sorted, standardised, of the first effect.
    gradient : ndarray or None
    """

    statistic: float
    modes: np.ndarray
    gradient: np.ndarray | None

    @classmethod
    def of(cls, point: Point, number: int) -> _Found:
        """Find them for one factor."""
        laplace, modes = point.laplace, point.modes
        factors = laplace.structure.factors
        root = laplace.structure.roots(point.x)[number]
        dual = modes.dual[number].cpu().numpy()
        diagonal, _, _ = modes.factorisation.blocks(with_x=False)
        u, C = _standard(diagonal[number].cpu().numpy(), dual, root)
        alone = len(factors) == 1 and len(root) == 1 and len(laplace.rows.parts) == 1
        first = (root @ (root.T @ dual))[0] / max(np.linalg.norm(root[0]), _FLAT**2)
        return cls(
            _score(u, C), np.sort(first),
            _gradient(point, float(root[0, 0])) if alone else None,
        )  # fmt: skip


def _standard(
    blocks: np.ndarray, dual: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and covariances of effects with a prior variance of one.

    In directions in which the covariance is singular they keep their prior.

    Parameters
    ----------
    blocks : ndarray, shape (K, K, m)
        Posterior covariances of the effects.
    dual : ndarray, shape (K, m)
        ``V^-1`` times their modes.
    root : ndarray, shape (K, K)
        Of V.

    Returns
    -------
    u : ndarray, shape (K, m)
    C : ndarray, shape (m, K, K)
    """
    values, vectors = np.linalg.eigh(root @ root.T)
    sizes = np.sqrt(np.maximum(values, 0.0))
    known = sizes > _FLAT * max(sizes.max(), _FLAT)
    half = np.where(known, 1 / np.where(known, sizes, 1.0), 0.0)
    turn = vectors.T * half[:, None]
    C = np.einsum("ab,bcm,dc->mad", turn, blocks, turn)
    return sizes[:, None] * (vectors.T @ dual), C + np.diag(~known * 1.0)


def _score(u: np.ndarray, C: np.ndarray) -> float:
    """Sum over levels of the posterior mean of the log-density's slope in 1 / nu."""
    K = len(u)
    mean = (u**2).sum(0) + np.einsum("maa->m", C)
    bent = 2 * (C**2).sum((1, 2)) + 4 * np.einsum("am,mab,bm->m", u, C, u)
    square = mean**2 + bent
    return float((square / 4 - K * mean / 2 + (K * K - 2 * K) / 4).sum())


def _gradient(point: Point, sd: float) -> np.ndarray:
    """Mean over groups of ``f(y_i | b) / f(y_i)``, b on the grid."""
    laplace, part = point.laplace, point.laplace.rows.parts[0]
    rows, factor = laplace.rows, laplace.structure.factors[0]
    fixed = [eta[:, None] for eta in laplace.predictors(point.gamma)]
    grid = torch.from_numpy(_GRID).to(fixed[0])

    def logs(u: torch.Tensor) -> torch.Tensor:
        """Log-density of each group at standardised effects, (m, points)."""
        etas = list(fixed)
        etas[part] = fixed[part] + sd * rows.Z[0][0][:, None] * u
        values = laplace.density.log_prob_of(*etas)
        out = values.new_zeros(factor.m, values.shape[1])
        return out.index_add(0, rows.codes[0], values)

    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    mode = (sd * point.modes.dual[0][0])[:, None]
    (K,) = point.modes.factorisation.blocks(with_x=False)[0]
    spread = (K[0, 0] / sd**2).sqrt()[:, None] if sd > 0 else torch.ones_like(mode)
    at = mode + spread * torch.from_numpy(nodes).to(mode)
    inside = logs(at[rows.codes[0]]) - at.square() / 2
    log_weights = torch.from_numpy(np.log(weights) + nodes**2 / 2).to(mode)
    marginal = torch.logsumexp(inside + log_weights, 1) + spread[:, 0].log()
    marginal = marginal - 0.5 * log(2 * pi)
    ratio = (logs(grid[None]) - marginal[:, None]).exp()
    return ratio.mean(0).cpu().numpy()
