"""Statistical models by formula: fitted by PyTorch, printed for a paper."""

from __future__ import annotations

from .anova import anova
from .compute import set_default_device
from .fitting import (
    fit,
    glm,
    glmer,
    lmer,
    logit,
    ols,
    poisson,
    probit,
    traj,
    traj_select,
    wls,
)
from .models.beta import betareg
from .models.categorical import mnlogit, ordinal
from .models.counts import hurdle, negativebinomial, zinb
from .models.counts import zip_ as zip
from .models.glm import GLM
from .models.linear import OLS
from .models.mixed.power import power
from .models.quantile import quantreg
from .persist import load
from .summary import compare, etable

__version__ = "0.1.0"

__all__ = [
    "GLM",
    "OLS",
    "anova",
    "betareg",
    "compare",
    "etable",
    "fit",
    "glm",
    "glmer",
    "hurdle",
    "lmer",
    "load",
    "logit",
    "mnlogit",
    "negativebinomial",
    "ols",
    "ordinal",
    "poisson",
    "power",
    "probit",
    "quantreg",
    "set_default_device",
    "traj",
    "traj_select",
    "wls",
    "zinb",
    "zip",
]
