"""Other responses for a fitted generalised linear mixed model: drawn, fitted again.

Every fit to a new response begins at the fit at hand, its random effects included.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...compute import one_thread
from ...errors import DesignError
from ..mixed.bootstrap import (
    MixedBootstrap,
    as_series,
    collected,
    parameter_frame,
    start_of,
)
from .forecast import simulated
from .restricted import find
from .search import Found

if TYPE_CHECKING:
    from .model import MixedGLM
    from .results import MixedGLMResults

__all__ = ["again", "parametric", "refit", "replicates", "with_response"]

#: On the last step of a replicate's search, in standard errors.
_TOLERANCE = 1e-4
#: A replicate's variance, over that of the fit, from which it has no maximum.
_BEYOND = 1e5


@one_thread()
def refit(
    results: MixedGLMResults, y: Any = None, reml: bool | None = None
) -> MixedGLMResults:
    """Fit the same model to another response, or by the other criterion.

    Parameters
    ----------
    results : MixedGLMResults
    y : array_like, shape (n,), optional
        One value for each row used, or for each row of the data, as `simulate` gives
        them: proportions where the response is one. That of the fit when None.
    reml : bool, optional
        That of the fit when None.

    Returns
    -------
    MixedGLMResults

    Warns
    -----
    SingularFitWarning, SeparationWarning, BoundaryWarning, ConvergenceWarning
    """
    model = results.model
    if y is not None:
        model = with_response(model, results.read_response(y))
    reml = results.reml if reml is None else bool(reml)
    found = again(results, model, reml=reml)
    return model.reported(found)


def with_response(model: MixedGLM, y: np.ndarray) -> MixedGLM:
    """Return a model of another response with the same predictors.

    Parameters
    ----------
    model : MixedGLM
    y : ndarray, shape (n,)

    Raises
    ------
    DesignError
        For responses that the family does not have.
    """
    other = copy.copy(model)
    other.design = replace(model.design, y=y)
    other.cautions = ()
    other.check_drawn()
    return other


def again(
    results: MixedGLMResults, model: MixedGLM, *, reml: bool = False,
    tolerance: float = 1e-5,
) -> Found:  # fmt: skip
    """Search the optimum of a model from that of another with the same predictors.

    Parameters
    ----------
    results : MixedGLMResults
    model : MixedGLM
    reml : bool, default False
    tolerance : float, default 1e-5
    """
    point, laplace = results.found.point, model.laplace(results.nagq)
    laplace.begin_at(point)
    x = start_of(laplace.structure, point.x)
    return find(laplace, x, point.gamma, reml=reml, tolerance=tolerance, scored=False)


# -- the bootstrap ---------------------------------------------------------------------


def replicates(
    results: MixedGLMResults, count: int, generator: np.random.Generator,
    re_form: Any = "none",
) -> Iterator[tuple[MixedGLM, Found] | None]:  # fmt: skip
    """Fit responses drawn from a fit, one after the other.

    Parameters
    ----------
    results : MixedGLMResults
    count : int
    generator : numpy.random.Generator
    re_form : optional
        Random effects that keep their modes.

    Yields
    ------
    model : MixedGLM
        Of the response drawn.
    found : Found
        None in place of both where there is no fit: responses that are all alike or
        separated, a search that did not end.
    """
    usual = np.diag(results.joint_cov)
    for y in simulated(results, count, generator, re_form):
        try:
            model = with_response(results.model, y)
            found = again(results, model, reml=results.reml, tolerance=_TOLERANCE)
        except (DesignError, FloatingPointError, np.linalg.LinAlgError):
            yield None
            continue
        yield (model, found) if _usable(found, usual) else None


def _usable(found: Found, usual: np.ndarray) -> bool:
    """Whether a replicate has a maximum, and the search found it."""
    if not (found.converged and found.point.modes.converged):
        return False
    free = np.flatnonzero(found.free & np.isfinite(usual))
    H = found.hessian[np.ix_(free, free)]
    d = np.sqrt(np.maximum(np.diag(H), 1e-300))
    values = np.linalg.eigvalsh(H / d[:, None] / d)
    if not values[0] > 0:
        # Flat or rounded; where a covariance is singular that is no failure.
        return bool((np.diag(H) > 0).all())
    variances = 2 * np.diag(np.linalg.inv(H / d[:, None] / d)) / d**2
    return bool((variances < _BEYOND * usual[free]).all())


@one_thread()
def parametric(
    results: MixedGLMResults, replications: int = 1000, seed: int | None = None,
    statistic: Callable[[MixedGLMResults], Any] | None = None, re_form: Any = "none",
) -> MixedBootstrap:  # fmt: skip
    """Refit a model to responses drawn from its fit.

    Parameters
    ----------
    results : MixedGLMResults
    replications : int, default 1000
    seed : int, optional
        The same seed gives the same replicates.
    statistic : callable, optional
        From the `MixedGLMResults` of a replicate to a number, an array or a Series, in
        place of the parameters.
    re_form : optional
        Random effects that keep their modes, as in `predict`; by default none, so that
        all are drawn.

    Returns
    -------
    MixedBootstrap

    Warns
    -----
    ConvergenceWarning
        With the number of replicates left out: those whose fit did not converge, or
        whose likelihood has no maximum (separation).

    Notes
    -----
    Residuals are not resampled: those of discrete responses cannot be exchanged
    between rows.
    """
    if int(replications) != replications or replications < 2:
        raise ValueError(f"replications must be 2 or more, not {replications!r}.")
    estimate = (
        _parameters(results) if statistic is None else as_series(statistic(results))
    )
    values = np.full((replications, len(estimate)), np.nan)
    converged, edge = np.zeros((2, replications), dtype=bool)
    draws = replicates(results, replications, np.random.default_rng(seed), re_form)
    for number, drawn in enumerate(draws):
        if drawn is None:
            continue
        fit = drawn[0].results(drawn[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _parameters(fit) if statistic is None else statistic(fit)
        values[number] = as_series(found).to_numpy()
        converged[number], edge[number] = True, fit.singular
    frame = pd.DataFrame(values, columns=estimate.index)
    return collected(frame, estimate, converged, edge)


def _parameters(results: MixedGLMResults) -> pd.Series:
    point, parameters = results.found.point, results.model.parameters
    reported = parameters.reported(torch.from_numpy(point.gamma)).numpy()
    frame = parameter_frame(
        point.laplace.structure, point.x[None], np.ones(1), reported[None],
        results.names, True,
    )  # fmt: skip
    return frame.iloc[0].rename("estimate")
