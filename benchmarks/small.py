"""Doctor visits, 4,406 rows of 7 columns: what a summary of a small model costs."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

FORMULA = "drvisits ~ private + medicaid + age + educ + actlim + chronic"
CALLS = 30


def deepstats(frame: pd.DataFrame) -> dict[str, Callable[[], Any]]:
    import deepstats as ds

    def poisson() -> Any:
        if hasattr(ds, "poisson"):
            return ds.poisson(FORMULA, frame)
        return ds.GLM(FORMULA, frame, family="poisson")

    ols = getattr(ds, "ols", ds.OLS)
    return {
        "OLS + HC1": lambda: ols(FORMULA, frame).fit("HC1"),
        "Poisson": lambda: poisson().fit(),
    }


def statsmodels(frame: pd.DataFrame) -> dict[str, Callable[[], Any]]:
    import statsmodels.formula.api as smf

    return {
        "OLS + HC1": lambda: smf.ols(FORMULA, frame).fit(cov_type="HC1"),
        "Poisson": lambda: smf.poisson(FORMULA, frame).fit(disp=0),
    }


def pyfixest(frame: pd.DataFrame) -> dict[str, Callable[[], Any]]:
    import pyfixest as pf

    return {
        "OLS + HC1": lambda: pf.feols(FORMULA, frame, vcov="HC1"),
        "Poisson": lambda: pf.fepois(FORMULA, frame, vcov="iid"),
    }


LIBRARIES = {"deepstats": deepstats, "statsmodels": statsmodels, "pyfixest": pyfixest}


def milliseconds(call: Callable[[], Any]) -> float:
    """Median processor time of a call, in milliseconds."""
    for _ in range(3):
        call()
    times = []
    for _ in range(CALLS):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return float(np.median(times)) / 1e6


def run(library: str) -> dict[str, Any]:
    """Time fits, and fits with their printed table."""
    from deepstats import datasets

    warnings.simplefilter("ignore")
    out = {}
    for name, fit in LIBRARIES[library](datasets.load_docvisits()).items():
        out[name] = milliseconds(fit)
        table = "tidy" if library == "pyfixest" else "summary"
        out[f"{name}, printed"] = milliseconds(
            lambda fit=fit, table=table: str(getattr(fit(), table)())
        )
    return out


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
