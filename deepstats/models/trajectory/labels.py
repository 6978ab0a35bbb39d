"""Names of the parameters, and how each is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...parameters import Block, Parameters
from .densities import Kernel

if TYPE_CHECKING:
    from .reading import Plan
    from .study import Effects, Outcome, Study

__all__ = ["class_names", "group_names", "parameters_of", "prefix"]


def prefix(study: Study, outcome: Outcome) -> str:
    """Return what stands before an outcome's names; nothing where it is alone."""
    alone = sum(asked.attrition is None for asked in study.plan.outcomes) == 1
    number = [o.name for o in study.outcomes].index(outcome.name)
    if alone and study.plan.outcomes[number].attrition is None:
        return ""
    return f"{outcome.name}:"


def group_names(groups: int) -> list[str]:
    """Return "g1", "g2" ..., as parameters and columns name the groups."""
    return [f"g{k}" for k in range(1, groups + 1)]


def class_names(plan: Plan) -> list[str]:
    """Name the classes of the mixture.

    The groups; where every outcome has groups of its own, their combinations, "g2g1"
    being group 2 of the first outcome with group 1 of the second.
    """
    if plan.grouping is None:
        return group_names(plan.groups)
    return ["".join(f"g{k + 1}" for k in own) for own in plan.combinations]


def parameters_of(study: Study, kernels: tuple[Kernel, ...]) -> Parameters:
    """Name every free parameter, in the order of the flat vector.

    Labels read ``"g1:poly(t, 2)[1]"``, ``"sigma"`` where groups share it,
    ``"g2:inflate:Intercept"``, ``"g2:membership:x1"``; with several outcomes
    ``"g1:visits:Intercept"``. A scale that is one number is reported as it is, its
    standard error by the delta method; the search works on its logarithm.
    """
    blocks: list[Block] = []
    for outcome, kernel in zip(study.outcomes, kernels, strict=True):
        before = prefix(study, outcome)
        for j, pattern in enumerate(outcome.patterns):
            blocks += _of_predictor(outcome, kernel, j, pattern, before)
        if outcome.effects is not None:
            blocks += _of_effects(outcome.name, outcome.effects, before)
    for k, name in enumerate(class_names(study.plan), start=1):
        if k == study.plan.reference:
            continue
        labels = tuple(f"{name}:membership:{c}" for c in study.units.columns)
        blocks.append(Block(f"membership{k}", labels, component="Membership"))
    return Parameters(tuple(blocks))


def _of_predictor(
    outcome: Outcome, kernel: Kernel, j: int, pattern: np.ndarray, before: str
) -> list[Block]:
    name, columns = kernel.predictors[j], outcome.columns[j]
    alone = len(columns) == 1 and j > 0
    natural = alone and kernel.links[j] == "log"
    blocks = []
    for number in range(int(np.max(pattern, initial=-1)) + 1):
        groups, places = np.nonzero(pattern == number)
        column = columns[places[0]]
        owned = len(groups) == 1 and len(pattern) > 1
        part = [f"g{groups[0] + 1}"] if owned else []
        if before:
            part.append(before[:-1])
        if natural:
            part.append(name)
        elif j > 0:
            part += [name, column]
        else:
            part.append(column)
        component = f"Group {groups[0] + 1}" if owned else "All groups"
        blocks.append(
            Block(f"{before}{name}{number}", (":".join(part),), natural, component)
        )
    return blocks


def _of_effects(name: str, effects: Effects, before: str) -> list[Block]:
    """Name the entries of the factor of the random effects' covariance matrix.

    The first is the standard deviation of the first effect; the others, the rest of
    the Cholesky factor: relative to the first where covariances are proportional.
    """
    columns, scaled = effects.columns, effects.cov == "proportional"
    names = [
        f"sd({columns[0]})" if a == b == 0
        else f"{'ratio' if scaled else 'chol'}({', '.join(dict.fromkeys(pair))})"
        for a, one in enumerate(columns)
        for b, pair in enumerate((one, two) for two in columns[: a + 1])
    ]  # fmt: skip
    blocks = []
    for number in range(int(effects.pattern.max()) + 1):
        groups, places = np.nonzero(effects.pattern == number)
        owned = len(groups) == 1 and len(effects.pattern) > 1
        part = [f"g{groups[0] + 1}"] if owned else []
        part += [before[:-1]] if before else []
        label = ":".join([*part, "random", names[places[0]]])
        component = f"Group {groups[0] + 1}" if owned else "All groups"
        blocks.append(Block(f"{name}:random{number}", (label,), component=component))
    return blocks
