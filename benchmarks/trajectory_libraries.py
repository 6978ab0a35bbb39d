"""The programs compared: how each is called, at its best.

`table` is what a user types and is timed: a data frame and a formula in, a table of
coefficients out, with standard errors where the program has them. `read` takes the
numbers for the comparison out of what `table` returned, off the clock.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from trajectory_cases import Case


@dataclass(frozen=True)
class Estimates:
    """What programs are compared by.

    Attributes
    ----------
    loglik : float
    beta, errors : list of float
        Coefficients of the trajectories and their standard errors, group by group,
        groups ascending by the mean of their curve; empty where not compared.
    """

    loglik: float
    beta: list[float]
    errors: list[float]

    @classmethod
    def of(
        cls,
        loglik: float,
        beta: Iterable[float] = (),
        errors: Iterable[float] = (),
    ) -> Estimates:
        return cls(float(loglik), [float(b) for b in beta], [float(e) for e in errors])


class Library(ABC):
    """A way to fit trajectory models."""

    package: ClassVar[str]
    #: How it is called and what its table holds, for the report.
    call: ClassVar[str]

    def table(self, case: Case, frame: pd.DataFrame, labels: np.ndarray | None) -> Any:
        raise NotImplementedError

    def read(self, case: Case, found: Any) -> Estimates:
        raise NotImplementedError


class Deepstats(Library):
    package = "deepstats"
    call = (
        "`ds.traj(formula, frame, family=…).fit(start=labels)` or `.fit(starts=…)`, "
        "`.tidy()`: z, p from the observed information"
    )

    def __init__(self) -> None:
        import deepstats

        self.ds = deepstats

    def table(self, case: Case, frame: pd.DataFrame, labels: np.ndarray | None) -> Any:
        model = self.ds.traj(case.formula, frame, family=case.family, **case.options)
        results = (
            model.fit(starts=case.starts) if case.starts else model.fit(start=labels)
        )
        return results, results.tidy()

    def read(self, case: Case, found: Any) -> Estimates:
        results, _ = found
        other = ("sigma", "inflate", "tau", "membership")
        kept = [n for n in results.params.index if not any(o in n for o in other)]
        return Estimates.of(results.llf, results.params[kept], results.bse[kept])


class Stepmix(Library):
    """StepMix has no regression on time: a mean (or a share) for every occasion.

    Its data are wide, and widening is inside the clock, as deepstats' reading is.
    """

    package = "stepmix"
    call = (
        '`StepMix(n_components=…, n_init=…, measurement="gaussian_spherical" or '
        '"binary").fit(wide)`, `get_mm_df()`: no standard errors'
    )

    def __init__(self) -> None:
        from stepmix.stepmix import StepMix

        self.StepMix = StepMix

    def table(self, case: Case, frame: pd.DataFrame, labels: np.ndarray | None) -> Any:
        wide = frame.pivot(index="id", columns=case.time, values=case.response)
        wide.columns = [f"occasion{j}" for j in range(wide.shape[1])]
        kind = "gaussian_spherical" if case.family == "gaussian" else "binary"
        model = self.StepMix(
            n_components=case.groups,
            n_init=case.peers["stepmix"],
            measurement=kind,
            random_state=0,
            progress_bar=0,
        ).fit(wide)
        return model, model.get_mm_df(), wide

    def read(self, case: Case, found: Any) -> Estimates:
        model, _, wide = found
        return Estimates.of(model.score(wide) * len(wide))


class Flexmix(Library):
    """R's flexmix, timed by trajectory_cell.R."""

    package = "flexmix"
    call = (
        "`summary(refit(flexmix(formula, data, k = …, cluster = labels, model = "
        "FLXMRglm(family = …), control = list(tolerance = 1e-8, minprior = 0))))`, "
        "`stepFlexmix(nrep = …)` from cold: z, p from a numerical Hessian"
    )


LIBRARIES: dict[str, type[Library]] = {
    "deepstats": Deepstats,
    "R flexmix": Flexmix,
    "stepmix": Stepmix,
}
OURS = "deepstats"
