"""Predictions of a generalised linear mixed model, and simulated responses.

Predictions are conditional on the modes of the random effects that `re_form` keeps.
Those it leaves out are set to zero, a typical group, or integrated over, the mean of
all groups; both differ where the link is not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...compute import Compute, one_thread
from ...design import Design, RandomTerm
from ...errors import BoundaryWarning, ModelError, caution
from ...families import Family
from ...families.mixtures import Hurdle, TwoPart
from ...prediction import slopes
from ..mixed.bootstrap import kept_terms
from ..mixed.forecast import (
    INTERVALS,
    _Data,
    _Error,
    _refuse_new_levels,
    kept_effects,
)
from ..mixed.rows import fixed_part, random_part
from .uncertainty import LinearParts, variance_slopes

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = [
    "Linear",
    "blocks",
    "integrated",
    "marginal_moments",
    "predict",
    "predictions",
    "simulate",
    "simulated",
    "trials",
]

#: Points of Gauss-Hermite quadrature over the variance of a linear predictor; for each
#: of several.
_NODES, _NODES_EACH = 40, {2: 24, 3: 10}
#: Standard deviations from which on random effects are out of reach.
_FAR = 5.0
#: Draws of a new observation behind a prediction interval, and how many at a time.
_DRAWS, _ELEMENTS = 2000, 4_000_000

Function = Callable[..., Tensor]


@one_thread()
def predict(
    results: MixedGLMResults,
    newdata: Any = None,
    which: str = "response",
    re_form: Any = None,
    marginal: bool = False,
    allow_new_levels: bool = False,
    interval: str | None = None,
    level: float = 0.95,
    offset: Any = None,
    exposure: Any = None,
    size: Any = None,
    seed: int | None = None,
) -> pd.Series | pd.DataFrame:
    """Predict rows of data.

    Parameters
    ----------
    results : MixedGLMResults
    newdata : frame or mapping, optional
        New data; those of the fit when None. Rows with missing values get NaN.
    which : str, default "response"
        See `predictions`.
    re_form : optional
        None for all random effects, ``"none"`` (or ``"~0"``) for none, or a formula of
        those to keep, as `mixed.forecast.predict` takes it: in the predictors of the
        mean, the zero part and the dispersion alike.
    marginal : bool, default False
        Integrate over the distribution of the random effects that are left out (of
        all, when `re_form` is None) instead of setting them to zero.
    allow_new_levels : bool, default False
        Whether levels that were not in the data of the fit may occur; their effects
        are zero, or integrated over.
    interval : {"confidence", "prediction"}, optional
    level : float, default 0.95
    offset, exposure : optional
        In place of those of the fit; they go with new data.
    size : number or array_like, optional
        Trials of new rows, for prediction intervals of proportions; by default those
        of the fit, or one for new data.
    seed : int, optional
        Of the draws behind prediction intervals.

    Returns
    -------
    Series or DataFrame
        With an interval: mean (the prediction), its standard error and limits:
        mean_se, mean_ci_lower, mean_ci_upper; or obs_se, obs_ci_lower, obs_ci_upper.

    Raises
    ------
    DesignError
        For levels that were not in the data, unless they are allowed.
    ModelError
        For a prediction that the family has not, or a `re_form` not of the model.

    Notes
    -----
    Standard errors take random effects and all parameters as uncertain together, as
    TMB does; see `uncertainty`. Effects of new levels are draws and add ``z'Vz``;
    those left out and set to zero add nothing. Limits of a function of a single linear
    predictor are carried through it; others, such as a mean with excess zeros, are
    symmetric. A prediction interval has the quantiles of new responses, drawn with the
    predictors' uncertainty and with random effects for what is left out.
    """
    _check(interval, level, which, marginal)
    function = _function(results.model.family, which)
    if marginal and re_form is None:
        re_form = "none"
    linear = Linear.read(
        results, newdata, re_form, marginal or interval == "prediction",
        allow_new_levels, offset, exposure,
    )  # fmt: skip
    v = linear.drawn if marginal else None
    if v is not None:
        _refuse_average(results.model.family, linear.etas, v)
    elif which in ("response", "conditional"):
        _warn_beyond(results.model.family, linear.etas)
    value, by_eta, by_v = _with_slopes(function, linear.etas, v)
    label = linear.data.label
    if interval is None:
        return label(value, "predicted")
    if interval == "prediction":
        size = _trials_of(linear, newdata, size)
        found = _observed(results, linear, level, size, seed)
    else:
        found = _confidence(results, linear, function, value, by_eta, by_v, level)
    parts = [label(value, "mean")]
    for name, values in zip(INTERVALS[interval], found, strict=True):
        parts.append(label(torch.from_numpy(values), name))
    return pd.concat(parts, axis=1)


def _check(interval: str | None, level: float, which: str, marginal: bool) -> None:
    if interval is not None and interval not in INTERVALS:
        raise ValueError(
            f"interval must be None, 'confidence' or 'prediction', not {interval!r}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level!r}.")
    if interval == "prediction" and which != "response":
        raise ValueError(
            f"a prediction interval is of the response, not of which={which!r}; use "
            "interval='confidence'."
        )
    if marginal and which not in ("response", "conditional"):
        raise ValueError(
            "marginal=True averages a mean over the random effects: use "
            f"which='response' or 'conditional', not {which!r}."
        )


# -- links with a limited range --------------------------------------------------------


def _beyond(family: Family, etas: Sequence[Tensor]) -> Tensor:
    """Where the mean's predictor is out of the range of its link."""
    low, high = family.domains[0]
    mu = family.links[0].inverse(etas[0])
    return mu.isnan() | (mu < low) | (mu > high)


def _refuse_beyond(family: Family, etas: Sequence[Tensor], what: str) -> None:
    """Refuse draws of predictors that no mean belongs to."""
    gone = _beyond(family, etas)
    if bool(gone.any()):
        raise ModelError(
            f"{what} take the linear predictor out of the range of the "
            f"{family.links[0].name} link in {float(gone.double().mean()):.2%} of the "
            "draws, where the response has no mean; fit the model with another link, "
            "such as log."
        )


def _refuse_average(family: Family, etas: Sequence[Tensor], v: np.ndarray) -> None:
    """Refuse means over random effects that do not exist, or nearly so."""
    points, _ = nodes_and_weights()
    sd = torch.from_numpy(v[0]).sqrt()
    ends = [etas[0] + side * _FAR * sd for side in (-1.0, 1.0)]
    outer = [etas[0] + side * points.max() * sd for side in (-1.0, 1.0)]
    link = family.links[0]
    gone = [_beyond(family, [end]) for end in ends]
    gone += [link.inverse(end).isnan() for end in outer]
    count = int(torch.stack(gone).any(0).sum())
    if count and link.name != "identity":
        raise ModelError(
            f"the mean over the random effects does not exist in {count} of "
            f"{len(etas[0])} rows: they take the linear predictor out of the range of "
            f"the {link.name} link. Use marginal=False, or fit the model with another "
            "link, such as log."
        )


def _warn_beyond(family: Family, etas: Sequence[Tensor]) -> None:
    """Say which predictions are no mean of the family."""
    count = int(_beyond(family, etas).sum())
    if count:
        caution(
            f"the linear predictor of {count} of {len(etas[0])} rows is out of the "
            f"range of the {family.links[0].name} link: what is predicted there is no "
            "mean that the family has.",
            BoundaryWarning,
        )


# -- what is predicted ---------------------------------------------------------------


def predictions(family: Family) -> dict[str, Function]:
    """Functions of the linear predictors, by the name that `predict` takes.

    Parameters
    ----------
    family : Family

    Returns
    -------
    dict of str to callable
        "response", the mean; "link", the mean's linear predictor; "conditional", the
        mean of the count part: without excess zeros, or of positive counts; "zero",
        the probability of a zero from the part for zeros; "dispersion", the first
        parameter besides these, in the family's own parametrisation; and every such
        parameter by its name.
    """
    out: dict[str, Function] = {
        "response": family.mean,
        "link": lambda *etas: 1.0 * etas[0],
        "conditional": family.mean,
    }
    if isinstance(family, TwoPart):
        out["conditional"] = lambda *etas: family.count.mean(*family.split(etas)[1])
        out["zero"] = _zero(family)
    others = [
        j for j, name in enumerate(family.predictors)
        if j and name not in ("inflate", "zero", "tau")
    ]  # fmt: skip
    for j in others:
        out[family.predictors[j]] = _parameter(family, j)
    if others:
        out["dispersion"] = _parameter(family, others[0])
    return out


def _zero(family: TwoPart) -> Function:
    def zero(*etas: Tensor) -> Tensor:
        part = family.zero_part.inverse(family.split(etas)[0])
        return 1 - part if isinstance(family, Hurdle) else part

    return zero


def _parameter(family: Family, j: int) -> Function:
    return lambda *etas: family.links[j].inverse(etas[j])


def _function(family: Family, which: str) -> Function:
    functions = predictions(family)
    if which not in functions:
        raise ModelError(
            f"which={which!r} is not known for {family.name}; allowed: "
            f"{', '.join(functions)}."
        )
    return functions[which]


# -- linear predictors of rows ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear predictors of rows, at the estimates.

    Attributes
    ----------
    results : MixedGLMResults
    data : _Data
        Rows read against the model.
    keep : list of ndarray of bool
        Effects that keep their modes, by term.
    etas : tuple of Tensor, each (n,)
    """

    results: MixedGLMResults
    data: _Data
    keep: list[np.ndarray]
    etas: tuple[Tensor, ...]

    @classmethod
    def read(
        cls, results: MixedGLMResults, newdata: Any = None, re_form: Any = None,
        all_columns: bool = True, allow_new_levels: bool = False, offset: Any = None,
        exposure: Any = None,
    ) -> Linear:  # fmt: skip
        """Read data and predict them; `all_columns` for what integrates or draws."""
        keep = kept_effects(results, re_form)
        data = _Data.read(results, newdata, offset, keep, all_columns, exposure)
        if not allow_new_levels:
            _refuse_new_levels(data.random)
        return cls(results, data, keep, _etas(results, data, keep))

    @cached_property
    def X(self) -> list[np.ndarray]:
        """Columns of every linear predictor."""
        return _matrices(self.results, self.data)

    @cached_property
    def _columns(self) -> list[np.ndarray | None]:
        cpu = self.results.model.compute.on_cpu()
        return [
            None if m is None else m.to_dense(cpu).numpy() * k
            for m, k in zip(self.data.columns, self.keep, strict=True)
        ]

    @property
    def _places(self) -> list[int]:
        """Predictors with random effects."""
        return sorted({r.part for r in self.results.model.design.random})

    def _error(self, new_row: bool, keep: list[np.ndarray]) -> _Error:
        """Effects of rows: estimated, and drawn anew; without fixed effects."""
        design = self.data.design
        narrow = replace(
            self.data, design=replace(design, X=design.X.select([])),
            noise=np.zeros(design.n),
        )  # fmt: skip
        return _Error.build(self.results.mixed, narrow, keep, new_row)

    def _of(self, parts: set[int], values: list[Any], other: Any) -> list[Any]:
        """Values by term, another for those of other predictors."""
        random = self.results.model.design.random
        return [
            v if r.part in parts else other for v, r in zip(values, random, strict=True)
        ]

    @cached_property
    def _drawing(self) -> _Error:
        return self._error(True, self.keep)

    def _by_part(self, error: _Error) -> np.ndarray:
        """Variance ``z'Vz`` of the effects that are drawn, by predictor; (J, n)."""
        point, out = self.results.mixed.point, np.zeros((len(self.etas), self.n))
        for part in self._places:
            own = replace(error, drawn=self._of({part}, error.drawn, None))
            out[part] = own._others(point)
        return out

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.data.design.n

    @cached_property
    def drawn(self) -> np.ndarray:
        """Variance ``z'Vz`` of all effects that are not kept at their modes; (J, n)."""
        return self._by_part(self._drawing)

    def drawn_slopes(self) -> dict[int, np.ndarray]:
        """Differentiate `drawn` in the covariance parameters; (n, parameters)."""
        drawn = self._drawing.drawn
        return {
            part: variance_slopes(self.results, self._of({part}, drawn, None), self.n)
            for part in self._places
        }

    def _kept(self, *parts: int) -> np.ndarray:
        """Variance of the effects kept about their modes, of a sum of predictors."""
        random = self.results.model.design.random
        keep = [k & (r.part in parts) for k, r in zip(self.keep, random, strict=True)]
        error = self._error(False, keep)
        none = replace(error, drawn=[None] * len(error.drawn))
        return none.variance(self.results.mixed.point)

    def parts(self, integrated: bool) -> LinearParts:
        """Uncertainty of the predictors.

        Parameters
        ----------
        integrated : bool
            Whether effects that are not kept are no part of it: those of new levels
            else add their variance.
        """
        extra = np.zeros((self.n, len(self.etas), len(self.etas)))
        for number, p in enumerate(self._places):
            extra[:, p, p] = self._kept(p)
            for q in self._places[:number]:
                both = self._kept(p, q) - extra[:, p, p] - extra[:, q, q]
                extra[:, p, q] = extra[:, q, p] = both / 2
        if not integrated:
            new = self._by_part(self._error(False, self.keep))
            extra += np.einsum("jn,jk->njk", new, np.eye(len(new)))
        return LinearParts.build(
            self.results, self.X, self.data.random, self._columns, extra
        )


def _matrices(results: MixedGLMResults, data: _Data) -> list[np.ndarray]:
    cpu = results.model.compute.on_cpu()
    count = len(results.model.layout)
    return [m.to_dense(cpu).numpy() for m in data.design.matrices[:count]]


def _etas(
    results: MixedGLMResults, data: _Data, keep: list[np.ndarray]
) -> tuple[Tensor, ...]:
    """Linear predictors, with the modes of the effects kept."""
    model, fitted = results.model, results.mixed
    sizes = [m.k for m in model.design.matrices]
    gammas = np.split(results.found.point.gamma, np.cumsum(sizes)[:-1])
    others = [
        fixed_part(replace(data.design, X=m, parts=(), offset=None), g, model.compute)
        for m, g in zip(data.design.parts[: len(gammas) - 1], gammas[1:], strict=True)
    ]
    etas = [fixed_part(data.design, gammas[0], model.compute), *others]
    modes = [b * k for b, k in zip(fitted.term_modes, keep, strict=True)]
    _add_random(etas, data.design, data.random, modes, model.compute)
    return tuple(torch.from_numpy(eta) for eta in etas)


def _add_random(
    etas: list[np.ndarray], design: Design, random: Sequence[RandomTerm | None],
    effects: Sequence[np.ndarray | None], compute: Compute,
) -> None:  # fmt: skip
    """Add ``z'b`` of every term to the predictor it belongs to; None leaves it out."""
    for part in range(len(etas)):
        used = [
            (r, b) for r, b in zip(random, effects, strict=True)
            if r is not None and b is not None and r.part == part
        ]  # fmt: skip
        if used:
            own = replace(design, random=tuple(r for r, _ in used))
            etas[part] += random_part(own, [b for _, b in used], compute)


# -- means over random effects -------------------------------------------------------


def nodes_and_weights(count: int = _NODES) -> tuple[Tensor, Tensor]:
    """Points and weights for the expectation over a standard normal variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def integrated(function: Function, etas: tuple[Tensor, ...], v: Tensor) -> Tensor:
    """Average a function over predictors that are normal and independent.

    Parameters
    ----------
    function : callable
        Of the linear predictors; values (n, points).
    etas : tuple of Tensor, each (n,)
    v : Tensor, shape (J, n)
        Variance of each.

    Returns
    -------
    Tensor, shape (n,)
    """
    places = _spread(v)
    points, weights = nodes_and_weights(_nodes(places))
    steps = torch.cartesian_prod(*([points] * len(places))).view(-1, len(places))
    mass = torch.cartesian_prod(*([weights] * len(places))).view(-1, len(places))
    at = [e[:, None] for e in etas]
    for place, step in zip(places, steps.T, strict=True):
        # Where the variance is zero its root has no derivative; the mean has one.
        at[place] = at[place] + v[place].clamp_min(1e-12).sqrt()[:, None] * step
    value = function(*at)
    # What does not depend on a predictor that varies has a single column.
    return value.expand(*value.shape[:-1], len(steps)) @ mass.prod(1)


def _spread(v: Tensor) -> list[int]:
    """Predictors that vary; the first where none does."""
    return [j for j, part in enumerate(v) if bool((part > 0).any())] or [0]


def _nodes(places: list[int]) -> int:
    return _NODES if len(places) == 1 else _NODES_EACH[len(places)]


def blocks(v: Tensor) -> Iterator[slice]:
    """Rows that can be integrated at a time.

    Parameters
    ----------
    v : Tensor, shape (J, n)
    """
    places = _spread(v)
    step = max(1, _ELEMENTS // _nodes(places) ** len(places))
    for start in range(0, v.shape[1], step):
        yield slice(start, start + step)


def marginal_moments(
    family: Family, etas: tuple[Tensor, ...], v: Tensor, size: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of responses over normal predictors; each (n,)."""
    found = []
    for rows in blocks(v):
        options = {} if size is None else {"size": size[rows, None]}
        given = tuple(e[rows] for e in etas), v[:, rows]
        mean = integrated(family.mean, *given)
        square = integrated(lambda *e: family.mean(*e) ** 2, *given)
        within = integrated(partial(family.variance, **options), *given)
        found.append(torch.stack([mean, within + (square - mean**2).clamp_min(0.0)]))
    mean, variance = torch.cat(found, dim=1)
    return mean, variance


def _with_slopes(
    function: Function, etas: tuple[Tensor, ...], v: np.ndarray | None
) -> tuple[Tensor, list[np.ndarray], list[np.ndarray] | None]:
    """Value, its slope in each predictor and, where it is integrated, in each v."""
    if v is None:
        value, found = slopes(function, etas)
        return value, [s.numpy() for s in found], None
    count, parts = len(etas), []
    variances = torch.from_numpy(v)
    for rows in blocks(variances):
        value, found = slopes(
            lambda *given: integrated(
                function, given[:count], torch.stack(given[count:])
            ),
            (*(e[rows] for e in etas), *variances[:, rows]),
        )
        parts.append(torch.stack([value, *found]))
    value, *rest = torch.cat(parts, dim=1)
    every = [s.numpy() for s in rest]
    return value, every[:count], every[count:]


# -- intervals -------------------------------------------------------------------------


def _confidence(
    results: MixedGLMResults, linear: Linear, function: Function, value: Tensor,
    by_eta: list[np.ndarray], by_v: list[np.ndarray] | None, level: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Find the standard error and limits of a function of the predictors."""
    from scipy.special import ndtri

    q = float(ndtri(0.5 + level / 2))
    parts = linear.parts(by_v is not None)
    moved = None
    if by_v is not None:
        own = linear.drawn_slopes()
        moved = sum(by_v[part][:, None] * slope for part, slope in own.items())
    se = np.sqrt(parts.variance(by_eta, moved))
    at = value.numpy()
    used = [j for j, s in enumerate(by_eta) if (s != 0).any()]
    if by_v is not None and used == [0]:
        link = results.model.family.links[0]
        middle = link.link(value)
        half = torch.from_numpy(q * se) / link.derivative(middle).abs()
        ends = [link.inverse(middle - half), link.inverse(middle + half)]
    elif by_v is None and len(used) == 1:
        j = used[0]
        only = [np.full(len(at), float(i == j)) for i in range(len(by_eta))]
        half = torch.from_numpy(q * np.sqrt(parts.variance(only)))
        ends = [
            function(*(e + s * half if i == j else e
                       for i, e in enumerate(linear.etas)))
            for s in (-1.0, 1.0)
        ]  # fmt: skip
    else:
        return se, at - q * se, at + q * se
    low, high = (e.numpy() for e in ends)
    return se, np.minimum(low, high), np.maximum(low, high)


def _observed(
    results: MixedGLMResults, linear: Linear, level: float, size: np.ndarray | None,
    seed: int | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Spread and quantiles of new responses, by drawing them."""
    parts = linear.parts(True)
    spread = parts.spread()
    spread += np.einsum("jn,jk->njk", linear.drawn, np.eye(len(linear.drawn)))
    if not np.isfinite(spread).all():
        nothing = np.full(len(spread), np.nan)
        return nothing, nothing, nothing
    values, vectors = np.linalg.eigh(spread)
    root = torch.from_numpy(vectors * np.sqrt(values.clip(0))[:, None, :])
    generator = torch.Generator().manual_seed(_torch_seed(seed))
    n, count = len(spread), len(linear.etas)
    out, step = np.empty((3, n)), max(1, _ELEMENTS // _DRAWS)
    probabilities = [0.5 - level / 2, 0.5 + level / 2]
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        size_of = rows.stop - rows.start
        noise = torch.randn(
            size_of, count, _DRAWS, generator=generator, dtype=torch.float64
        )
        moved = root[rows] @ noise
        etas = [e[rows, None] + moved[:, j] for j, e in enumerate(linear.etas)]
        _refuse_beyond(
            results.model.family, etas, "the uncertainty and the random effects"
        )
        options = {}
        if size is not None:
            options["size"] = torch.from_numpy(size[rows, None]).expand_as(etas[0])
        y = results.model.family.sample(*etas, generator=generator, **options).numpy()
        out[0, rows] = y.std(axis=1, ddof=1)
        if _discrete(results.model.family):
            out[1:, rows] = np.quantile(y, probabilities, axis=1, method="inverted_cdf")
        else:
            out[1:, rows] = np.quantile(y, probabilities, axis=1)
    return out[0], out[1], out[2]


def _discrete(family: Family) -> bool:
    from .residuals import discrete

    return discrete(family)


def _torch_seed(seed: int | None) -> int:
    return int(np.random.default_rng(seed).integers(2**62))


# -- trials ----------------------------------------------------------------------------


def trials(results: MixedGLMResults) -> np.ndarray | None:
    """Trials of each row of the fit; None for families without.

    Raises
    ------
    ModelError
        For prior weights that are no numbers of trials: they do not say how a response
        is distributed.
    """
    design, family = results.model.design, results.model.family
    if design.weights is None:
        if family.sized and design.size is None:
            return np.ones(design.n)
        return design.size
    w = np.asarray(design.weights, dtype=np.float64)
    if family.sized and design.size is None and bool((w == np.round(w)).all()):
        return w
    raise ModelError(
        f"{family.name} responses with prior weights have no distribution to draw from "
        "or to compare with; give trials as cbind(successes, failures)."
    )


def _trials_of(linear: Linear, newdata: Any, size: Any) -> np.ndarray | None:
    """Trials of the rows predicted, where the family has them."""
    family, design = linear.results.model.family, linear.data.design
    if not family.sized:
        if size is not None:
            raise ValueError(f"{family.name} has no trials; leave size out.")
        return None
    if newdata is None:
        if size is not None:
            raise ValueError("size goes with new data.")
        return trials(linear.results)
    given = np.asarray(1.0 if size is None else size, dtype=np.float64)
    given = np.broadcast_to(given, (design.n_given,))
    if not bool(((given >= 1) & (given == np.round(given))).all()):
        raise ValueError("size must be whole numbers of trials, at least 1.")
    return given.copy() if design.rows is None else given[design.rows]


# -- simulation ------------------------------------------------------------------------


@one_thread()
def simulate(
    results: MixedGLMResults, nsim: int = 1, seed: int | None = None,
    re_form: Any = "none",
) -> pd.DataFrame:  # fmt: skip
    """Draw responses from the fitted model.

    Parameters
    ----------
    results : MixedGLMResults
    nsim : int, default 1
    seed : int, optional
    re_form : optional
        Random effects that keep their modes, as in `predict`, in whole terms; all
        others are drawn anew.

    Returns
    -------
    DataFrame, shape (n, nsim)
        Columns sim_1, sim_2, ...; proportions where the response is one.
    """
    if nsim < 1:
        raise ValueError(f"nsim must be at least 1, not {nsim!r}.")
    draws = simulated(results, nsim, np.random.default_rng(seed), re_form)
    values = np.column_stack(list(draws))
    names = [f"sim_{j + 1}" for j in range(nsim)]
    return pd.DataFrame(values, index=results.model.design.index, columns=names)


def simulated(
    results: MixedGLMResults, count: int, generator: np.random.Generator,
    re_form: Any = "none",
) -> Iterator[np.ndarray]:  # fmt: skip
    """Draw responses one after the other, each (n,). See `simulate`."""
    model, fitted = results.model, results.mixed
    design, family, size = model.design, model.family, trials(results)
    options = {} if size is None else {"size": torch.from_numpy(np.array(size, float))}
    kept = kept_terms(results, re_form)
    etas = Linear.read(results, None, re_form, False).etas
    noise = torch.Generator().manual_seed(int(generator.integers(2**62)))
    for _ in range(count):
        drawn = [
            None if k else generator.standard_normal((len(r.grouping), r.Z.k)) @ root.T
            for k, r, root in zip(kept, design.random, fitted.roots, strict=True)
        ]
        moved = [eta.numpy().copy() for eta in etas]
        _add_random(moved, design, design.random, drawn, model.compute)
        given = [torch.from_numpy(eta) for eta in moved]
        _refuse_beyond(family, given, "random effects that are drawn anew")
        yield family.sample(*given, generator=noise, **options).numpy()
