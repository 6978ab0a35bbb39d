"""Estimates over thousands of simulated data sets, drawn here and fitted together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from deepstats.models.mixed import LinearMixed
from deepstats.models.mixed.bootstrap import start_of
from deepstats.models.mixed.replicates import Refitted, refit_many
from deepstats.models.mixed.responses import RowSpace

REPLICATES = 2000
SIGMA = 1.5


@dataclass(frozen=True, eq=False)
class Study:
    """A design, and the covariances its random effects are drawn from, by term.

    Variances are large enough to be estimated at zero practically never: there REML is
    unbiased only in balanced data, and truncation would bias it anywhere.
    """

    formula: str
    data: pd.DataFrame
    covariances: tuple[np.ndarray, ...]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Responses with fixed effects ``(2, -1)``; (n, REPLICATES)."""
        design = LinearMixed(self.formula, self.data.assign(y=self.filler)).design
        out = design.X.to_dense().numpy() @ np.array([2.0, -1.0])[: design.X.k, None]
        out = out + SIGMA * rng.normal(size=(design.n, REPLICATES))
        for random, V in zip(design.random, self.covariances, strict=True):
            Z, L = random.Z.to_dense().numpy(), np.linalg.cholesky(V)
            b = rng.normal(size=(len(random.grouping), REPLICATES, len(V))) @ L.T
            out += np.einsum("nk,nrk->nr", Z, b[random.grouping.codes])
        return out

    @property
    def filler(self) -> np.ndarray:
        return np.sin(np.arange(len(self.data)))

    def fit(self, Y: np.ndarray, reml: bool) -> tuple[LinearMixed, Refitted]:
        model = LinearMixed(self.formula, self.data.assign(y=Y[:, 0]))
        structure, products = model.prepare()
        roots = [np.linalg.cholesky(V) / SIGMA for V in self.covariances]
        start = start_of(structure, structure.from_raw_roots(roots))
        responses = RowSpace(model.design, products, model.compute).meet(Y)
        return model, refit_many(products, responses, reml, None, start)

    def components(self, Y: np.ndarray, reml: bool) -> np.ndarray:
        """Variances and covariances of all terms, then that of the residuals."""
        model, found = self.fit(Y, reml)
        assert found.converged.all()
        structure, _ = model.prepare()
        rows = []
        for x, s2 in zip(found.x, found.variance, strict=True):
            V = [root @ root.T for root in structure.raw_roots(x)]
            parts = [v[np.tril_indices(len(v))] for v in V]
            rows.append(s2 * np.concatenate([*parts, [1.0]]))
        return np.array(rows)

    @property
    def truth(self) -> np.ndarray:
        parts = [V[np.tril_indices(len(V))] for V in self.covariances]
        return np.concatenate([*parts, [SIGMA**2]])


def one_way(groups: int, size: int, variance: float) -> Study:
    data = pd.DataFrame({"g": np.repeat(np.arange(groups), size)})
    return Study("y ~ 1 + (1 | g)", data, (np.array([[variance]]),))


def slopes() -> Study:
    days = np.tile(np.arange(8.0), 18)
    data = pd.DataFrame({"day": days, "g": np.repeat(np.arange(18), 8)})
    V = np.array([[9.0, 1.0], [1.0, 2.0]])
    return Study("y ~ day + (day | g)", data, (V,))


def crossed() -> Study:
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(12), np.arange(8)))
    data = pd.DataFrame({"a": a, "b": b})
    return Study(
        "y ~ 1 + (1 | a) + (1 | b)", data, (np.array([[4.0]]), np.array([[6.0]]))
    )


def nested() -> Study:
    data = pd.DataFrame({"a": np.repeat(np.arange(12), 12)})
    data["b"] = np.tile(np.repeat(np.arange(4), 3), 12)
    return Study(
        "y ~ 1 + (1 | a) + (1 | a:b)", data, (np.array([[9.0]]), np.array([[5.0]]))
    )


def unbalanced() -> Study:
    sizes = np.tile([2, 3, 5, 9, 14], 5)
    g = np.repeat(np.arange(25), sizes)
    data = pd.DataFrame({"g": g, "x": np.cos(np.arange(len(g)) ** 1.3)})
    return Study("y ~ x + (1 | g)", data, (np.array([[6.0]]),))


STUDIES = {
    "one-way": one_way(15, 6, 4.0),
    "slopes": slopes(),
    "crossed": crossed(),
    "nested": nested(),
    "unbalanced": unbalanced(),
}


def assert_mean(values: np.ndarray, wanted: np.ndarray) -> None:
    """Compare with the mean of replicates: within 4 of its standard errors."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - wanted) <= 4 * error).all()


@pytest.mark.parametrize("name", STUDIES)
def test_reml_is_unbiased(name):
    study = STUDIES[name]
    Y = study.draw(np.random.default_rng(list(STUDIES).index(name)))
    assert_mean(study.components(Y, reml=True), study.truth)


def test_maximum_likelihood_has_the_bias_it_must_have():
    """Balanced one-way: the mean square between groups is divided by m, not m - 1."""
    groups, size, variance = 8, 5, 4.0
    study = one_way(groups, size, variance)
    found = study.components(study.draw(np.random.default_rng(9)), reml=False)
    between = variance + SIGMA**2 / size
    wanted = (groups - 1) / groups * between - SIGMA**2 / size
    assert_mean(found, np.array([wanted, SIGMA**2]))
    bias = (found[:, 0].mean() - variance) / found[:, 0].std() * np.sqrt(REPLICATES)
    assert bias < -5


def test_fixed_effects_and_their_standard_errors():
    """Unbiased, and as variable as their model-based covariance says."""
    study = STUDIES["unbalanced"]
    _, found = study.fit(study.draw(np.random.default_rng(10)), reml=True)
    assert_mean(found.beta, np.array([2.0, -1.0]))
    claimed = found.cov_beta[:, [0, 1], [0, 1]].mean(axis=0)
    np.testing.assert_allclose(found.beta.var(axis=0, ddof=1), claimed, rtol=0.13)


def test_one_fit_is_that_of_the_model():
    """The fits made together are those made alone."""
    study = STUDIES["slopes"]
    Y = study.draw(np.random.default_rng(11))
    _, found = study.fit(Y[:, :5], reml=True)
    for number in range(5):
        data = study.data.assign(y=Y[:, number])
        alone = LinearMixed(study.formula, data).fit()
        assert found.value[number] == pytest.approx(-2 * alone.llf, abs=1e-7)
        np.testing.assert_allclose(found.beta[number], alone.params, rtol=1e-6)
