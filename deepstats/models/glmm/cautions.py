"""What a fit warns of: estimates that are infinite, on an edge, or not reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import (
    BoundaryWarning,
    ConvergenceWarning,
    SeparationWarning,
    SingularFitWarning,
)
from ..separation import separated_columns
from .search import Found

if TYPE_CHECKING:
    from .results import MixedGLMResults

__all__ = ["cautions_of"]

#: How each family's mean can run to the edge of its range; see `separated_columns`.
_SEPARABLE = {
    "binomial": "binary", "betabinomial": "binary", "poisson": "count",
    "negativebinomial": "count", "zeroinflatedpoisson": "count",
    "zeroinflatedpoissontau": "count", "zeroinflatednegativebinomial": "count",
    "ordinal": "ordinal",
}  # fmt: skip
#: A standard error this large, in units of its column, is worth a linear program ...
_WIDE = 20.0
#: ... and this large says by itself that there is no maximum.
_ENDLESS = 200.0
#: Standard deviation of random effects, on the scale of the linear predictor, from
#: which groups of responses that are all alike are looked for.
_SPREAD = 8.0
_ADVICE = {
    "inflate": "the probability of an excess zero runs to 0 or 1: leave those terms "
    "out of the zero part, or fit the family without one",
    "tau": "excess zeros run to none or to all: fit the family without a zero part",
    "alpha": "overdispersion runs to none or without end: fit the Poisson family, "
    "or leave terms out of the dispersion part",
    "nu": "the tails are those of the normal distribution: fit the gaussian family",
    "phi": "the precision runs without end: fit the family without one, or leave "
    "terms out of the dispersion part",
    "power": "the power runs to an end of its range, 1.01 or 1.99: fit the gamma "
    "family (power 2) or the inverse gaussian (3) where no response is zero, the "
    'Poisson (1) to counts, or give the power, family=get_family("tweedie", power=1.9)',
}


def cautions_of(
    results: MixedGLMResults, found: Found
) -> Iterator[tuple[str, type[Warning]]]:
    """Say what to warn of, each with its category.

    Parameters
    ----------
    results : MixedGLMResults
    found : Found
        How the search ended.

    Yields
    ------
    text : str
    category : type of Warning
    """
    separated = [*_separated(results), *_alike_within(results)]
    for text in separated:
        yield text, SeparationWarning
    endless = _endless(results, bool(separated))
    for name, labels in endless.items():
        why = _ADVICE.get(name, "leave those terms out, or fit a simpler family")
        yield (
            f"the likelihood has no maximum in {', '.join(labels)}, and what is "
            f"printed is where the search stopped; {why}.",
            BoundaryWarning,
        )
    if results.mixed.singular:
        yield (
            f"singular fit: {'; '.join(results.mixed.singular)}. The estimate is at "
            "the edge of its range, not a failure: leave the term out, simplify it "
            "(|| for |), or report it as it is.",
            SingularFitWarning,
        )
    known = bool(separated or endless)
    if not (known or (found.converged and found.point.modes.converged)):
        yield (
            f"{results.model.title} did not converge: {_ended(found)} (the last step "
            f"was {found.decrement:.2g} standard errors long). Rescale the variables, "
            "simplify the random effects, or raise maxiter=.",
            ConvergenceWarning,
        )
    elif not known and bool(np.isnan(results.bse.to_numpy()).any()):
        yield (
            "the log-likelihood is flat or rounded at the optimum: standard errors "
            "are undefined. Rescale the variables, or simplify the model.",
            ConvergenceWarning,
        )


def _ended(found: Found) -> str:
    if found.converged:
        return "the modes of the random effects were not found"
    return found.message


# -- the fixed part --------------------------------------------------------------------


def _separated(results: MixedGLMResults) -> Iterator[str]:
    """Name fixed effects whose estimates are infinite.

    Random effects change nothing here: a direction that raises the likelihood without
    end does so at whatever values they have.
    """
    model = results.model
    design, family = model.design, model.family
    widths = _widths(results)
    names = family.predictors
    kind = _SEPARABLE.get(family.name)
    if kind is not None and (widths[0] > _WIDE).any():
        at = separated_columns(design, kind, model.compute)
        if at:
            yield _infinite("the response", [design.X.names[j] for j in at])
    if "zero" in names and (widths[names.index("zero")] > _WIDE).any():
        number = names.index("zero")
        crossed = replace(
            design, X=design.matrices[number], parts=(), y=(design.y > 0) * 1.0
        )
        at = separated_columns(crossed, "binary", model.compute)
        if at:
            labels = model.parameters.blocks[number].labels
            yield _infinite("whether a count is zero", [labels[j] for j in at])


def _infinite(what: str, names: list[str]) -> str:
    several = len(names) > 1
    return (
        f"{what} is predicted perfectly in some rows: the estimate{'s' * several} of "
        f"{', '.join(names)} {'are' if several else 'is'} infinite and what is printed "
        "is where the search stopped. Leave those terms out, or merge levels."
    )


def _endless(results: MixedGLMResults, separated: bool) -> dict[str, list[str]]:
    """Name coefficients of the other predictors that run without end."""
    found = {}
    blocks = results.model.parameters.blocks
    for block, widths in zip(blocks[1:], _widths(results)[1:], strict=True):
        if separated and block.component == "Thresholds":
            continue  # They move along with what is infinite.
        labels = [n for n, w in zip(block.labels, widths, strict=True) if w > _ENDLESS]
        if labels and block.name != "zero":
            found[block.name] = labels
    return found


def _widths(results: MixedGLMResults) -> list[np.ndarray]:
    """Return standard errors by predictor, in units of their columns.

    Infinite where they are undefined.
    """
    laplace = results.found.point.laplace
    variances = np.diag(results.joint_cov)[len(results.found.point.x) :]
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(variances)
    out, place = [], 0
    for X in laplace.X:
        size = X.square().mean(0).sqrt().cpu().numpy()
        part = errors[place : place + X.shape[1]] * size
        out.append(np.where(np.isfinite(part), part, np.inf))
        place += X.shape[1]
    return out


# -- the random part -------------------------------------------------------------------


def _alike_within(results: MixedGLMResults) -> Iterator[str]:
    """Name factors within whose levels binary responses are all alike."""
    model = results.model
    if _SEPARABLE.get(model.family.name) != "binary":
        return
    design, mixed = model.design, results.mixed
    y = np.asarray(design.y, dtype=float)
    for j, (random, root) in enumerate(zip(design.random, mixed.roots, strict=True)):
        scaled = np.linalg.solve(mixed.structure.terms[j].U, root)
        codes, m = random.grouping.codes, len(random.grouping)
        if random.part or np.linalg.norm(scaled, 2) < _SPREAD:
            continue
        counts = np.bincount(codes, minlength=m)
        none = np.bincount(codes, y == 0, m) == counts
        all_ = np.bincount(codes, y == 1, m) == counts
        if (none | all_).all():
            name = random.grouping.name
            yield (
                f"within every level of {name} all responses are alike: the variance "
                f"of {random.term.text} is infinite and what is printed is where the "
                f"search stopped. {name} predicts the response perfectly; model one "
                "response a level, without the term."
            )
