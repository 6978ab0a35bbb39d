"""Bias of the estimates and coverage of their intervals over simulated data sets.

Each study draws random effects and responses anew at known parameters. Run as a script,
with a number of replicates and one of groups, this file prints what they give.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from deepstats.errors import SingularFitWarning
from deepstats.models.glmm import MixedGLM

REPLICATES = 250
GROUPS, SIZE = 60, 8
NOMINAL = 0.95


@dataclass(frozen=True)
class Study:
    """A family, the true coefficients of ``1 + x + t``, and a standard deviation.

    x varies within groups, t between them.
    """

    family: str
    nagq: int
    beta: tuple[float, float, float]
    sd: float
    groups: int = GROUPS

    def draw(self, rng: np.random.Generator) -> pd.DataFrame:
        g = np.repeat(np.arange(self.groups), SIZE)
        x, t = np.tile(np.linspace(-1, 1, SIZE), self.groups), g % 2
        b = self.sd * rng.normal(size=self.groups)
        eta = self.beta[0] + self.beta[1] * x + self.beta[2] * t + b[g]
        if self.family == "binomial":
            y = rng.binomial(1, 1 / (1 + np.exp(-eta)))
        else:
            y = rng.poisson(np.exp(eta))
        return pd.DataFrame({"y": y, "x": x, "t": t, "g": g})

    def run(self, replicates: int, seed: int) -> Outcome:
        rng = np.random.default_rng(seed)
        estimates, errors, variances = [], [], []
        for _ in range(replicates):
            model = MixedGLM("y ~ x + t + (1 | g)", self.draw(rng), family=self.family)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SingularFitWarning)
                fit = model.fit(nagq=self.nagq)
            assert fit.converged
            estimates.append(fit.params.to_numpy())
            errors.append(fit.bse.to_numpy())
            variances.append(fit.varcorr["vcov"][0])
        return Outcome(self, np.array(estimates), np.array(errors), np.array(variances))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the replicates gave: arrays of shape (replicates, 3), and variances."""

    study: Study
    estimates: np.ndarray
    errors: np.ndarray
    variances: np.ndarray

    @property
    def bias(self) -> np.ndarray:
        return self.estimates.mean(0) - self.study.beta

    @property
    def noise(self) -> np.ndarray:
        """Monte-Carlo standard error of the bias."""
        return self.estimates.std(0, ddof=1) / np.sqrt(len(self.estimates))

    @property
    def coverage(self) -> np.ndarray:
        """Share of Wald intervals that hold the truth."""
        outside = np.abs(self.estimates - self.study.beta) > 1.959964 * self.errors
        return 1 - outside.mean(0)


STUDIES = {
    "binomial": Study("binomial", 9, (-0.5, 1.0, 0.6), 1.0),
    "poisson": Study("poisson", 1, (0.3, 0.4, -0.3), 0.6),
}


@pytest.fixture(scope="module", params=STUDIES)
def outcome(request) -> Outcome:
    return STUDIES[request.param].run(REPLICATES, seed=20240611)


def test_fixed_effects_are_unbiased(outcome):
    """To what the replicates can tell, and to the small-sample bias of all ML."""
    allowed = 3.5 * outcome.noise + 0.01 * np.abs(outcome.study.beta)
    assert (np.abs(outcome.bias) <= allowed).all()


def test_intervals_cover(outcome):
    noise = np.sqrt(NOMINAL * (1 - NOMINAL) / REPLICATES)
    assert (np.abs(outcome.coverage - NOMINAL) <= 3 * noise).all()


def test_standard_errors_are_those_of_the_estimates(outcome):
    """Relative error of a standard deviation of R replicates: 1 / sqrt(2 R)."""
    spread = outcome.estimates.std(0, ddof=1)
    ratio = np.sqrt(np.square(outcome.errors).mean(0)) / spread
    assert (np.abs(ratio - 1) <= 3.5 / np.sqrt(2 * REPLICATES)).all()


def test_variance(outcome):
    """Maximum likelihood divides by the number of groups: two coefficients too many."""
    wanted = outcome.study.sd**2 * (1 - 2 / GROUPS)
    noise = outcome.variances.std(ddof=1) / np.sqrt(REPLICATES)
    assert abs(outcome.variances.mean() - wanted) <= 3.5 * noise + 0.02 * wanted


def _report(replicates: int, groups: int) -> None:
    for name, given in STUDIES.items():
        study = replace(given, groups=groups)
        found = study.run(replicates, seed=1)
        print(f"{name}, {replicates} replicates of {groups} groups, nagq={study.nagq}")
        rows = zip(
            ("Intercept", "x", "t"), study.beta, found.bias, found.noise,
            found.coverage, strict=True,
        )  # fmt: skip
        for label, true, bias, noise, coverage in rows:
            print(
                f"  {label:9} {true:5.2f}  bias {bias:+.4f} +- {noise:.4f}  "
                f"coverage {coverage:.3f}"
            )
        print(f"  variance  {study.sd**2:5.2f}  mean {found.variances.mean():.4f}")


if __name__ == "__main__":
    _report(int(sys.argv[1]), int(sys.argv[2]))
