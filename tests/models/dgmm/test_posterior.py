"""Derivatives by finite differences; bounds and sampling against exact integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats.models.dgmm import dgmm
from deepstats.models.dgmm.posterior import antithetic, bound, marginal, modes

from .worlds import linear, small_model, two_outcomes


def disturbed(fit):
    """The decoder with networks that are not zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in fit.decoder.parameters():
            noise = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
            parameter += 0.1 * noise * parameter.requires_grad
    return fit.decoder


@pytest.fixture
def curved():
    fit = small_model(linear(n=12)).fit(epochs=0)
    return disturbed(fit), fit.model.reader.sample


def test_tangents_are_derivatives(curved):
    decoder, sample = curved
    outcome, rows = decoder.outcomes[0], sample.rows[0]
    b = antithetic(2, (sample.n, decoder.latent), torch.Generator().manual_seed(0))[0]
    value, slope = outcome.tangents(rows, b)
    assert torch.allclose(value, outcome.random(rows, b), atol=1e-12)
    for j in range(decoder.latent):
        step = torch.zeros(decoder.latent, dtype=torch.float64)
        step[j] = 1e-5
        up, down = (outcome.random(rows, b + s * step) for s in (1, -1))
        assert torch.allclose(slope[:, j], (up - down) / 2e-5, atol=1e-8)


@pytest.mark.parametrize("importance", [False, True])
def test_gradient_of_the_bound(curved, importance):
    decoder, sample = curved
    generator = torch.Generator().manual_seed(1)
    z = antithetic(4, (sample.n, decoder.latent), generator)
    b0, _ = modes(decoder, sample)

    def value():
        return bound(decoder, sample, b0, z, importance)[0].sum()

    decoder.zero_grad()
    value().backward()
    for name, parameter in decoder.named_parameters():
        if not parameter.requires_grad:
            continue
        flat, at = parameter.data.view(-1), 0
        before, found = float(flat[at]), []
        for shift in (1e-5, -1e-5):
            flat[at] = before + shift
            found.append(float(value().detach()))
        flat[at] = before
        slope = (found[0] - found[1]) / 2e-5
        assert parameter.grad is not None
        assert float(parameter.grad.view(-1)[at]) == pytest.approx(
            slope, rel=1e-5, abs=1e-5
        ), name


def test_modes_have_no_gradient(curved):
    decoder, sample = curved
    mode, _ = modes(decoder, sample)
    gradient, _ = decoder.normal_equations(
        sample, mode, decoder.fixed(sample), decoder.centre(sample)
    )
    assert float(gradient.detach().abs().max()) < 1e-6


def test_bound_is_tight_where_the_posterior_is_normal():
    fit = small_model(linear(n=12)).fit(epochs=0)
    decoder, sample = fit.decoder, fit.model.reader.sample
    z = antithetic(4, (sample.n, 2), torch.Generator().manual_seed(1))
    anywhere = 3 * z[0]
    for importance in (False, True):
        value, _ = bound(decoder, sample, anywhere, z, importance)
        assert float(value.detach().sum()) == pytest.approx(
            fit.loglik().value, abs=1e-8
        )


def test_importance_sampling_finds_the_exact_likelihood():
    fit = small_model(linear(n=40)).fit(epochs=0)
    exact = fit.loglik().value
    with torch.no_grad():  # no longer exactly linear, by nothing that matters
        fit.decoder.outcomes[0].m2.out += 1e-13
    assert not fit.decoder.exact
    found = fit.loglik(n=1000)
    assert 0 < found.error < 0.3
    assert found.value == pytest.approx(exact, abs=4 * found.error)


def test_monte_carlo_error_is_the_spread_between_seeds():
    data = two_outcomes(n=60)
    fit = dgmm("z ~ t", data, group="id", family="bernoulli").fit(epochs=0)
    runs = [fit.loglik(n=200, seed=s) for s in range(40)]
    spread = np.std([r.value for r in runs], ddof=1)
    assert 0.7 < spread / np.mean([r.error for r in runs]) < 1.4


def test_bounds_and_the_likelihood(curved):
    decoder, sample = curved
    b0, _ = modes(decoder, sample)
    z = antithetic(4000, (sample.n, decoder.latent), torch.Generator().manual_seed(2))
    with torch.no_grad():
        elbo = bound(decoder, sample, b0, z, False)[0].sum()
        iwae = bound(decoder, sample, b0, z, True)[0].sum()
    found = marginal(decoder, sample, 4000, torch.Generator().manual_seed(3))
    error = float(found.errors.square().sum()) ** 0.5
    assert 0 < error < 0.03
    assert float(elbo) < float(iwae)
    # With so many draws the weighted bound is the likelihood itself.
    assert float(iwae) == pytest.approx(float(found.values.sum()), abs=4 * error)
