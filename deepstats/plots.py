"""Plots of results, each with the frame behind it: Axes in, Axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepstats.summary import choose_terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "OKABE_ITO",
    "coefplot",
    "coefplot_frame",
    "effects_plot",
    "influence_frame",
    "influence_plot",
    "qq_frame",
    "qqplot",
    "residual_frame",
    "residual_plot",
]

#: Okabe and Ito's colours, in the order in which lines stay apart in grey print too.
OKABE_ITO = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "0.45"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install deepstats[plots]"
        ) from error
    return plt


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Give the caller's Axes, or new ones, in the style of all our plots."""
    plt = _pyplot()
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=3, width=0.8)
    ax.set_axisbelow(True)
    return ax


def _check_level(conf_level: float) -> None:
    if not 0 < conf_level < 1:
        raise ValueError(f"conf_level={conf_level} must lie between 0 and 1")


# ----------------------------------------------------------- coefficients


def coefplot_frame(
    *results: Any,
    names: Sequence[str] | None = None,
    keep: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    conf_level: float = 0.95,
    intercept: bool = False,
) -> pd.DataFrame:
    """Collect the estimates and intervals that `coefplot` draws.

    Parameters
    ----------
    *results : Results
        Fitted models.
    names : sequence of str, optional
        One per model; ``(1)``, ``(2)`` ... by default.
    keep, drop : str or sequence of str, optional
        Regular expressions over term names: which terms to show or leave out.
    labels : dict of str to str, optional
        New names of terms.
    conf_level : float, default 0.95
        Level of the intervals.
    intercept : bool, default False
        Whether to show intercepts.

    Returns
    -------
    DataFrame
        Columns model, component, term, label, estimate, conf_low, conf_high; terms in
        the order in which the models have them.

    Raises
    ------
    ValueError
        If there is no model, names are too few, or no term is left.
    """
    _check_level(conf_level)
    if not results:
        raise ValueError("coefplot needs at least one fitted model")
    if names is None:
        names = [f"({j + 1})" for j in range(len(results))]
    if isinstance(names, str) or len(names) != len(results):
        raise ValueError(f"names={names!r} must be a list of {len(results)} names")
    frames = []
    for name, result in zip(names, results, strict=True):
        frame = result.tidy(conf_level=conf_level).reset_index(drop=True)
        part = (
            frame["component"] if "component" in frame else pd.Series("", frame.index)
        )
        frame = frame.assign(model=name, component=part.fillna("").astype(str))
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    if not intercept:
        frame = frame[frame["term"] != "Intercept"]
    frame = frame[frame["term"].isin(choose_terms(frame["term"], keep, drop))]
    frame = frame.assign(label=_coefficient_labels(frame, dict(labels or {})))
    columns = [
        "model",
        "component",
        "term",
        "label",
        "estimate",
        "conf_low",
        "conf_high",
    ]
    return frame[columns].reset_index(drop=True)


def _coefficient_labels(frame: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """Name terms, adding the component where a term occurs in several."""
    several = frame.groupby("term")["component"].nunique() > 1
    return [
        f"{component}: {labels.get(term, term)}"
        if several[term] and component
        else labels.get(term, term)
        for term, component in zip(frame["term"], frame["component"], strict=True)
    ]


def coefplot(
    *results: Any,
    names: Sequence[str] | None = None,
    keep: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    conf_level: float = 0.95,
    intercept: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Plot estimates with their confidence intervals, models side by side.

    Parameters
    ----------
    *results, names, keep, drop, labels, conf_level, intercept
        As in `coefplot_frame`.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With one row per term, the first on top.
    """
    frame = coefplot_frame(
        *results,
        names=names,
        keep=keep,
        drop=drop,
        labels=labels,
        conf_level=conf_level,
        intercept=intercept,
    )
    terms = list(dict.fromkeys(frame["label"]))
    models = list(dict.fromkeys(frame["model"]))
    height = 0.9 + len(terms) * max(0.3, 0.17 * len(models))
    ax = _axes(ax, (5.6, height))
    rows = frame["label"].map({term: i for i, term in enumerate(terms)})
    for j, model in enumerate(models):
        chosen = frame["model"] == model
        _intervals(ax, frame[chosen], rows[chosen] + _dodge(j, len(models)), j, model)
    _term_axis(ax, terms)
    ax.set_xlabel(f"Estimate and {100 * conf_level:g}% confidence interval")
    if len(models) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _dodge(j: int, count: int) -> float:
    """Shift model j of `count` within at most 0.6 of a row, the first on top."""
    step = min(0.2, 0.6 / max(1, count - 1))
    return step * (j - (count - 1) / 2)


def _intervals(
    ax: Axes, frame: pd.DataFrame, y: pd.Series, j: int, label: str | None
) -> None:
    """Draw points with horizontal intervals in the j-th colour and marker."""
    columns = ["estimate", "conf_low", "conf_high"]
    estimate, low, high = frame[columns].to_numpy(float).T
    ax.errorbar(
        estimate,
        y.to_numpy(float),
        xerr=np.vstack([estimate - low, high - estimate]),
        fmt=_MARKERS[j % len(_MARKERS)],
        color=OKABE_ITO[j % len(OKABE_ITO)],
        markersize=4.5,
        elinewidth=1.4,
        capsize=0,
        label=label,
    )


def _term_axis(ax: Axes, terms: Sequence[str]) -> None:
    ax.axvline(0, color=_GREY, linewidth=0.9, zorder=1)
    ax.set_yticks(range(len(terms)), terms)
    ax.set_ylim(len(terms) - 0.5, -0.5)
    ax.grid(axis="x", color="0.9", linewidth=0.6)
    ax.tick_params(axis="y", length=0)


def effects_plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot marginal effects with their confidence intervals.

    Parameters
    ----------
    frame : DataFrame
        Columns variable, effect, conf_low, conf_high, and if there are any contrast
        and outcome, as ``marginal_effects()`` gives them.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With one row per row of `frame`, the first on top.

    Raises
    ------
    ValueError
        If a column is missing.
    """
    _need(frame, ["variable", "effect", "conf_low", "conf_high"])
    terms = _effect_labels(frame)
    ax = _axes(ax, (5.6, 0.9 + 0.3 * len(terms)))
    rows = pd.Series(range(len(terms)), index=frame.index, dtype=float)
    _intervals(ax, frame.rename(columns={"effect": "estimate"}), rows, 0, None)
    _term_axis(ax, terms)
    ax.set_xlabel("Effect and confidence interval")
    return ax


def _effect_labels(frame: pd.DataFrame) -> list[str]:
    """Name variables, with the contrast of categories and the outcome it is on."""
    labels = []
    for row in frame.to_dict("records"):
        label, contrast = str(row["variable"]), str(row.get("contrast", "dY/dX"))
        label += "" if contrast == "dY/dX" else f": {contrast}"
        labels.append(f"{label}, P({row['outcome']})" if "outcome" in row else label)
    return labels


# -------------------------------------------------------------- residuals

_RESIDUAL_LABELS = {
    "response": "Residual",
    "standardized": "Standardised residual",
    "pearson": "Pearson residual",
    "deviance": "Deviance residual",
}
_RESIDUAL_COLUMNS = {"response": ".resid", "standardized": ".std_resid"}


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"columns {missing} are missing; there are {list(frame)}")


def _residuals(results: Any, kind: str, augmented: pd.DataFrame) -> np.ndarray:
    """Residuals of a kind: a column of augment(), else the attribute resid_<kind>."""
    column = _RESIDUAL_COLUMNS.get(kind, f".resid_{kind}")
    if column in augmented:
        return augmented[column].to_numpy(float)
    values = getattr(results, f"resid_{kind}", None)
    if values is None:
        columns = {name: key for key, name in _RESIDUAL_COLUMNS.items()}
        known = [columns[c] for c in augmented if c in columns]
        known += [k for k in _RESIDUAL_LABELS if hasattr(results, f"resid_{k}")]
        raise ValueError(f"kind={kind!r}: this model has the residuals {known}")
    values = np.asarray(values, dtype=float)
    if values.shape != (len(augmented),):
        raise ValueError(
            f"resid_{kind} has shape {values.shape}, augment() {len(augmented)} rows"
        )
    return values


def residual_frame(results: Any, kind: str = "pearson") -> pd.DataFrame:
    """Collect fitted values and residuals.

    Parameters
    ----------
    results : Results
        A fitted model.
    kind : {"pearson", "response", "standardized", "deviance"}, default "pearson"
        Which residuals, as far as the model has them.

    Returns
    -------
    DataFrame
        Columns fitted and resid; rows without a residual are left out.

    Raises
    ------
    ValueError
        If the model has no residuals of that kind.
    """
    augmented = results.augment()
    _need(augmented, [".fitted"])
    if not pd.api.types.is_numeric_dtype(augmented[".fitted"]):
        raise ValueError(
            f"{results.model_name} predicts categories, which have no residuals; plot "
            "the probabilities of predict() instead."
        )
    fitted = augmented[".fitted"].to_numpy(float)
    resid = _residuals(results, kind, augmented)
    frame = pd.DataFrame({"fitted": fitted, "resid": resid}, index=augmented.index)
    return frame[np.isfinite(frame).all(axis=1)]


def _binned_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y in up to 20 groups of neighbours in x; ties stay together."""
    count = int(np.clip(np.sqrt(len(x)) / 2, 1, 20))
    values = np.unique(x)
    inner = np.quantile(x, np.linspace(0, 1, count + 1)[1:-1])
    edges = values[1:] if len(values) <= count else np.unique(inner)
    group = np.searchsorted(edges, x, side="right")
    sizes = np.bincount(group)
    used = sizes > 0
    means = [np.bincount(group, weights=v)[used] / sizes[used] for v in (x, y)]
    return means[0], means[1]


def _scatter(ax: Axes, x: np.ndarray, y: np.ndarray, **options: Any) -> None:
    """Draw points that stay legible, and files that stay small, with many rows."""
    alpha = float(np.clip(30 / np.sqrt(max(len(x), 1)), 0.15, 0.8))
    options = {"s": 14, "alpha": alpha, "linewidths": 0, **options}
    ax.scatter(x, y, color=OKABE_ITO[0], rasterized=len(x) > 5000, **options)


def residual_plot(results: Any, kind: str = "pearson", ax: Axes | None = None) -> Axes:
    """Plot residuals against fitted values, with a smooth of binned means.

    Parameters
    ----------
    results : Results
        A fitted model.
    kind : {"pearson", "response", "standardized", "deviance"}, default "pearson"
        Which residuals, as far as the model has them.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        Points, a line at zero, and the mean residual of up to 20 groups of
        neighbouring fitted values.
    """
    frame = residual_frame(results, kind)
    ax = _axes(ax, (5.2, 3.6))
    fitted, resid = frame["fitted"].to_numpy(), frame["resid"].to_numpy()
    ax.axhline(0, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    _scatter(ax, fitted, resid)
    ax.plot(
        *_binned_means(fitted, resid),
        color=OKABE_ITO[1],
        linewidth=1.8,
        label="mean by fitted value",
    )
    ax.set_xlabel("Fitted value")
    ax.set_ylabel(_RESIDUAL_LABELS.get(kind, f"{kind} residual"))
    ax.legend(frameon=False, loc="best")
    return ax


def qq_frame(
    results: Any, kind: str = "standardized", conf_level: float = 0.95
) -> pd.DataFrame:
    """Order residuals beside the quantiles a normal distribution would give.

    Parameters
    ----------
    results : Results
        A fitted model.
    kind : {"standardized", "pearson", "response", "deviance"}, default "standardized"
        Which residuals, as far as the model has them.
    conf_level : float, default 0.95
        Pointwise level of the band.

    Returns
    -------
    DataFrame
        Columns theoretical, sample, band_low, band_high, in order of size; the index
        tells the rows of the data. Samples are divided by their standard deviation
        about their mean unless they are standardised already.

    Notes
    -----
    The i-th of n uniform order statistics is Beta(i, n + 1 - i); its quantiles, and for
    the theoretical value its median, are carried to the normal scale.

    References
    ----------
    Aldor-Noiman, Brown, Buja, Rolke and Stine (2013), The power to see: a new graphical
    test of normality, The American Statistician 67, 249-260.
    """
    augmented = results.augment()
    sample = pd.Series(_residuals(results, kind, augmented), augmented.index)
    sample = sample[np.isfinite(sample)]
    if kind != "standardized":
        sample = (sample - sample.mean()) / sample.std()
    return _order_statistics(sample, conf_level)


def _order_statistics(sample: pd.Series, conf_level: float) -> pd.DataFrame:
    """Set a sample in order beside normal quantiles and their band; see `qq_frame`."""
    from scipy.stats import beta, norm

    _check_level(conf_level)
    sample, n = sample.sort_values(), len(sample)
    i = np.arange(1, n + 1)
    tail = (1 - conf_level) / 2
    columns = {
        name: norm.ppf(beta.ppf(q, i, n + 1 - i))
        for name, q in (
            ("theoretical", 0.5),
            ("band_low", tail),
            ("band_high", 1 - tail),
        )
    }
    frame = pd.DataFrame({**columns, "sample": sample.to_numpy()}, index=sample.index)
    return frame[["theoretical", "sample", "band_low", "band_high"]]


def qqplot(
    results: Any,
    ax: Axes | None = None,
    *,
    kind: str = "standardized",
    conf_level: float = 0.95,
) -> Axes:
    """Plot residuals against normal quantiles, with a pointwise band.

    Parameters
    ----------
    results : Results
        A fitted model.
    ax : Axes, optional
        Where to draw; a new figure by default.
    kind, conf_level
        As in `qq_frame`.

    Returns
    -------
    Axes
        Points, the line of equality, and the band.
    """
    label = _RESIDUAL_LABELS.get(kind, f"{kind} residual") + _scaled(kind)
    return _draw_quantiles(qq_frame(results, kind, conf_level), label, conf_level, ax)


def _draw_quantiles(
    frame: pd.DataFrame, label: str, conf_level: float, ax: Axes | None
) -> Axes:
    """Draw the columns of `qq_frame`."""
    ax = _axes(ax, (4.2, 4.0))
    x = frame["theoretical"].to_numpy()
    ax.fill_between(
        x,
        frame["band_low"],
        frame["band_high"],
        color="0.87",
        linewidth=0,
        label=f"{100 * conf_level:g}% pointwise band",
    )
    ax.plot(x[[0, -1]], x[[0, -1]], color=_GREY, linewidth=0.9)
    _scatter(ax, x, frame["sample"].to_numpy(), alpha=0.8)
    ax.set_xlabel("Normal quantile")
    ax.set_ylabel(label)
    ax.legend(frameon=False, loc="upper left")
    return ax


def _scaled(kind: str) -> str:
    return "" if kind == "standardized" else " (scaled)"


# -------------------------------------------------------------- influence


def influence_frame(results: Any) -> pd.DataFrame:
    """Collect leverage, studentised residuals and Cook's distances.

    Parameters
    ----------
    results : Results
        A fitted model whose ``augment()`` has ``.hat``, ``.std_resid`` and ``.cooksd``.

    Returns
    -------
    DataFrame
        These three columns, indexed by the rows of the data.
    """
    augmented = results.augment()
    columns = [".hat", ".std_resid", ".cooksd"]
    _need(augmented, columns)
    return augmented[columns]


def influence_plot(frame: Any, ax: Axes | None = None, *, label: int = 3) -> Axes:
    """Plot studentised residuals against leverage, sized by Cook's distance.

    Parameters
    ----------
    frame : DataFrame or Results
        Columns ``.hat``, ``.std_resid`` and ``.cooksd``, as ``augment()`` gives them.
    ax : Axes, optional
        Where to draw; a new figure by default.
    label : int, default 3
        How many of the most influential rows are labelled with their index.

    Returns
    -------
    Axes
        Areas are proportional to Cook's distance; the dashed lines are at a residual
        of 2 either way and at twice the mean leverage.
    """
    frame = frame if isinstance(frame, pd.DataFrame) else influence_frame(frame)
    _need(frame, [".hat", ".std_resid", ".cooksd"])
    ax = _axes(ax, (5.2, 3.8))
    hat, resid, cook = (
        frame[column].to_numpy(float) for column in (".hat", ".std_resid", ".cooksd")
    )
    largest = np.nanmax(cook) if np.isfinite(cook).any() else 1.0
    area = 4 + 260 * np.nan_to_num(cook) / (largest or 1.0)
    ax.axhline(0, color=_GREY, linewidth=0.8, zorder=0)
    for line in (ax.axhline(-2), ax.axhline(2), ax.axvline(2 * np.nanmean(hat))):
        line.set(color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    _scatter(ax, hat, resid, s=area, alpha=0.5)
    order = np.argsort(-np.nan_to_num(cook))[: max(label, 0)]
    for i in order:
        ax.annotate(
            str(frame.index[i]),
            (hat[i], resid[i]),
            xytext=(np.sqrt(area[i]) / 2 + 2, 3),
            textcoords="offset points",
            fontsize=8,
        )
    ax.margins(0.08)
    ax.set_xlabel("Leverage")
    ax.set_ylabel("Studentised residual")
    ax.set_title("area: Cook's distance", loc="right", fontsize=9, color=_GREY)
    return ax
