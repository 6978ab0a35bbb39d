"""The printed page of a nonlinear model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...results import counted, whole
from ...summary import Notes, Pairs, Summary, coefficient_table
from ..mixed.page import _correlation_tables, _extent, _random_table, _residual_table

if TYPE_CHECKING:
    from .base import CurveResults

__all__ = ["curve_summary"]


def curve_summary(results: CurveResults, alpha: float = 0.05) -> Summary:
    """Lay out a fit: criteria, residuals, random effects if there are any, estimates.

    Parameters
    ----------
    results : CurveResults
    alpha : float, default 0.05
        Of the confidence limits.

    Returns
    -------
    Summary
    """
    anything: Any = results
    blocks: list[Any] = [
        Pairs(tuple(_header(results)), columns=2), _residual_table(anything),
    ]  # fmt: skip
    if hasattr(results, "mixed"):
        blocks.append(_random_table(anything))
    blocks += [
        coefficient_table(
            results.params, results.bse, results.tvalues, results.pvalues,
            results.conf_int(alpha).to_numpy(), results.use_t, conf_level=1 - alpha,
            caption="Fixed effects" if hasattr(results, "mixed") else "Coefficients",
        ),
        *_correlation_tables(anything),
    ]  # fmt: skip
    if notes := results._notes():
        blocks.append(Notes(tuple(notes)))
    return Summary(results.model_name, results.formula_text, tuple(blocks))


def _header(results: Any) -> list[tuple[str, Any]]:
    """Tell what was fitted on the left, and how well on the right."""
    design = results.model.design
    left: list[tuple[str, Any]] = [
        ("Response", results.response_name), ("Method", results.approximation),
        ("SE", results.cov_description), ("Observations", str(whole(results.nobs))),
    ]  # fmt: skip
    groups = getattr(results, "ngroups", {})
    left += [(f"Groups: {name}", str(m)) for name, m in groups.items()]
    if design.weights is not None:
        left.append(("Prior weights", _extent(design.weights)))
    steps = counted(results.fit_info.iterations, "step")
    right: list[tuple[str, Any]] = [
        ("Log-likelihood", results.llf), ("AIC", results.aic), ("BIC", results.bic),
        ("Residual SD", results.sigma), ("Df residuals", str(whole(results.df_resid))),
        ("Converged", f"{'yes' if results.converged else 'NO'}, {steps}"),
    ]  # fmt: skip
    if groups:
        right.append(("Singular", "YES" if results.singular else "no"))
    short = len(right) - len(left)
    return [*left, *[("", None)] * short, *right, *[("", None)] * -short]
