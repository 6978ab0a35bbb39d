"""GLM families: densities, deviances, moments, draws and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deepstats import families
from deepstats.errors import DesignError
from deepstats.families import get_family, get_link


def tensor(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def value(x):
    return x.detach().numpy()


MU = tensor([1e-3, 0.02, 0.4, 1.0, 3.0, 17.0, 400.0, 1e5])


# ------------------------------------------------------------------- densities


@pytest.mark.parametrize("y", [0, 1, 3, 50, 10_000])
@pytest.mark.parametrize("link", ["log", "identity", "sqrt", "power(0.3)"])
def test_poisson_log_prob_matches_scipy(y, link):
    family = get_family("poisson", link)
    got = family.log_prob(torch.full_like(MU, y), family.link(MU))
    assert np.allclose(value(got), stats.poisson.logpmf(y, MU), rtol=1e-10, atol=0)


def test_poisson_extreme_predictors():
    eta = tensor([-700.0, -40.0, 40.0])
    got = get_family("poisson").log_prob(tensor([0.0, 2.0, 0.0]), eta)
    want = tensor([-0.0, -80 - math.exp(-40) - math.log(2), -math.exp(40)])
    assert torch.allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog", "loglog", "cauchit"])
def test_binomial_log_prob_matches_scipy(link):
    family = get_family("binomial", link)
    n, eta = tensor([1.0, 5.0, 60.0, 900.0]), tensor([-2.0, 0.3, 1.1, -0.2])
    k = tensor([1.0, 0.0, 41.0, 500.0])
    got = family.log_prob(k / n, eta, size=n)
    want = stats.binom.logpmf(k, n, family.mean(eta))
    assert np.allclose(value(got), want, rtol=1e-10)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog", "loglog"])
def test_bernoulli_keeps_its_digits_in_the_tails(link):
    eta = tensor([-30.0, -5.0, 5.0, 6.0])
    family = get_family("binomial", link)
    ones = family.log_prob(torch.ones(4), eta)
    zeros = family.log_prob(torch.zeros(4), eta)
    assert torch.equal(ones, get_link(link).log_inverse(eta))
    assert torch.equal(zeros, get_link(link).log_complement(eta))
    assert torch.isfinite(ones).all()
    assert torch.isfinite(zeros).all()


@pytest.mark.parametrize("phi", [1e-6, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("link", ["inverse", "log", "identity"])
def test_gamma_log_prob_matches_scipy(phi, link):
    family, y = get_family("gamma", link), MU * tensor([0.9, 1.1] * 4)
    got = family.log_prob(y, family.link(MU), scale=phi)
    want = stats.gamma.logpdf(y, 1 / phi, scale=MU * phi)
    # scipy cancels log-gammas of size 1/phi log(1/phi)
    assert np.allclose(value(got), want, rtol=1e-10, atol=1e-15 / phi * 50)


@pytest.mark.parametrize("phi", [1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("link", ["inverse-squared", "log"])
def test_inverse_gaussian_log_prob_matches_scipy(phi, link):
    family, y = get_family("inverse.gaussian", link), MU * tensor([0.9, 1.1] * 4)
    got = family.log_prob(y, family.link(MU), scale=phi)
    want = stats.invgauss.logpdf(y, MU * phi, scale=1 / phi)
    assert np.allclose(value(got), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("link", ["identity", "log", "inverse", "logit"])
def test_gaussian_log_prob_matches_scipy(link):
    family, mu = get_family("gaussian", link), tensor([0.1, 0.5, 0.9])
    y = tensor([-3.0, 0.5, 1000.0])
    got = family.log_prob(y, family.link(mu), scale=2.5)
    want = stats.norm.logpdf(y, mu, math.sqrt(2.5))
    assert np.allclose(value(got), want, rtol=1e-12)


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("y", [0, 1, 8, 5000])
def test_negative_binomial_fixed_matches_scipy(alpha, y):
    family = get_family("negativebinomial", alpha=alpha)
    got = family.log_prob(torch.full_like(MU, y), MU.log())
    want = stats.nbinom.logpmf(y, 1 / alpha, 1 / (1 + alpha * MU.numpy()))
    assert np.allclose(value(got), want, rtol=1e-9, atol=1e-11)


def tweedie_density(y, mu, phi, power, terms=100_000):
    """Sum over the number of jumps of Poisson times gamma densities."""
    rate = mu ** (2 - power) / (phi * (2 - power))
    if y == 0:
        return -rate
    n = np.arange(1, terms)
    shape, scale = (2 - power) / (power - 1), phi * (power - 1) * mu ** (power - 1)
    logs = stats.poisson.logpmf(n, rate) + stats.gamma.logpdf(y, n * shape, scale=scale)
    return np.logaddexp.reduce(logs)


@pytest.mark.parametrize("power", [1.05, 1.2, 1.5, 1.8, 1.95])
@pytest.mark.parametrize("phi", [0.02, 0.7, 20.0])
def test_tweedie_log_prob_matches_sum_over_jumps(power, phi):
    family = get_family("tweedie", power=power)
    y = tensor([0.0, 1e-3, 0.4, 2.0, 30.0])
    eta = tensor([0.5, -1.0, 0.2, 1.0, 3.0])
    got = family.log_prob(y, eta, scale=phi)
    pairs = zip(y.tolist(), eta.exp().tolist(), strict=True)
    want = [tweedie_density(a, b, phi, power) for a, b in pairs]
    assert np.allclose(value(got), want, rtol=1e-9, atol=1e-9)


def test_tweedie_log_prob_matches_statsmodels():
    sm = pytest.importorskip("statsmodels.genmod.families")
    y, mu = np.array([0.0, 0.3, 1.5, 4.0]), np.array([0.4, 0.5, 1.0, 3.0])
    theirs = sm.Tweedie(var_power=1.4).loglike_obs(y, mu, scale=1.3)
    ours = get_family("tweedie", power=1.4).log_prob(
        tensor(y), tensor(mu).log(), scale=1.3
    )
    assert np.allclose(value(ours), theirs, rtol=1e-10)


def test_tweedie_is_differentiable_in_the_scale():
    scale = tensor(0.8, requires_grad=True)
    y, eta = tensor([0.0, 2.0, 5.0]), tensor([0.1, 0.5, 1.0])
    family = get_family("tweedie", power=1.6)
    total = family.log_prob(y, eta, scale=scale).sum()
    (slope,) = torch.autograd.grad(total, scale)
    step = 1e-5
    up, down = (family.log_prob(y, eta, scale=0.8 + s).sum() for s in (step, -step))
    assert float(slope) == pytest.approx(float(up - down) / (2 * step), rel=1e-8)


@pytest.mark.parametrize("blocks", [1, 7])
def test_tweedie_series_in_blocks(monkeypatch, blocks):
    family, y = get_family("tweedie"), torch.linspace(0, 9, 40, dtype=torch.float64)
    whole = family.log_prob(y, torch.zeros_like(y), scale=0.5)
    module = "deepstats.families.tweedie._SERIES_ELEMENTS"
    monkeypatch.setattr(module, blocks)
    again = family.log_prob(y, torch.zeros_like(y), scale=0.5)
    assert torch.allclose(whole, again, rtol=1e-13)


# ------------------------------------------------ deviance, variance, kernels

CASES = {
    "gaussian": {},
    "binomial": {},
    "poisson": {},
    "negativebinomial": {"alpha": 0.7},
    "gamma": {},
    "inversegaussian": {},
    "tweedie": {"power": 1.3},
}
QUASI = ["constant", "mu", "mu^2", "mu^3", "mu(1-mu)"]
ALL = [get_family(name, **options) for name, options in CASES.items()]
ALL += [get_family("quasi", variance=variance) for variance in QUASI]
ALL += [get_family("quasipoisson"), get_family("quasibinomial")]


def name(family):
    return family.name + str(getattr(family, "variance_function", ""))


def points(family):
    """Responses and means that the family allows."""
    if family.domains[0] == (0.0, 1.0):
        return tensor([0.0, 1.0, 1.0, 0.0]), tensor([0.2, 0.6, 0.97, 0.01])
    return tensor([1.0, 4.0, 9.0, 2.0]), tensor([0.7, 5.0, 2.0, 2.0])


@pytest.mark.parametrize("family", ALL, ids=name)
@pytest.mark.parametrize("link", ["default", "log", "identity"])
def test_kernel_has_the_quasi_score_and_the_expected_weight(family, link):
    options = {}
    if link != "default":
        options = {"link": link, **CASES.get(family.name, {})}
        if family.name == "quasi":
            options["variance"] = family.variance_function
        family = get_family(family.name, **options)
    y, mu = points(family)
    eta = family.link(mu).requires_grad_()
    kernel = family.kernel(y, eta)
    (score,) = torch.autograd.grad(kernel.sum(), eta, create_graph=True)
    slope, variance = family.link.derivative(eta), family.unit_variance(mu)
    want = (y - mu) * slope / variance
    assert torch.allclose(score, want, rtol=1e-10, atol=1e-12)
    # The observed information by the chain rule, from V' and the second derivative.
    (curve,) = torch.autograd.grad(score.sum(), eta)
    bend = family.link.second_derivative(eta) / variance
    bend = bend - slope**2 * family.unit_variance_derivative(mu) / variance**2
    expected = family.expected_weight(eta)
    assert torch.allclose(expected, slope**2 / variance, rtol=1e-10)
    observed = expected - (y - mu) * bend
    assert torch.allclose(-curve, observed, rtol=1e-9, atol=1e-11)
    if family.canonical:
        assert torch.allclose(observed, expected, rtol=1e-9)
    else:
        assert not torch.allclose(observed, expected, rtol=1e-6)


@pytest.mark.parametrize("family", ALL, ids=name)
def test_deviance_is_twice_the_loss_against_the_saturated_kernel(family):
    y, mu = points(family)
    loss = 2 * (family.kernel(y, _safe(family, y)) - family.kernel(y, family.link(mu)))
    assert torch.allclose(family.deviance(y, mu), loss, rtol=1e-9, atol=1e-9)
    assert (family.deviance(mu, mu) >= 0).all()
    assert (family.deviance(mu, mu) < 1e-14).all()


def _safe(family, y):
    """Linear predictor of a mean equal to y, or as near as a float can be."""
    if family.domains[0] == (0.0, 1.0):
        return torch.where(y > 0.5, 40.0, -40.0).to(torch.float64)
    return family.link(y)


@pytest.mark.parametrize("name", ["poisson", "negativebinomial", "binomial"])
def test_deviance_of_families_of_scale_one_from_their_log_prob(name):
    family = get_family(name, **CASES[name])
    y, mu = points(family)
    saturated = family.log_prob(y, _safe(family, y))
    loss = 2 * (saturated - family.log_prob(y, family.link(mu)))
    assert torch.allclose(family.deviance(y, mu), loss, rtol=1e-10, atol=1e-12)


def test_deviance_and_log_prob_of_grouped_binomial():
    family, n = get_family("binomial"), tensor([4.0, 10.0])
    y, mu = tensor([0.25, 1.0]), tensor([0.4, 0.8])
    assert torch.equal(family.deviance(y, mu, n), n * family.deviance(y, mu))


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("gaussian", "Gaussian", {}),
        ("binomial", "Binomial", {}),
        ("poisson", "Poisson", {}),
        ("negativebinomial", "NegativeBinomial", {"alpha": 0.7}),
        ("gamma", "Gamma", {}),
        ("inversegaussian", "InverseGaussian", {}),
        ("tweedie", "Tweedie", {"var_power": 1.3}),
    ],
)
def test_deviance_variance_and_log_prob_match_statsmodels(ours, theirs, options):
    sm = pytest.importorskip("statsmodels.genmod.families")
    family = get_family(ours, **CASES[ours])
    peer = getattr(sm, theirs)(**options)
    y, mu = points(family)
    for row in range(len(y)):
        a, b = y[row : row + 1], mu[row : row + 1]
        assert float(family.deviance(a, b)) == pytest.approx(
            float(peer.deviance(a.numpy(), b.numpy())), rel=1e-9, abs=1e-14
        )
    assert np.allclose(family.unit_variance(mu), peer.variance(mu.numpy()))
    scale = {} if family.scale == "one" else {"scale": 0.6}
    got = family.log_prob(y, family.link(mu), **scale)
    want = peer.loglike_obs(y.numpy(), mu.numpy(), **scale)
    assert np.allclose(value(got), want, rtol=1e-9, atol=1e-12)
    assert family.link.name.startswith(
        {"Identity": "identity", "Logit": "logit", "Log": "log"}.get(
            type(peer.link).__name__, "inverse"
        )
    )


def masses(family, eta, **scale):
    """Support of a family and the probability of each point or cell of it."""
    if family.scale == "one":
        top = 2 if family.name == "binomial" else 400
        y = torch.arange(top, dtype=torch.float64)
        return y, family.log_prob(y, eta, **scale).exp()
    low = -12.0 if family.name == "gaussian" else 0.0
    edges = torch.linspace(low, 25.0, 40_001, dtype=torch.float64)
    y, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    mass = family.log_prob(y, eta, **scale).exp() * width
    if family.name == "tweedie":
        zero = torch.zeros(1, dtype=torch.float64)
        mass = torch.cat([family.log_prob(zero, eta, **scale).exp(), mass])
        y = torch.cat([zero, y])
    return y, mass


@pytest.mark.parametrize("family", ALL[:7], ids=name)
def test_densities_sum_to_one_with_the_stated_moments(family):
    eta = family.link(tensor(0.4))
    scale = {} if family.scale == "one" else {"scale": 0.3}
    y, mass = masses(family, eta, **scale)
    # The midpoint rule is exact to 1e-4 where the density has a corner at zero.
    close = 1e-4 if family.name in ("gamma", "tweedie") else 1e-8
    assert float(mass.sum()) == pytest.approx(1, abs=close)
    mean = float((mass * y).sum())
    assert mean == pytest.approx(float(family.mean(eta)), abs=close)
    variance = float((mass * (y - mean) ** 2).sum())
    want = float(family.variance(eta, **scale))
    assert variance == pytest.approx(want, abs=close)


@pytest.mark.parametrize("family", ALL[:7], ids=name)
@pytest.mark.parametrize("mu", [0.2, 0.9])
def test_draws_have_the_stated_moments(family, mu):
    n = 40_000
    eta = family.link(tensor(mu)).expand(n)
    scale = {} if family.scale == "one" else {"scale": 0.5}
    size = tensor(7.0).expand(n) if family.sized else None
    generator = torch.Generator().manual_seed(11)
    y = family.sample(eta, generator=generator, size=size, **scale)
    family.check(y, size)
    variance = family.variance(eta, size=size, **scale)[0]
    error = math.sqrt(float(variance) / n)
    assert abs(float(y.mean()) - mu) < 4 * error
    spread = (y - mu) ** 2
    error = float(spread.std()) / math.sqrt(n)
    assert abs(float(spread.mean()) - float(variance)) < 4 * error
    again = family.sample(
        eta, generator=torch.Generator().manual_seed(11), size=size, **scale
    )
    assert torch.equal(y, again)


# --------------------------------------------------------------- start, checks


@pytest.mark.parametrize("family", ALL, ids=name)
def test_start_is_inside_the_domain(family):
    y, _ = points(family)
    (eta,) = family.start(y, torch.ones(4))
    assert math.isfinite(eta)
    assert float(family.mean(tensor(eta))) == pytest.approx(float(y.mean()))
    mu = family.start_mu(y, None)
    assert torch.isfinite(family.link(mu)).all()
    weighted = family.start(y, tensor([1.0, 0, 0, 1]))
    assert weighted != (eta,)


def test_start_survives_a_constant_response():
    assert math.isfinite(get_family("poisson").start(torch.zeros(3))[0])
    assert math.isfinite(get_family("binomial").start(torch.ones(3))[0])
    assert math.isfinite(get_family("gaussian", "log").start(-torch.ones(3))[0])


@pytest.mark.parametrize(
    ("family", "y", "message"),
    [
        ("poisson", [1, -2, -3], r"2 of 3 responses are negative.*row 1 \(value -2\)"),
        ("poisson", [1, 2, 1.5], r"1 of 3 .*not whole.*row 2.*quasipoisson"),
        ("poisson", [1, math.nan], r"missing or infinite.*row 1"),
        ("negativebinomial", [-1.0], "negative"),
        ("binomial", [0, 1, 2], r"outside \[0, 1\].*row 2"),
        ("gamma", [1.0, 0.0], r"zero or negative.*row 1.*tweedie"),
        ("inversegaussian", [-1.0], "zero or negative"),
        ("gaussian", [math.inf], "missing or infinite"),
        ("tweedie", [-1.0], "negative"),
        ("quasipoisson", [-0.5], "negative"),
        ("quasibinomial", [1.5], "outside"),
    ],
)
def test_check_names_the_rows(family, y, message):
    with pytest.raises(DesignError, match=message):
        get_family(family).check(tensor(y))


def test_check_of_sizes():
    family = get_family("binomial")
    family.check(tensor([0.25, 1.0]), tensor([4.0, 3.0]))
    family.check(tensor([1.0, 1.0]))
    with pytest.raises(DesignError, match="whole number"):
        family.check(tensor([0.3, 1.0]), tensor([4.0, 3.0]))
    with pytest.raises(DesignError, match="number of trials.*row 1"):
        family.check(tensor([0.5, 1.0]), tensor([4.0, 0.0]))
    with pytest.raises(ValueError, match="no number of trials"):
        get_family("poisson").check(tensor([1.0]), tensor([1.0]))
    get_family("quasipoisson").check(tensor([0.5]))


# ------------------------------------------------------------------- get_family


def test_names_and_options():
    assert get_family("inverse_gaussian") == get_family("Inverse.Gaussian")
    assert get_family("nb1") == families.NegativeBinomial(loglike="nb1")
    assert get_family("Negative-Binomial", loglike="nb2") == get_family("nb2")
    assert get_family("zip").name == "zeroinflatedpoisson"
    assert get_family("hurdle_nb").name == "hurdlenegativebinomial"
    assert get_family("gamma", "log") == families.Gamma("log")
    assert get_family("nb2", alpha=0.5) == families.NegativeBinomialFixed(alpha=0.5)
    family = get_family("poisson")
    assert get_family(family) is family
    assert hash(family) == hash(families.Poisson())


@pytest.mark.parametrize(
    ("power", "name"),
    [(0, "gaussian"), (1, "poisson"), (2.0, "gamma"), (3, "inversegaussian")],
)
def test_tweedie_powers_with_a_name(power, name):
    assert get_family("tweedie", power=power) == get_family(name, "log")
    identity = get_family("tweedie", "identity", power=power)
    assert identity == get_family(name, "identity")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("poison",), {}, "unknown family 'poison'; allowed: gaussian, binomial"),
        ((3,), {}, "unknown family 3"),
        (("poisson", "logit"), {}, "cannot use the logit link.*allowed: identity, log"),
        (("beta", "log2"), {}, "unknown link"),
        (("poisson",), {"alpha": 1.0}, "no option alpha; allowed: none"),
        (("nb1",), {"loglike": "nb2"}, "contradicts"),
        (("negativebinomial",), {"loglike": "nbp"}, "'nb2' or 'nb1'"),
        (("nb1",), {"alpha": 1.0}, "only nb2 is a GLM"),
        (("nb2",), {"alpha": -1.0}, "alpha > 0"),
        (("tweedie",), {"power": 2.5}, "between 1 and 2"),
        (("quasi",), {"variance": "mu^4"}, "unknown variance"),
        (
            ("quasi", "probit"),
            {"variance": "mu"},
            r"quasi \(mu\) cannot use",
        ),
        (("ordinal",), {}, "levels=K"),
        (("zip",), {"inflate_link": "foo"}, "unknown link"),
        ((families.Poisson(), "log"), {}, "as an instance"),
    ],
)
def test_get_family_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        get_family(*arguments, **options)


def test_scale_and_size_are_never_ignored():
    y, eta = tensor([1.0]), tensor([0.0])
    with pytest.raises(ValueError, match="dispersion one"):
        get_family("poisson").log_prob(y, eta, scale=2.0)
    with pytest.raises(ValueError, match="no number of trials"):
        get_family("gamma").log_prob(y, eta, size=y)
    with pytest.raises(ValueError, match="needs 2 linear predictors"):
        get_family("nb2").log_prob(y, eta)
    with pytest.raises(ValueError, match="cannot be sampled"):
        get_family("quasipoisson").sample(eta)
    assert not get_family("quasi").has_likelihood


def test_out_of_range_is_nan_not_a_good_fit():
    family = get_family("poisson", "identity")
    got = family.log_prob(tensor([0.0, 3.0]), tensor([-1.0, -1.0]))
    assert torch.isnan(got).all()
    got = get_family("binomial", "log").log_prob(tensor([0.0]), tensor([0.1]))
    assert torch.isnan(got).all()
