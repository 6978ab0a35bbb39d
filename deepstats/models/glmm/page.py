"""The printed page of a generalised linear mixed model, in the order of glmmTMB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...results import counted, whole
from ...summary import Notes, Pairs, Summary, Table, coefficient_table
from ..mixed.page import _extent, _random_table

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = ["family_text", "glmm_summary"]

_NAMES = {
    "negativebinomial": "negative binomial", "zeroinflatedpoisson": "zero-inflated "
    "Poisson", "zeroinflatednegativebinomial": "zero-inflated NB", "hurdlepoisson":
    "hurdle Poisson", "hurdlenegativebinomial": "hurdle NB", "betabinomial":
    "beta-binomial", "gaussianml": "gaussian", "gammaml": "gamma", "studentt":
    "Student t", "zerotruncatedpoisson": "truncated Poisson",
    "zerotruncatednegativebinomial": "truncated NB",
    "inversegaussianml": "inverse gaussian", "tweedieml": "tweedie",
}  # fmt: skip
#: Captions of the coefficients of a further linear predictor.
_CAPTIONS = {
    "inflate": "Zero-inflation part: probability of an excess zero ({link})",
    "zero": "Hurdle part: probability of a positive count ({link})",
    "tau": "Zero-inflation part: log odds of an excess zero are -tau log mu ({link})",
}


def glmm_summary(results: MixedGLMResults, alpha: float = 0.05) -> Summary:
    """Lay out a fit: criteria, random effects, and every part's coefficients.

    Parameters
    ----------
    results : MixedGLMResults
    alpha : float, default 0.05
        Of the confidence limits.

    Returns
    -------
    Summary
    """
    blocks: list[Any] = [
        Pairs(tuple(_header(results)), columns=2),
        _random_table(results, residual=False),
        _coefficient_table(results, alpha),
    ]
    if notes := results._notes():
        blocks.append(Notes(tuple(notes)))
    return Summary(results.model_name, results.formula_text, tuple(blocks))


def family_text(results: MixedGLMResults) -> str:
    """Family, its kind of variance and its link: ``"negative binomial 2 (log)"``.

    Parameters
    ----------
    results : MixedGLMResults
    """
    family = results.model.family
    name = _NAMES.get(family.name, family.name)
    if (kind := getattr(family, "loglike", None)) is not None:
        name = f"{name}{'' if name.endswith('NB') else ' '}{kind.removeprefix('nb')}"
    return f"{name} ({family.links[0].name})"


def _header(results: MixedGLMResults) -> list[tuple[str, Any]]:
    """Tell what was fitted on the left, and how well on the right."""
    design = results.model.design
    left: list[tuple[str, Any]] = [
        ("Family", family_text(results)),
        ("Method", _method(results)),
        ("SE", results.cov_description),
        ("Observations", str(whole(results.nobs))),
    ]
    left += [(f"Groups: {name}", str(m)) for name, m in results.ngroups.items()]
    if design.weights is not None:
        left.append(("Prior weights", _extent(design.weights)))
    if design.size is not None:
        left.append(("Trials", _extent(design.size)))
    if design.offset is not None:
        left.append(("Offset", _extent(design.offset)))
    steps = counted(results.fit_info.iterations, "step")
    right: list[tuple[str, Any]] = [
        ("AIC", results.aic), ("BIC", results.bic), ("Log-likelihood", results.llf),
        ("-2 log-likelihood", -2 * results.llf),
        ("Df residuals", str(whole(results.df_resid))),
        ("Converged", f"{'yes' if results.converged else 'NO'}, {steps}"),
        ("Singular", "YES" if results.singular else "no"),
    ]  # fmt: skip
    short = len(right) - len(left)
    return [*left, *[("", None)] * short, *right, *[("", None)] * -short]


def _method(results: MixedGLMResults) -> str:
    points = results.nagq
    if results.reml:
        return "REML, Laplace"
    if points > 1:
        return f"ML, adaptive quadrature, {points} points"
    return "ML, Laplace (expected)" if results.model.expected else "ML, Laplace"


def _coefficient_table(results: MixedGLMResults, alpha: float) -> Table:
    """Coefficients of every linear predictor, each under its heading."""
    blocks = results.model.parameters.blocks
    captions = [_caption(results, j, b) for j, b in enumerate(blocks)]
    labels = [n.removeprefix(f"{b.name}:") for b in blocks for n in b.labels]
    parts = [c for c, b in zip(captions, blocks, strict=True) for _ in b.labels]
    # That a dispersion is zero is no hypothesis for a z test.
    tested = np.array([
        np.nan if b.positive or b.interval else 1.0 for b in blocks for _ in b.labels
    ])  # fmt: skip
    columns = [
        pd.Series(values.to_numpy() * times, labels)
        for values, times in (
            (results.params, 1.0), (results.bse, 1.0), (results.tvalues, tested),
            (results.pvalues, tested),
        )
    ]  # fmt: skip
    return coefficient_table(
        *columns, results.conf_int(alpha).to_numpy(), False, conf_level=1 - alpha,
        component=parts, caption=None if len(set(parts)) > 1 else "Fixed effects",
    )  # fmt: skip


def _caption(results: MixedGLMResults, number: int, block: Any) -> str:
    link = results.model.family.links[number].name
    if block.component == "Thresholds":
        return "Thresholds"
    if number == 0:
        return f"Conditional model ({link})"
    if block.name in _CAPTIONS:
        return _CAPTIONS[block.name].format(link=link)
    single = block.positive or block.interval is not None
    return "Dispersion" if single else f"Dispersion part: {block.name} ({link})"
