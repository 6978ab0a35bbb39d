"""Fixed effects absorbed without dummies, against dense dummy regressions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.absorb import (
    Absorber,
    components,
    degrees_of_freedom,
    nested,
    recover,
    singletons,
)
from deepstats.errors import ConvergenceWarning, DesignError, ModelError


def dummies(codes, sizes, slopes=None):
    """Every dummy (and its product with slope variables) as a dense column."""
    blocks = []
    for f, (c, size) in enumerate(zip(codes, sizes, strict=True)):
        D = np.eye(size)[c]
        blocks.append(D)
        if slopes is not None and slopes[f] is not None:
            Z = np.asarray(slopes[f]).reshape(len(c), -1)
            blocks += [D * z[:, None] for z in Z.T]
    return np.concatenate(blocks, axis=1)


def dense_residual(D, M, weights=None):
    root = np.ones(len(M)) if weights is None else np.sqrt(weights)
    coef = np.linalg.lstsq(D * root[:, None], M * root[:, None], rcond=None)[0]
    return M - D @ coef


def random_codes(rng, n, sizes):
    return [rng.integers(0, size, n) for size in sizes]


def island_codes(rng, n, islands=3, size=4):
    """Codes of a graph of several disconnected components."""
    island = rng.integers(0, islands, n)
    return [island * size + rng.integers(0, size, n) for _ in range(2)]


def nested_codes(rng, n):
    child = rng.integers(0, 20, n)
    return [child, child // 4, rng.integers(0, 6, n)]


CASES = {
    "one": lambda rng: random_codes(rng, 80, [15]),
    "two": lambda rng: random_codes(rng, 120, [25, 9]),
    "two, larger last": lambda rng: random_codes(rng, 120, [5, 40]),
    "sparse": lambda rng: random_codes(rng, 60, [30, 28]),
    "disconnected": lambda rng: island_codes(rng, 100),
    "nested": lambda rng: nested_codes(rng, 90)[:2],
    "three": lambda rng: random_codes(rng, 200, [30, 12, 7]),
    "three, nested": lambda rng: nested_codes(rng, 120),
    "four": lambda rng: random_codes(rng, 150, [20, 15, 10, 3]),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_demean_matches_dense_dummies(case, weighted):
    rng = np.random.default_rng(sum(map(ord, case)))
    codes = CASES[case](rng)
    sizes = [c.max() + 1 for c in codes]
    M = rng.normal(size=(len(codes[0]), 3)) * [1.0, 1e3, 1e-3] + [0, 5e3, 0]
    weights = rng.uniform(0.1, 3.0, len(M)) if weighted else None
    found = Absorber(codes, sizes, weights).demean(M)
    expected = dense_residual(dummies(codes, sizes), M, weights)
    assert np.abs((found - expected) / np.abs(M).max(axis=0)).max() < 1e-9


@pytest.mark.parametrize("sizes", [[12], [12, 5], [12, 5, 4]])
def test_slopes_by_level(sizes):
    rng = np.random.default_rng(3)
    codes = random_codes(rng, 150, sizes)
    x = rng.normal(size=(150, 2)) + 10
    slopes = [None] * (len(sizes) - 1) + [x]
    M = rng.normal(size=(150, 2))
    weights = rng.uniform(0.5, 2.0, 150)
    found = Absorber(codes, sizes, weights, slopes).demean(M)
    expected = dense_residual(dummies(codes, sizes, slopes), M, weights)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_slope_constant_within_levels_is_absorbed_once():
    rng = np.random.default_rng(4)
    codes = random_codes(rng, 60, [6, 5])
    z = codes[0] * 1.5
    M = rng.normal(size=60)
    found = Absorber(codes, [6, 5], slopes=[z, None]).demean(M)
    np.testing.assert_allclose(found, Absorber(codes, [6, 5]).demean(M), atol=1e-10)


def test_vector_and_tensor_come_back_as_they_went_in():
    rng = np.random.default_rng(5)
    codes = random_codes(rng, 50, [8, 6])
    v = rng.normal(size=50)
    absorber = Absorber(codes, [8, 6])
    found = absorber.demean(v)
    assert found.shape == (50,)
    tensor = absorber.demean(torch.as_tensor(v))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), found)


@pytest.mark.parametrize("sizes", [[9], [9, 7], [9, 7, 5]])
def test_torch_products_give_the_same_digits(sizes):
    """The path of a GPU, on torch's CPU ("meta" devices hold no data)."""
    rng = np.random.default_rng(6)
    codes = random_codes(rng, 80, sizes)
    weights = rng.uniform(0.5, 2.0, 80)
    M = rng.normal(size=(80, 2))
    plain = Absorber(codes, sizes, weights)
    moved = Absorber(codes, sizes, weights)
    moved._blocks = moved._blocks.to(torch.device("cpu"))
    V, residual = moved._solve(torch.as_tensor(M))
    np.testing.assert_allclose(residual.numpy(), plain.demean(M), atol=1e-11)
    assert len(V) == sum(sizes)


def test_rows_of_weight_zero_do_not_matter():
    rng = np.random.default_rng(7)
    codes = random_codes(rng, 100, [10, 6])
    weights = rng.uniform(0.5, 2.0, 100)
    weights[:20] = 0.0
    weights[codes[0] == 3] = 0.0
    M = rng.normal(size=100)
    found = Absorber(codes, [10, 6], weights).demean(M)
    kept = weights > 0
    part = [c[kept] for c in codes]
    expected = Absorber(part, [10, 6], weights[kept]).demean(M[kept])
    np.testing.assert_allclose(found[kept], expected, atol=1e-10)
    effects = recover(codes, M, weights)
    assert np.isnan(effects[0][3])
    assert np.isfinite(np.delete(effects[0], 3)).all()


def test_warns_when_not_converged():
    n = 400  # a path: the slowest graph
    codes = [np.arange(n) // 2, (np.arange(n) + 1) // 2]
    M = np.random.default_rng(8).normal(size=n)
    sizes = [c.max() + 1 for c in codes]
    absorber = Absorber(codes, sizes, max_iterations=3)
    with pytest.warns(ConvergenceWarning, match="after 3 iterations"):
        absorber.demean(M)
    assert not absorber.converged
    fine = Absorber(codes, sizes)
    # A path is a tree: its dummies explain everything.
    np.testing.assert_allclose(fine.demean(M), 0.0, atol=1e-8)
    assert fine.converged


@pytest.mark.parametrize("years", [False, True])
def test_few_movers_between_neighbours(years):
    """A chain of firms: hundreds of Jacobi steps, few with the factorisation."""
    rng = np.random.default_rng(12)
    worker = np.repeat(np.arange(6000), 5)
    firm = worker // 10 + (rng.random(30_000) < 0.03)
    codes = [worker, firm] + ([np.tile(np.arange(5), 6000)] if years else [])
    sizes = [c.max() + 1 for c in codes]
    truth = [rng.normal(size=size) for size in sizes]
    explained = sum(t[c] for t, c in zip(truth, codes, strict=True))
    absorber = Absorber(codes, sizes)
    left = absorber.demean(np.column_stack([explained, rng.normal(size=30_000)]))
    assert 100 <= absorber.iterations < 130
    np.testing.assert_allclose(left[:, 0], 0.0, atol=1e-7)
    for c, size in zip(codes, sizes, strict=True):
        np.testing.assert_allclose(np.bincount(c, left[:, 1], size), 0.0, atol=1e-7)


def test_errors_say_what_to_do():
    codes = np.array([0, 1, 2])
    with pytest.raises(DesignError, match="drop rows with missing levels"):
        Absorber([np.array([0, -1, 1])], [2])
    with pytest.raises(DesignError, match="integers"):
        Absorber([np.array([0.0, 1.0])], [2])
    with pytest.raises(DesignError, match="n_levels"):
        Absorber([codes], [3, 2])
    with pytest.raises(DesignError, match="not negative"):
        Absorber([codes], [3], [1.0, -1.0, 1.0])
    with pytest.raises(DesignError, match="expected"):
        Absorber([codes], [3]).demean(np.ones(4))
    with pytest.raises(DesignError, match="finite"):
        Absorber([codes], [3]).demean(np.array([1.0, np.nan, 0.0]))
    with pytest.raises(DesignError, match="one entry per factor"):
        Absorber([codes], [3], slopes=[None, None])
    with pytest.raises(ModelError, match="without slopes"):
        Absorber([codes], [3], slopes=[np.ones(3)]).recover(np.ones(3))


@pytest.mark.parametrize("case", CASES)
def test_recovered_effects_reproduce_the_fit(case):
    rng = np.random.default_rng(9)
    codes = CASES[case](rng)
    target = rng.normal(size=len(codes[0])) + 3
    effects = recover(codes, target)
    fitted = sum(e[c] for e, c in zip(effects, codes, strict=True))
    sizes = [c.max() + 1 for c in codes]
    residual = Absorber(codes, sizes).demean(target)
    np.testing.assert_allclose(target - fitted, residual, atol=1e-9)
    for further, effect in zip(codes[1:], effects[1:], strict=True):
        count, _, label = components(codes[0], further)
        firsts = [np.flatnonzero(label == g)[0] for g in range(count)]
        np.testing.assert_array_equal(effect[firsts], 0.0)


def test_recover_finds_the_effects_of_an_exact_sum():
    rng = np.random.default_rng(10)
    codes = random_codes(rng, 300, [20, 8])
    truth = [rng.normal(size=20), rng.normal(size=8)]
    found = recover(codes, truth[0][codes[0]] + truth[1][codes[1]])
    np.testing.assert_allclose(found[1], truth[1] - truth[1][0], atol=1e-9)
    np.testing.assert_allclose(found[0], truth[0] + truth[1][0], atol=1e-9)


def brute_singletons(codes):
    kept = np.ones(len(codes[0]), dtype=bool)
    while True:
        before = kept.copy()
        for c in codes:
            for level in np.unique(c[kept]):
                rows = kept & (c == level)
                if rows.sum() == 1:
                    kept &= ~rows
        if (before == kept).all():
            return ~kept


@pytest.mark.parametrize("seed", range(6))
def test_singletons_match_brute_force(seed):
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, 60, [40, 30, 9][: 1 + seed % 3])
    np.testing.assert_array_equal(singletons(codes), brute_singletons(codes))


def test_a_path_unravels_to_the_end():
    n = 20_000
    codes = [np.arange(n) // 2, (np.arange(n) + 1) // 2]
    assert singletons(codes).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("factors", [1, 2])
def test_degrees_of_freedom_are_the_rank_of_the_dummies(seed, factors):
    rng = np.random.default_rng(seed)
    codes = [island_codes(rng, 60), random_codes(rng, 50, [30, 30])][seed % 2]
    codes = codes[:factors]
    D = dummies(codes, [c.max() + 1 for c in codes])
    assert degrees_of_freedom(codes) == np.linalg.matrix_rank(D)


def test_degrees_of_freedom_rules():
    rng = np.random.default_rng(11)
    firm = rng.integers(0, 30, 600)
    year = rng.integers(0, 7, 600)
    region = firm // 5
    assert nested(firm, region)
    assert not nested(year, region)
    assert degrees_of_freedom([firm, year], rule="full") == 36
    assert degrees_of_freedom([firm, year], rule="none") == 0
    # fixest: nested firms leave the year effects and the constant
    assert degrees_of_freedom([firm, year], region) == 7
    assert degrees_of_freedom([firm, year], [region, year]) == 1
    assert degrees_of_freedom([firm], firm) == 1
    assert degrees_of_freedom([firm, year, region]) == 30 + 7 + 6 - 2
    assert degrees_of_freedom([firm, region]) == 30
    assert degrees_of_freedom([firm, region], exact=False) == 35
    with pytest.raises(ModelError, match="not one of"):
        degrees_of_freedom([firm], rule="all")
