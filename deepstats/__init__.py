"""Statistical models by formula: fitted by PyTorch, printed for a paper."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .anova import anova
from .compute import set_default_device
from .fitting import (
    fit,
    glm,
    glmer,
    lmer,
    logit,
    nlmer,
    nls,
    ols,
    poisson,
    probit,
    rtm,
    traj,
    traj_select,
    wls,
)
from .models.beta import betareg
from .models.categorical import mnlogit, ordinal
from .models.counts import hurdle, negativebinomial, zinb
from .models.counts import zip_ as zip
from .models.dgmm import dgmm, net
from .models.glm import GLM
from .models.hierreg import hierreg
from .models.linear import OLS
from .models.lossreg import fairness, fairness_frontier, fairness_table, lossreg
from .models.mixed.power import power
from .models.quantile import quantreg
from .models.simple import simple_weights
from .persist import load
from .summary import compare, etable

__version__ = "0.1.0"

__all__ = [
    "GLM",
    "OLS",
    "anova",
    "betareg",
    "compare",
    "dgmm",
    "etable",
    "fairness",
    "fairness_frontier",
    "fairness_table",
    "fit",
    "glm",
    "glmer",
    "hierreg",
    "hurdle",
    "lmer",
    "load",
    "logit",
    "lossreg",
    "mnlogit",
    "negativebinomial",
    "net",
    "nlmer",
    "nls",
    "ols",
    "ordinal",
    "poisson",
    "power",
    "probit",
    "quantreg",
    "rtm",
    "set_default_device",
    "simple_weights",
    "traj",
    "traj_select",
    "wls",
    "zinb",
    "zip",
]


def __getattr__(name: str) -> Any:
    """Load ``deepstats.sklearn`` when it is asked for: scikit-learn is optional."""
    if name == "sklearn":
        return import_module(".sklearn", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
