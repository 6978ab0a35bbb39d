"""Small data sets whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

import deepstats as ds
from deepstats.models.dgmm import dgmm, net


def subjects(n: int, occasions: int, seed: int) -> pd.DataFrame:
    """Rows of subjects at common times, with their covariates."""
    rng = np.random.default_rng(seed)
    i = np.repeat(np.arange(n), occasions)
    t = np.tile(np.linspace(0.0, 10.0, occasions), n)
    sex, age = rng.integers(0, 2, n).astype(float), 60 + 10 * rng.normal(size=n)
    return pd.DataFrame({"id": i, "t": t, "sex": sex[i], "age": age[i]})


def linear(n: int = 60, occasions: int = 5, seed: int = 0) -> pd.DataFrame:
    """A linear mixed model with random intercepts and slopes."""
    data, rng = subjects(n, occasions, seed), np.random.default_rng(seed + 1)
    b = rng.normal(size=(n, 2))[data["id"]]
    mean = 2 + 0.3 * data["t"] * data["sex"] + 0.02 * data["age"]
    mean += b[:, 0] + (0.2 * b[:, 1] - 0.05 * b[:, 0]) * data["t"]
    return data.assign(y=mean + 0.5 * rng.normal(size=len(data)))


def growth(n: int, occasions: int = 8, seed: int = 0) -> pd.DataFrame:
    """Logistic growth by subject and a wave in age: no mixed model is right."""
    data, rng = subjects(n, occasions, seed), np.random.default_rng(seed + 1)
    b = rng.normal(size=(n, 4))[data["id"]].T
    rise = (data["t"] - 5 - 1.5 * b[1] + 0.8 * data["sex"]) / np.exp(0.35 * b[2] - 0.2)
    mean = 1 + 0.7 * b[3] + 0.5 * data["sex"]
    mean += 0.8 * np.sin(0.15 * (data["age"] - 60)) + (3 + 0.8 * b[0]) / (
        1 + np.exp(-rise)
    )
    return data.assign(y=mean + 0.5 * rng.normal(size=len(data)))


def two_outcomes(n: int = 150, occasions: int = 5, seed: int = 0) -> pd.DataFrame:
    """A normal outcome, and a binary one that shares its latent effect."""
    data, rng = subjects(n, occasions, seed), np.random.default_rng(seed + 1)
    b = rng.normal(size=n)[data["id"]]
    eta = 1.8 * b + 0.1 * data["t"] - 0.5
    return data.assign(
        y=1 + 1.2 * b + 0.1 * data["t"] + 0.5 * rng.normal(size=len(data)),
        z=(rng.uniform(size=len(data)) < 1 / (1 + np.exp(-eta))).astype(float),
    )


def small_model(data: pd.DataFrame, **options):
    """All three networks, small, on top of the model `linear` comes from."""
    nets = {
        "deep_fixed": net("sex + age + poly(t, 3)", (8,)),
        "deep_random": net("poly(t, 2)", (8,)),
        "deep_prior": net("sex + age", (4,)),
    } | options
    return dgmm("y ~ t * sex + age", data, group="id", time="t", random="1 + t", **nets)


def mixed_model(data: pd.DataFrame):
    """The linear mixed model under `small_model`, by maximum likelihood."""
    return ds.lmer("y ~ t * sex + age + (1 + t | id)", data).fit(reml=False)
