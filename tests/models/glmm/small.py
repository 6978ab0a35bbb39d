"""Small random designs for tests of the criterion, and what it is by brute force."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deepstats.models.glmm import mixed_glm
from deepstats.models.glmm.laplace import Laplace
from deepstats.models.glmm.starts import starting

__all__ = ["DESIGNS", "Small", "dense_z"]

ROWS = 60


@dataclass(frozen=True)
class Small:
    """A model of random rows.

    Attributes
    ----------
    name, formula, family : str
    options : dict
        More arguments of `MixedGLM`.
    """

    name: str
    formula: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)

    def criterion(self, nagq: int = 1) -> tuple[Laplace, np.ndarray, np.ndarray]:
        """The criterion, and parameters that are no optimum."""
        rng = np.random.default_rng(len(self.formula))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = mixed_glm(
                self.formula, rows(rng, self.family), family=self.family, **self.options
            )
            gamma = model._fixed()
        laplace = model.laplace(nagq)
        x, _ = starting(laplace, gamma, model._variance(laplace, gamma))
        x = x + 0.1 * rng.random(laplace.structure.size)
        return laplace, x, gamma + 0.1 * rng.standard_normal(len(gamma))


def rows(rng: np.random.Generator, family: str) -> pd.DataFrame:
    """Draw a frame with crossed (g, h) and nested (a/b) factors."""
    g, h = rng.integers(0, 7, ROWS), rng.integers(0, 4, ROWS)
    a, b = rng.integers(0, 4, ROWS), rng.integers(0, 3, ROWS)
    x = rng.standard_normal(ROWS)
    eta = 0.3 + 0.4 * x + 0.6 * rng.standard_normal(7)[g]
    eta = eta + 0.4 * rng.standard_normal(4)[h]
    size = rng.integers(1, 6, ROWS)
    if family == "binomial":
        y = rng.binomial(size, 1 / (1 + np.exp(-eta)))
    elif family in ("gamma", "inversegaussian"):
        y = rng.gamma(2, np.exp(eta) / 2)
    elif family == "tweedie":
        y = rng.gamma(1, np.exp(eta)) * (rng.random(ROWS) > 0.3)
    elif family == "t":
        y = eta + rng.standard_t(3, ROWS)
    elif family == "ordinal":
        y = np.digitize(eta + rng.logistic(size=ROWS), (-0.5, 0.4, 1.5))
    elif family == "ztp":
        y = 1 + rng.poisson(np.exp(eta))
    elif family == "gaussian":
        y = eta + rng.standard_normal(ROWS)
    else:
        y = rng.negative_binomial(2, 2 / (2 + np.exp(eta)))
    return pd.DataFrame({
        "y": y, "no": size - np.minimum(y, size), "x": x, "g": g, "h": h, "a": a,
        "b": b, "w": rng.integers(1, 3, ROWS), "t": rng.uniform(0.5, 2, ROWS),
    }).astype({"g": str, "h": str, "a": str, "b": str})  # fmt: skip


_TRIALS = "cbind(y, no) ~ x"
DESIGNS = (
    Small("one factor", f"{_TRIALS} + (1 | g)", "binomial"),
    Small("crossed", f"{_TRIALS} + (1 | g) + (1 | h)", "binomial"),
    Small("probit", f"{_TRIALS} + (1 | g) + (1 | h)", "binomial", {"link": "probit"}),
    Small("probit, expected", f"{_TRIALS} + (1 | g)", "binomial",
          {"link": "probit", "information": "expected"}),
    Small("cloglog", f"{_TRIALS} + (1 + x | g)", "binomial", {"link": "cloglog"}),
    Small("nested", "y ~ x + (1 | a/b)", "poisson"),
    Small("nested and crossed", "y ~ x + (1 | a/b) + (1 | g)", "poisson"),
    Small("vectors, crossed", "y ~ x + (1 + x | g) + (1 + x | h)", "poisson"),
    Small("vectors, nested", "y ~ x + (1 + x | a/b)", "poisson"),
    Small("uncorrelated", "y ~ x + (1 + x || g) + (1 | h)", "poisson"),
    Small("three crossed", "y ~ x + (1 | g) + (1 | h) + (1 | a)", "poisson"),
    Small("weights and offset", "y ~ x + offset(t) + (1 | g) + (1 | h)", "poisson",
          {"weights": "w"}),
    Small("nb2", "y ~ x + (1 | g) + (1 | h)", "nb2"),
    Small("nb1", "y ~ x + (1 + x | g)", "nb1"),
    Small("zip", "y ~ x + (1 | g) + (1 | h)", "zip", {"zi_formula": "~ x"}),
    Small("zinb1", "y ~ x + (1 | g)", "zinb1"),
    Small("hurdle nb2", "y ~ x + (1 | g) + (1 | h)", "hurdlenb"),
    Small("gamma", "y ~ x + (1 | g) + (1 | h)", "gamma", {"link": "log"}),
    Small("gaussian, dispersion", "y ~ x + (1 + x | g)", "gaussian",
          {"disp_formula": "~ x"}),
    Small("loglog", f"{_TRIALS} + (1 | g) + (1 | h)", "binomial", {"link": "loglog"}),
    Small("poisson, sqrt", "y ~ x + (1 | g)", "poisson", {"link": "sqrt"}),
    Small("nb2, expected", "y ~ x + (1 | g) + (1 | h)", "nb2",
          {"information": "expected"}),
    Small("gamma, expected", "y ~ x + (1 | g)", "gamma",
          {"link": "log", "information": "expected"}),
    Small("inverse gaussian", "y ~ x + (1 | g) + (1 | h)", "inversegaussian",
          {"link": "log"}),
    Small("inverse gaussian, expected", "y ~ x + (1 | g)", "inversegaussian",
          {"link": "log", "information": "expected"}),
    Small("tweedie", "y ~ x + (1 | g) + (1 | h)", "tweedie"),
    Small("tweedie, expected", "y ~ x + (1 + x | g)", "tweedie",
          {"information": "expected", "disp_formula": "~ x"}),
    Small("student", "y ~ x + (1 | g) + (1 | h)", "t"),
    Small("truncated", "y ~ x + (1 | g)", "ztp"),
    Small("ordinal", "y ~ x + (1 | g)", "ordinal"),
    Small("ordinal, crossed", "y ~ x + (1 + x | g) + (1 | h)", "ordinal",
          {"link": "probit"}),
    Small("ordinal, expected", "y ~ x + (1 | g)", "ordinal",
          {"link": "cloglog", "information": "expected"}),
)  # fmt: skip


def dense_z(laplace: Laplace) -> Tensor:
    """The matrix of all random effects, (n, q); by factor, effects within levels."""
    parts = []
    for z, codes, factor in zip(
        laplace.rows.Z, laplace.rows.codes, laplace.structure.factors, strict=True
    ):
        part = torch.zeros(laplace.rows.n, factor.m, factor.k).double()
        part[torch.arange(laplace.rows.n), codes] = z.T
        parts.append(part.flatten(1))
    return torch.cat(parts, dim=1)
