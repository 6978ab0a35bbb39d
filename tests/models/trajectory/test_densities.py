"""Kernels: densities, their derivatives, curvatures, limits, means and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deepstats.errors import DesignError, ModelError
from deepstats.families import CensoredNormal, get_family
from deepstats.models.trajectory.densities import (
    FeatureKernel,
    Observed,
    TableKernel,
    kernel_of,
)

S, K, CELLS = 2, 3, 40

# Name, options of the family, whether the kernel's derivatives are written out.
WRITTEN = [
    ("gaussian", {}),
    ("gaussianml", {}),
    ("poisson", {}),
    ("binomial", {}),
    ("binomial-sizes", {}),
    ("zip", {}),
    ("ziptau", {}),
    ("gamma", {"link": "log"}),
    ("gammaml", {}),
    ("beta", {}),
    ("multinomial", {"levels": 4}),
    ("ordinal", {"levels": 4}),
    ("ordinal", {"levels": 2}),
    ("ordinal", {"levels": 5, "link": "probit"}),
    ("ordinal", {"levels": 3, "link": "cloglog"}),
    ("ordinal", {"levels": 3, "link": "loglog"}),
    ("ordinal", {"levels": 3, "link": "cauchit"}),
    ("cnorm", {}),
    ("cnorm-limits", {}),
    ("cnorm", {"lower": -1.0, "upper": 1.5}),
    ("nb2", {}),
    ("nb2-one", {}),
    ("zinb-one", {}),
]
AUTOMATIC = [
    ("gaussian", {"link": "log"}),
    ("poisson", {"link": "sqrt"}),
    ("poisson", {"link": "identity"}),
    ("binomial", {"link": "probit"}),
    ("binomial", {"link": "cloglog"}),
    ("binomial", {"link": "cauchit"}),
    ("binomial-sizes", {"link": "loglog"}),
    ("zip", {"inflate_link": "probit"}),
    ("ziptau", {"tau_link": "sqrt"}),
    ("gamma", {}),
    ("inversegaussian", {"link": "log"}),
    ("tweedie", {"power": 1.4}),
    ("beta", {"link": "probit"}),
    ("betabinomial-sizes", {}),
    ("studentt", {}),
    ("nb1", {}),
    ("zinb", {}),
    ("negativebinomial", {"alpha": 0.7}),
    ("zinb1", {}),
    ("hurdlepoisson", {}),
    ("hurdlenb", {}),
    ("ztp", {}),
    ("ztnb", {}),
    ("cnorm-limits", {"link": "log"}),
]
ALL = WRITTEN + AUTOMATIC
# Links whose linear predictors must be positive.
POSITIVE = {"sqrt", "inverse"}


def label(case):
    name, options = case
    return "-".join([name, *(f"{k}={v}" for k, v in options.items())])


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def kernel_for(case):
    name, options = case
    name, _, kind = name.partition("-")
    kernel = kernel_of(get_family(name, **options), limits=kind == "limits")
    kernel.one = kind == "one"  # whether the last predictor is one number
    return kernel


def etas_for(kernel, shape=(S, K, CELLS)):
    """Predictors in the range of their links; the first may be on a positive one."""
    etas = [0.7 * normal(*shape, seed=20 + j) for j in range(len(kernel.predictors))]
    links = kernel.links
    if kernel.one:
        etas[-1] = etas[-1][..., :1]
    if kernel.family.name in ("poisson", "negativebinomial") and links[0] == "identity":
        etas[0] = etas[0].exp()
    return tuple(
        eta.exp() + 0.1 if link in POSITIVE else eta
        for eta, link in zip(etas, links, strict=True)
    )


def data_for(case, kernel, cells=CELLS, etas=None):
    """Responses drawn from the kernel, and what belongs to them."""
    kind = case[0].partition("-")[2]
    size = lower = upper = None
    if kind == "sizes":
        size = torch.randint(1, 9, (cells,), generator=generator()).double()
    if kind == "limits":
        lower = torch.where(torch.arange(cells) % 3 == 0, -math.inf, -0.4).double()
        upper = torch.where(torch.arange(cells) % 4 == 0, math.inf, 0.8).double()
    blank = Observed(torch.zeros(cells).double(), size, lower, upper)
    if etas is None:
        etas = tuple(e[0, 0] for e in etas_for(kernel, (1, 1, cells)))
    y = kernel.sample(etas, generator(3), blank)
    return Observed(y, size, lower, upper)


def log_density(kernel, etas, data):
    features = kernel.features(data.y, data.size)
    terms = kernel.terms(etas, data)
    assert len(features) == len(terms)
    total = sum(phi * g for phi, g in zip(features, terms, strict=True))
    return total + kernel.constant(data.y, data.size)


def reference(kernel, etas, data):
    """Density by the family itself."""
    family, etas = kernel.family, torch.broadcast_tensors(*etas)
    if family.name == "ordinal":
        steps = [torch.zeros_like(etas[0]), *(eta.exp() for eta in etas[1:])]
        thresholds = torch.stack(steps, -1).cumsum(-1)
        y = data.y.expand(etas[0].shape)[..., None]
        p = family.log_probabilities(etas[0][..., None], thresholds)[..., 0, :]
        return p.gather(-1, y.long())[..., 0]
    if kernel.predictors[-1] == "phi" and len(family.predictors) == 1:
        return family.log_prob(data.y, etas[0], scale=etas[1].exp())
    options = {} if data.size is None else {"size": data.size}
    if data.lower is not None:
        options |= {"lower": data.lower, "upper": data.upper}
    return family.log_prob(data.y, *etas, **options)


def weights_for(kernel, data, shape=(S, K, CELLS)):
    """One positive weight per feature, as sums over rows would be."""
    features = kernel.features(data.y, data.size)
    if kernel.needs_y:
        return (normal(*shape, seed=50).exp(),)
    own = normal(5, *shape, seed=51).exp()
    rows = torch.arange(shape[-1])
    picked = [features[:, (rows + r) % features.shape[1]] for r in range(5)]
    return tuple(
        sum(own[r] * picked[r][m] for r in range(5)) for m in range(len(features))
    )


def total(kernel, etas, weights, data):
    terms = kernel.terms(etas, data)
    return sum(w * g for w, g in zip(weights, terms, strict=True))


STENCIL = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}  # sixth order


def differences(function, etas, j, step=2e-3):
    """Derivative of a tensor-valued function in predictor j, cell by cell."""

    def at(move):
        return function(tuple(e + move * (i == j) for i, e in enumerate(etas)))

    moves = [(c, m * step) for m, c in STENCIL.items()]
    return sum(c * (at(move) - at(-move)) for c, move in moves) / step


def assert_close(got, want, rtol=1e-8):
    scale = 1 + want.abs()
    assert float(((got - want).abs() / scale).max()) < rtol


# ---------------------------------------------------------------------- density


@pytest.mark.parametrize("case", ALL, ids=label)
def test_terms_and_constant_are_the_density_of_the_family(case):
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    got = log_density(kernel, etas, data)
    assert got.shape == (S, K, CELLS) and got.dtype == torch.float64
    assert_close(got, reference(kernel, etas, data), 1e-12)
    assert kernel.needs_y == isinstance(kernel, TableKernel)
    assert len(kernel.links) == len(kernel.predictors) == len(etas)


@pytest.mark.parametrize("case", WRITTEN, ids=label)
def test_one_number_serves_all_cells(case):
    """Predictors with a last dimension of one, or stride zero, give the same."""
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    weights = weights_for(kernel, data)
    short = (etas[0], *(eta[..., :1] for eta in etas[1:]))
    wide = (etas[0], *(eta.expand_as(etas[0]) for eta in short[1:]))
    filled = tuple(eta.clone(memory_format=torch.contiguous_format) for eta in wide)
    wanted = kernel.derivatives(filled, weights, data)
    for form in (short, wide):
        first, second = kernel.derivatives(form, weights, data)
        for got, want in zip(first, wanted[0], strict=True):
            assert_close(got, want, 1e-10)
        for pair, want in wanted[1].items():
            assert second[pair].shape == (S, K, CELLS)
            assert_close(second[pair], want, 1e-10)
        got = log_density(kernel, form, data)
        assert_close(got, reference(kernel, filled, data), 1e-11)
        for row in kernel.slopes(form, data):
            assert all(slope.shape == (S, K, CELLS) for slope in row)
        for answer in (
            kernel.terms(form, data),
            kernel.scoring(form, weights, data)[0],
        ):
            assert all(part.shape == (S, K, CELLS) for part in answer)


@pytest.mark.parametrize("case", ALL, ids=label)
def test_intercepts_alone(case):
    """Predictors of shape (S, K, 1), as models of intercepts alone have them."""
    kernel = kernel_for(case)
    data = data_for(case, kernel)
    short = tuple(eta[..., :1] for eta in etas_for(kernel))
    wide = tuple(eta.expand(S, K, CELLS).contiguous() for eta in short)
    weights = weights_for(kernel, data)
    for ask in (kernel.derivatives, kernel.scoring):
        (first, second), wanted = (ask(e, weights, data) for e in (short, wide))
        if ask == kernel.scoring and kernel.needs_y:
            second, wanted = {}, (wanted[0], {})  # another form may hold for one alpha
        for got, want in zip(first, wanted[0], strict=True):
            assert got.shape == (S, K, CELLS)
            assert_close(got, want, 1e-10)
        for pair, want in wanted[1].items():
            assert second[pair].shape == (S, K, CELLS)
            assert_close(second[pair], want, 1e-10)
    pairs = zip(kernel.terms(short, data), kernel.terms(wide, data), strict=True)
    for got, want in pairs:
        assert got.shape[-1] == (CELLS if kernel.needs_y else 1)
        assert_close(got.expand(S, K, CELLS), want, 1e-11)
    rows = zip(kernel.slopes(short, data), kernel.slopes(wide, data), strict=True)
    for row, wanted_row in rows:
        for got, want in zip(row, wanted_row, strict=True):
            assert_close(got.expand(S, K, CELLS), want, 1e-10)


def test_known_densities():
    """Against scipy, so that family and kernel cannot be wrong together."""
    y, mu, zeta = normal(9, seed=4), normal(9, seed=5), 0.3 * normal(9, seed=6)
    sigma = zeta.exp().numpy()
    got = log_density(kernel_of(get_family("gaussian")), (mu, zeta), Observed(y))
    want = stats.norm.logpdf(y, mu, sigma)
    assert np.allclose(got, want, rtol=1e-12)
    a, b = torch.full((9,), -0.5).double(), torch.full((9,), 0.6).double()
    kernel = kernel_of(get_family("gaussian"), limits=True)
    got = log_density(kernel, (mu, zeta), Observed(y, None, a, b))
    low = stats.norm.logcdf(a, mu, sigma)
    high = stats.norm.logsf(b, mu, sigma)
    want = np.where(y <= a, low, np.where(y >= b, high, want))
    assert np.allclose(got, want, rtol=1e-12)
    count, n = torch.arange(9).double(), torch.full((9,), 9.0).double()
    got = log_density(kernel_of(get_family("nb2")), (mu, zeta), Observed(count))
    shape = 1 / sigma
    want = stats.nbinom.logpmf(count, shape, shape / (shape + np.exp(mu.numpy())))
    assert np.allclose(got, want, rtol=1e-11)
    got = log_density(kernel_of(get_family("binomial")), (mu,), Observed(count / 9, n))
    assert np.allclose(
        got, stats.binom.logpmf(count, 9, mu.sigmoid().numpy()), rtol=1e-11
    )
    got = log_density(kernel_of(get_family("ziptau")), (mu, zeta), Observed(count))
    pi, rate = torch.sigmoid(-zeta.exp() * mu).numpy(), mu.exp().numpy()
    mass = (1 - pi) * stats.poisson.pmf(count, rate) + pi * (count == 0).numpy()
    assert np.allclose(got, np.log(mass), rtol=1e-12)


def test_centred_squares_keep_their_digits():
    y = 1e6 + normal(50, seed=7)
    etas = (torch.full((50,), 1e6).double(), torch.zeros(1).double())
    kernel = kernel_of(get_family("gaussian")).prepared(y)
    want = stats.norm.logpdf(y, 1e6, 1)
    assert np.allclose(log_density(kernel, etas, Observed(y)), want, rtol=1e-12)
    weights = tuple(kernel.features(y))
    first, second = kernel.derivatives(etas, weights)
    residual = y - 1e6
    assert torch.allclose(first[0], residual, rtol=1e-9, atol=1e-9)
    assert torch.allclose(second[1, 1], 2 * residual**2, rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("case", ALL, ids=label)
def test_slopes_match_finite_differences(case):
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    slopes = kernel.slopes(etas, data)
    for j in range(len(etas)):
        moved = differences(lambda at: torch.stack(kernel.terms(at, data)), etas, j)
        for row, want in zip(slopes, moved, strict=True):
            assert row[j].shape == (S, K, CELLS)
            assert_close(row[j], want)


@pytest.mark.parametrize("case", ALL, ids=label)
def test_derivatives_match_finite_differences(case):
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    weights = weights_for(kernel, data)
    first, second = kernel.derivatives(etas, weights, data)
    zero = torch.zeros(S, K, CELLS).double()
    for j in range(len(etas)):
        want = differences(lambda at: total(kernel, at, weights, data), etas, j)
        assert_close(first[j], want)

        def slope(at):
            return torch.stack(kernel.derivatives(at, weights, data)[0])

        for k, bend in enumerate(differences(slope, etas, j)):
            got = second.get((min(j, k), max(j, k)), zero)
            assert got.shape == (S, K, CELLS)
            assert_close(got, -bend)


@pytest.mark.parametrize("case", ALL, ids=label)
def test_weights_broadcast(case):
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    flat = tuple(w[0, 0] for w in weights_for(kernel, data))
    wide = tuple(w.expand(S, K, CELLS).clone() for w in flat)
    for ask in (kernel.derivatives, kernel.scoring):
        first, second = ask(etas, flat, data)
        want, bends = ask(etas, wide, data)
        for got, expected in zip(first, want, strict=True):
            assert torch.equal(got, expected)
        assert second.keys() == bends.keys()
        assert all(torch.equal(second[pair], bends[pair]) for pair in bends)


@pytest.mark.parametrize("case", WRITTEN, ids=label)
def test_scoring_has_the_same_slopes_and_no_negative_curvature(case):
    kernel = kernel_for(case)
    data, etas = data_for(case, kernel), etas_for(kernel)
    etas = tuple(2 * eta for eta in etas)
    weights = weights_for(kernel, data)
    first, second = kernel.scoring(etas, weights, data)
    for got, want in zip(
        first, kernel.derivatives(etas, weights, data)[0], strict=True
    ):
        assert_close(got, want, 1e-12)
    if kernel.family.name == "ordinal":
        return  # its curvature is the exact one
    matrix = torch.zeros(S, K, CELLS, len(etas), len(etas)).double()
    for (j, k), bend in second.items():
        matrix[..., j, k] = matrix[..., k, j] = bend
    values = torch.linalg.eigvalsh(matrix)
    assert float((values / (1 + values.abs().amax(-1, keepdim=True))).min()) > -1e-10


EXPECTED = ["gaussian", "poisson", "binomial", "gammaml", "beta"]


@pytest.mark.parametrize("name", EXPECTED)
def test_scoring_at_the_truth_is_the_observed_curvature_on_average(name):
    n = 200_000
    kernel = kernel_of(get_family(name))
    etas = tuple(torch.tensor([v]).double() for v in (0.4, 0.3))[
        : len(kernel.predictors)
    ]
    y = kernel.sample(tuple(e.expand(n) for e in etas), generator(8))
    weights = tuple(f.mean().reshape(1) for f in kernel.features(y))
    expected = kernel.scoring(etas, weights)[1]
    for pair, observed in kernel.derivatives(etas, weights)[1].items():
        got = expected.get(pair, torch.zeros(1).double())
        # The differences are averages of scores of unit size, or a few.
        assert float((got - observed).abs()) < 5 * 3 / math.sqrt(n)


@pytest.mark.parametrize("case", ALL, ids=label)
def test_extreme_predictors_stay_finite(case):
    kernel = kernel_for(case)
    data = data_for(case, kernel)
    weights = weights_for(kernel, data, (CELLS,))
    low = {link: 1e-3 for link in POSITIVE}
    if case[0].partition("-")[0] == "poisson" and kernel.links[0] == "identity":
        low["identity"] = 1e-3
    J = len(kernel.predictors)
    for signs in range(2**J):
        etas = tuple(
            torch.full((CELLS,), 50.0 if signs >> j & 1 else low.get(link, -50.0))
            .double()
            .contiguous()
            for j, link in enumerate(kernel.links)
        )
        assert all(torch.isfinite(g).all() for g in kernel.terms(etas, data))
        for row in kernel.slopes(etas, data):
            assert all(torch.isfinite(slope).all() for slope in row)
        for ask in (kernel.derivatives, kernel.scoring):
            first, second = ask(etas, weights, data)
            assert all(torch.isfinite(part).all() for part in first)
            assert all(torch.isfinite(part).all() for part in second.values())


# ---------------------------------------------------------- means, draws, starts


@pytest.mark.parametrize("case", ALL, ids=label)
def test_draws_have_the_mean_and_start_near_the_truth(case):
    n = 40_000
    kernel = kernel_for(case)
    if kernel.family.name == "multinomial":
        return
    small = etas_for(kernel, (1, 1, 1))
    etas = tuple(0.5 * eta.reshape(1).expand(n) for eta in small)
    if kernel.family.name == "studentt":
        etas = (*etas[:2], torch.full((n,), 1.5).double())
    data = data_for(case, kernel, n, etas)
    kernel.check(data.y, data.size, data.lower, data.upper)
    mean = kernel.mean(etas, data)
    apart = data.y - mean
    assert abs(float(apart.mean())) < 4.5 * float(apart.std()) / math.sqrt(n)
    start = kernel.start(data.y, data.size, None, data.lower, data.upper)
    assert len(start) == len(etas)
    near = [abs(a - float(e[0])) for a, e in zip(start, etas, strict=True)]
    # Overdispersion is started from the moments of positive counts as if all were seen.
    rough = kernel.predictors[1:] in (("inflate", "alpha"), ("zero", "alpha"))
    assert max(near[:2]) < 1.6 and max(near) < (3.0 if rough else 1.6)


def test_draws_of_categories_have_their_shares():
    n = 40_000
    for name in ("multinomial", "ordinal"):
        kernel = kernel_of(get_family(name, levels=4))
        etas = tuple(torch.full((n,), v).double() for v in (0.3, -0.4, 0.6))
        y = kernel.sample(etas, generator(9))
        kernel.check(y)
        p = kernel.probabilities(etas)[0]
        assert float(p.sum()) == pytest.approx(1, abs=1e-14)
        shares = torch.bincount(y.long(), minlength=4) / n
        assert float((shares - p).abs().max()) < 4 * 0.5 / math.sqrt(n)
        start = tuple(torch.tensor([v]).double() for v in kernel.start(y))
        at = kernel.probabilities(start)[0]
        assert torch.allclose(at, shares.double(), atol=1e-4)


def test_latent_and_observable_means_of_a_censored_normal():
    kernel = kernel_of(CensoredNormal(lower=0.0))
    etas = (torch.tensor([-1.0, 0.5]).double(), torch.zeros(2).double())
    mean = kernel.mean(etas)
    want = [m * stats.norm.cdf(m) + stats.norm.pdf(m) for m in (-1.0, 0.5)]
    assert np.allclose(mean, want, rtol=1e-12)
    assert torch.equal(kernel.latent_mean(etas), etas[0])


# ------------------------------------------------------------------------ choice


def test_feature_kernels_only_at_their_links():
    assert isinstance(kernel_of(get_family("poisson")), FeatureKernel)
    assert not isinstance(kernel_of(get_family("poisson", "sqrt")), FeatureKernel)
    assert not isinstance(kernel_of(get_family("gamma")), FeatureKernel)
    assert kernel_of(get_family("gamma", "log")).predictors == ("mu", "shape")
    assert kernel_of(get_family("tweedie")).predictors == ("mu", "phi")
    assert kernel_of(get_family("tweedie")).links == ("log", "log")
    kernel = kernel_of(get_family("ordinal", levels=4))
    assert kernel.predictors == ("mu", "step2", "step3")


@pytest.mark.parametrize("name", ["quasi", "quasipoisson", "quasibinomial"])
def test_quasi_families_are_refused(name):
    with pytest.raises(ModelError, match=f"{name} has no likelihood.*negativebinomial"):
        kernel_of(get_family(name))


def test_limits_are_for_normal_responses():
    assert isinstance(kernel_of(get_family("gaussian"), True).family, CensoredNormal)
    with pytest.raises(ModelError, match="poisson takes no limits.*cnorm"):
        kernel_of(get_family("poisson"), limits=True)
    one = torch.ones(2).double()
    with pytest.raises(ModelError, match="poisson takes no limits"):
        kernel_of(get_family("poisson")).check(one, lower=one)
    with pytest.raises(ModelError, match="needs the responses"):
        kernel_of(get_family("nb2")).terms((one, one))


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        ("poisson", [1.0, 0.5], "not whole"),
        ("ziptau", [1.0, -1.0], "negative"),
        ("gaussian", [1.0, math.nan], "missing"),
        ("cnorm", [1.0, math.inf], "infinite"),
        ("gammaml", [0.0], "zero or negative"),
        ("beta", [1.0], "exactly 0 or 1"),
        ("binomial", [1.5], r"outside \[0, 1\]"),
        ("inversegaussian", [-1.0], "zero or negative"),
    ],
)
def test_impossible_responses_raise(name, y, message):
    kernel = kernel_of(get_family(name))
    with pytest.raises(DesignError, match=message):
        kernel.check(torch.tensor(y).double())
