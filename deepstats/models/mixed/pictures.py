"""Pictures of a mixed model: Axes in, Axes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...plots import (
    _GREY,
    OKABE_ITO,
    _axes,
    _binned_means,
    _check_level,
    _draw_quantiles,
    _order_statistics,
    _pyplot,
    _scatter,
)
from .modes import _factor_order, effects_frames
from .page import scaled_residuals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .profile import Profile
    from .results import MixedResults

__all__ = ["Pictures", "zeta"]

# More levels than this are drawn without a name for each.
_NAMED_LEVELS = 60
_PROFILE_LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class _Effect:
    """One random effect over the levels of its factor.

    Attributes
    ----------
    factor, name : str
    modes, sd : Series
        Conditional modes and standard deviations, by level.
    variance : float
        Estimated variance of the effect.
    """

    factor: str
    name: str
    modes: pd.Series
    sd: pd.Series
    variance: float

    def standardised(self) -> pd.Series:
        """Modes over the standard deviations that the model gives them.

        The variance of a conditional mode is that of the effect less its conditional
        variance, which differs between levels with few and with many rows.
        """
        variance = self.variance - self.sd**2
        known = variance > 1e-8 * self.variance
        return self.modes[known] / np.sqrt(variance[known])


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of a fitted mixed model, as ``results.plot``.

    Parameters
    ----------
    results : MixedResults
    """

    results: MixedResults

    def caterpillar(
        self,
        factor: str | None = None,
        term: str | None = None,
        *,
        top: int | None = None,
        order: bool = True,
        level: float = 0.95,
        ax: Axes | None = None,
    ) -> Axes | np.ndarray:
        """Draw the random effects of every level with their intervals.

        Parameters
        ----------
        factor : str, optional
            Grouping factor; by default the one with most levels.
        term : str, optional
            One of its effects, ``"Intercept"`` or a slope; all, side by side, when
            None.
        top : int, optional
            Draw only so many levels, those with the largest effects either way.
        order : bool, default True
            By size of the (first) effect; False for the order of the levels.
        level : float, default 0.95
            Of the intervals, mode and conditional standard deviation.
        ax : Axes, optional
            Where to draw, for a single effect; a new figure by default.

        Returns
        -------
        Axes, or ndarray of Axes where there are several effects

        Raises
        ------
        ValueError
            For a factor or an effect that the model has not.
        """
        _check_level(level)
        effects = self._chosen(factor, term)
        rows = _order_of_levels(effects[0].modes, top, order)
        size = (4.6, _height(len(rows)))
        axes: Sequence[Axes]
        if len(effects) == 1:
            axes = [_axes(ax, size)]
        elif ax is not None:
            raise ValueError(
                f"ax= has room for one effect; choose term= from "
                f"{[e.name for e in effects]}."
            )
        else:
            axes = _row_of_axes(len(effects), size[1])
        for place, effect in zip(axes, effects, strict=True):
            _draw_caterpillar(place, effect, rows, level, self.results.response_name)
        _name_levels(axes[0], effects[0], rows, order)
        return axes[0] if len(effects) == 1 else np.asarray(axes, dtype=object)

    def residuals(
        self, *, scale_location: bool = False, ax: Axes | None = None
    ) -> Axes:
        """Draw conditional residuals against fitted values, with a smooth.

        Parameters
        ----------
        scale_location : bool, default False
            Draw the square roots of absolute scaled residuals, in which a spread that
            changes with the mean shows as a slope.
        ax : Axes, optional

        Returns
        -------
        Axes
            Points, and means of up to 20 groups of neighbouring fitted values.
        """
        results = self.results
        ax = _axes(ax, (5.2, 3.8))
        fitted = results.fittedvalues.to_numpy()
        if scale_location:
            values = np.sqrt(np.abs(scaled_residuals(results)))
            middle, label = float(values.mean()), "√|scaled residual|"
        else:
            values, middle = results.resid_pearson.to_numpy(), 0.0
            label = f"{_residual_name(results)} ({results.response_name})"
        ax.axhline(middle, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        _scatter(ax, fitted, values)
        smooth = _binned_means(fitted, values)
        ax.plot(
            *smooth, color=OKABE_ITO[1], linewidth=1.8, label="mean by fitted value"
        )
        ax.set_xlabel(f"Fitted {results.response_name}")
        ax.set_ylabel(label)
        ax.set_title(
            "Scale and location" if scale_location else "Residuals", loc="left"
        )
        ax.legend(frameon=False, loc="best", fontsize=9)
        return ax

    def qq(
        self,
        of: str = "residuals",
        factor: str | None = None,
        term: str | None = None,
        *,
        level: float = 0.95,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw residuals or random effects against normal quantiles, with a band.

        Parameters
        ----------
        of : {"residuals", "ranef"}
            Random effects are divided by the standard deviations that the model gives
            their conditional modes.
        factor, term : str, optional
            Which random effect; by default the first of the factor with most levels.
        level : float, default 0.95
            Of the band, for each point.
        ax : Axes, optional

        Returns
        -------
        Axes

        Raises
        ------
        ValueError
            For an effect that the model has not, or whose variance is zero.
        """
        if of not in ("residuals", "ranef"):
            raise ValueError(f"of={of!r} must be 'residuals' or 'ranef'.")
        if of == "ranef":
            effect = self._chosen(factor, term)[0]
            sample, title = effect.standardised(), f"{effect.name} | {effect.factor}"
            label = "Standardised random effect"
            if len(sample) < 2:
                raise ValueError(
                    f"the variance of {title} is zero: its effects have no quantiles."
                )
        else:
            values = self.results.resid_pearson
            sample, title = (values - values.mean()) / values.std(), "Residuals"
            label = "Residual (scaled)"
        ax = _draw_quantiles(_order_statistics(sample, level), label, level, ax)
        ax.set_title(title, loc="left")
        return ax

    def panels(self) -> np.ndarray:
        """Draw residuals, their quantiles, their spread, and quantiles of effects.

        Returns
        -------
        ndarray of Axes, shape (2, 2)
        """
        plt = _pyplot()
        _, axes = plt.subplots(2, 2, figsize=(9.2, 7.4), layout="constrained")
        self.residuals(ax=axes[0, 0])
        self.qq(ax=axes[0, 1])
        self.residuals(scale_location=True, ax=axes[1, 0])
        self.draw_effects(axes[1, 1])
        return axes

    def draw_effects(self, ax: Axes) -> None:
        """Draw quantiles of the first random effect that varies, or say that none does.

        Parameters
        ----------
        ax : Axes
        """
        varying = [e for e in self._effects() if len(e.standardised()) > 1]
        if varying:
            self.qq("ranef", varying[0].factor, varying[0].name, ax=ax)
            return
        ax.set_axis_off()
        text = "all variances of random effects are zero"
        ax.text(0.5, 0.5, text, ha="center", va="center", color=_GREY)

    # -- choosing ----------------------------------------------------------------------

    def _effects(self) -> Iterator[_Effect]:
        """All random effects, those of the factor with most levels first."""
        fitted = self.results.mixed
        for j, (name, frame) in zip(
            _factor_order(fitted), effects_frames(fitted, True).items(), strict=True
        ):
            variances = np.concatenate(
                [np.diag(fitted.covariances[t.order]) for t in fitted.structure.of(j)]
            )
            for effect, variance in zip(frame, variances, strict=False):
                label = str(effect)
                sd = frame[f"{label}.sd"]
                yield _Effect(name, label, frame[label], sd, float(variance))

    def _chosen(self, factor: str | None, term: str | None) -> list[_Effect]:
        effects = list(self._effects())
        factors = list(dict.fromkeys(e.factor for e in effects))
        factor = factors[0] if factor is None else factor
        if factor not in factors:
            raise ValueError(f"factor={factor!r} must be one of {factors}.")
        of_factor = [e for e in effects if e.factor == factor]
        found = [e for e in of_factor if term is None or e.name == term]
        if not found:
            names = [e.name for e in of_factor]
            raise ValueError(f"term={term!r}: the effects of {factor} are {names}.")
        return found


def zeta(profile: Profile, parameters: Sequence[str] | None = None) -> np.ndarray:
    """Draw profile zeta: signed roots of the change in deviance.

    A straight line means that the Wald interval is right; the dotted lines are at the
    limits of intervals of 50, 80, 90, 95 and 99 percent.

    Parameters
    ----------
    profile : Profile
        With a `frame` of parameter, value and zeta.
    parameters : sequence of str, optional
        Which to draw, in this order; all when None.

    Returns
    -------
    ndarray of Axes
        One for each parameter.

    Raises
    ------
    ValueError
        For a parameter that was not profiled.
    """
    frame = profile.frame
    known = list(dict.fromkeys(frame["parameter"]))
    names = known if parameters is None else list(parameters)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"parameters {unknown} are not profiled; there are {known}.")
    columns = min(len(names), 3 if len(names) != 4 else 2)
    rows = -(-len(names) // columns)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(1 + 2.9 * columns, 0.6 + 2.6 * rows), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(wspace=0.06)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for j, name in enumerate(names):
        ax = _axes(axes.flat[j], (0, 0))
        _draw_zeta(ax, *_curve(frame, name))
        ax.set_xlabel(name if len(name) <= 28 else name.replace("|", "|\n", 1))
        if j % columns == 0:
            ax.set_ylabel("Profile ζ")
    return axes.ravel()[: len(names)]


# --------------------------------------------------------------- caterpillar


def _residual_name(results: MixedResults) -> str:
    """Say what `resid_pearson` are."""
    if results.model.options.get("variance") is not None:
        return "Residual / relative sd"
    weighted = results.model.design.weights is not None
    return "Residual × √weight" if weighted else "Residual"


def _order_of_levels(modes: pd.Series, top: int | None, order: bool) -> np.ndarray:
    """Numbers of the levels to draw, from the bottom of the picture up."""
    if top is not None and top < 1:
        raise ValueError(f"top={top!r} must be at least 1.")
    values = modes.to_numpy()
    chosen = np.arange(len(values))
    if top is not None:
        chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[:top])
    if order:
        return chosen[np.argsort(values[chosen], kind="stable")]
    return chosen[::-1]


def _height(levels: int) -> float:
    """Room for a line of text a level, as long as there are names."""
    return 5.6 if levels > _NAMED_LEVELS else max(2.5, 0.9 + 0.19 * levels)


def _row_of_axes(count: int, height: float) -> Sequence[Axes]:
    _, axes = _pyplot().subplots(
        1, count, figsize=(min(1.4 + 3.0 * count, 15), height), sharey=True,
        layout="constrained",
    )  # fmt: skip
    return [_axes(ax, (0, 0)) for ax in axes]


def _draw_caterpillar(
    ax: Axes, effect: _Effect, rows: np.ndarray, level: float, response: str
) -> None:
    from scipy.special import ndtri

    modes, sd = effect.modes.to_numpy()[rows], effect.sd.to_numpy()[rows]
    half, y = ndtri(0.5 + level / 2) * sd, np.arange(len(rows))
    many = len(rows) > _NAMED_LEVELS
    ax.axvline(0, color=_GREY, linewidth=0.9, zorder=1)
    ax.hlines(
        y, modes - half, modes + half, color=OKABE_ITO[4 if many else 0],
        linewidth=max(0.4, min(1.4, 150 / len(rows))), rasterized=many,
    )  # fmt: skip
    ax.plot(
        modes, y, linestyle="none", marker="o", markersize=1.2 if many else 4,
        color=OKABE_ITO[0], rasterized=many, zorder=3,
    )  # fmt: skip
    ax.margins(y=0.5 / max(len(rows), 1) if len(rows) > 8 else 0.08)
    ax.grid(axis="x", color="0.9", linewidth=0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_title(f"{effect.name} | {effect.factor}", loc="left")
    ax.set_xlabel(f"Effect on {response}, {100 * level:g}% interval")


def _name_levels(ax: Axes, effect: _Effect, rows: np.ndarray, order: bool) -> None:
    """Name the levels at the axis, or tell how many there are."""
    total, label = len(effect.modes), effect.factor
    if len(rows) < total:
        label = f"{len(rows):,} of {total:,} levels of {label}"
    elif total > _NAMED_LEVELS:
        label = f"{total:,} levels of {label}" + (", by size" if order else "")
    names = [str(name) for name in effect.modes.index[rows]]
    if len(rows) > _NAMED_LEVELS:
        ax.set_yticks([])
    else:
        ax.set_yticks(range(len(rows)), names, fontsize=9 if len(rows) <= 30 else 7)
    ax.set_ylabel(label)


# ---------------------------------------------------------------------- zeta


def _curve(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of a parameter in order, and zeta at each."""
    curve = frame.loc[frame["parameter"] == name, ["value", "zeta"]].dropna()
    curve = curve.sort_values("value").drop_duplicates("value")
    if len(curve) < 2:
        raise ValueError(f"the profile of {name} has {len(curve)} points: no curve.")
    return curve["value"].to_numpy(float), curve["zeta"].to_numpy(float)


def _draw_zeta(ax: Axes, value: np.ndarray, height: np.ndarray) -> None:
    from scipy.interpolate import PchipInterpolator
    from scipy.special import ndtri

    ax.axhline(0, color=_GREY, linewidth=0.8)
    curve = PchipInterpolator(value, height)
    fine = np.linspace(value[0], value[-1], 200)
    ax.plot(fine, curve(fine), color=OKABE_ITO[0], linewidth=1.6)
    for level in _PROFILE_LEVELS:
        reach = float(ndtri(0.5 + level / 2))
        for target in (-reach, reach):
            for root in _finite(curve.solve(target, extrapolate=False)):
                ax.plot(
                    [root, root], [0, target], color=_GREY, linewidth=0.8,
                    linestyle=(0, (1, 2)),
                )  # fmt: skip
    for root in _finite(curve.solve(0.0, extrapolate=False))[:1]:
        ax.plot(root, 0, marker="o", markersize=4, color=OKABE_ITO[1], zorder=3)


def _finite(values: np.ndarray) -> np.ndarray:
    """Roots without the NaN that marks a flat stretch."""
    return values[np.isfinite(values)]
