"""Estimates of simulated data: unbiased, and their intervals hold what they should."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import deepstats as ds

from .data import simulated

TRUTH = np.array([10.0, 4.0, 1.2])
#: Replicates; bounds below are four standard errors of the averages.
R = 40


@pytest.mark.parametrize("method", ["laplace", "lindstrom-bates"])
def test_recovery(method):
    estimates, errors, sds = [], [], []
    for seed in range(R):
        data = simulated(1000 + seed, groups=20, rows=6)
        model = ds.nlmer(
            "y ~ SSlogis(x, Asym, xmid, scal)", data, random="Asym ~ 1 | g"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = model.fit(method)
        estimates.append(results.params.to_numpy())
        errors.append(results.bse.to_numpy())
        sds.append([*results.varcorr["sdcor"]])
    off = np.array(estimates) - TRUTH
    spread = off.std(0, ddof=1)
    assert (np.abs(off.mean(0)) < 4 * spread / np.sqrt(R)).all()
    np.testing.assert_allclose(np.mean(errors, 0), spread, rtol=0.35)
    covered = (np.abs(off) < 1.96 * np.array(errors)).mean()
    assert 0.95 - 4 * np.sqrt(0.05 * 0.95 / (3 * R)) < covered <= 1.0
    # Of maximum likelihood: a little low.
    np.testing.assert_allclose(np.mean(sds, 0), [1.5, 0.4], rtol=0.08)
