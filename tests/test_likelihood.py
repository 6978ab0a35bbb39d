"""Derivatives three ways, blocks of all sizes, threads and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats import compute as compute_module
from deepstats.compute import Compute
from deepstats.likelihood import PredictorLikelihood, UnitLikelihood
from deepstats.models.glm import GLM

# torch.func.hessian imports functorch, whose modules still call torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

MODELS = {
    "poisson": ("count ~ x + a + offset(log(e))", dict(family="poisson")),
    "logit": ("hit ~ x*a + z", dict(family="binomial")),
    "probit weighted": (
        "hit ~ x + a",
        dict(family="binomial", link="probit", weights="w"),
    ),
    "cbind": ("cbind(f, count) ~ x + a", dict(family="binomial", link="cloglog")),
    "poisson freq": ("count ~ x + z", dict(family="poisson", freq_weights="f")),
    "poisson sqrt": ("count ~ a", dict(family="poisson", link="sqrt")),
    "poisson levels": ("count ~ x + C(lev)", dict(family="poisson")),
    "poisson levels twice": ("count ~ x:C(lev) + C(lev)", dict(family="poisson")),
}


@pytest.fixture
def model(small):
    def build(name, **options):
        data = small.assign(lev=np.arange(len(small)) * 7 % 19)
        text, own = MODELS[name]
        return GLM(text, data, **own, **options)

    return build


def point(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = len(model.parameters)
    x = 0.05 * torch.randn(k, dtype=torch.float64, generator=generator)
    x[0] = 0.6
    return x


def dense_loglik(model):
    """The weighted log-likelihood as one torch function of all rows."""
    d = model.design
    X = d.X.to_dense()
    y, size, offset, w, f = (
        None if v is None else torch.as_tensor(np.array(v, dtype=float))
        for v in (d.y, d.size, d.offset, d.weights, d.freq_weights)
    )
    options = {} if size is None else {"size": size}

    def rows(x):
        eta = X @ x if offset is None else X @ x + offset
        value = model.family.log_prob(y, eta, **options)
        for weight in (w, f):
            value = value if weight is None else value * weight
        return value

    return rows


@pytest.mark.parametrize("name", MODELS)
def test_closed_forms_against_autograd_and_differences(name, model):
    m = model(name)
    x = point(m)
    rows = dense_loglik(m)
    found = PredictorLikelihood(m, m.design, m.compute).derivatives(x, "observed")

    def total(t):
        return rows(t).sum()

    gradient = torch.func.grad(total)(x)
    hessian = torch.func.jacrev(torch.func.grad(total))(x)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(found.information, -hessian, rtol=1e-11, atol=1e-9)
    h, steps = 1e-5, torch.eye(len(x), dtype=torch.float64)
    numeric = [(total(x + h * e) - total(x - h * e)) / (2 * h) for e in steps]
    torch.testing.assert_close(
        found.gradient, torch.stack(numeric), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_scores(name, model):
    m = model(name)
    x = point(m)
    likelihood = PredictorLikelihood(m, m.design, m.compute)
    scores = likelihood.scores(x)
    wanted = torch.func.jacrev(dense_loglik(m))(x)
    torch.testing.assert_close(scores, wanted, rtol=1e-11, atol=1e-10)
    gradient = likelihood.derivatives(x).gradient
    torch.testing.assert_close(scores.sum(0), gradient, rtol=1e-10, atol=1e-9)
    codes = torch.arange(m.design.n) % 7
    sums = torch.zeros(7, len(x), dtype=torch.float64).index_add_(0, codes, scores)
    found = likelihood.group_scores(x, codes, 7)
    torch.testing.assert_close(found, sums, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_score_gram(name, model):
    """Frequencies count rows; weights multiply scores, so their squares enter."""
    m = model(name)
    x = point(m)
    likelihood = PredictorLikelihood(m, m.design, m.compute)
    s = likelihood.scores(x)
    f = m.design.freq_weights
    f = (
        torch.ones(len(s)).double()
        if f is None
        else torch.as_tensor(np.array(f, float))
    )
    wanted = (s / f[:, None]).T @ s
    torch.testing.assert_close(likelihood.score_gram(x), wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    "name", ("poisson", "logit", "probit weighted", "poisson levels")
)
def test_leverages(name, model):
    m = model(name)
    likelihood = PredictorLikelihood(m, m.design, m.compute)
    x = point(m)
    information = likelihood.derivatives(x, "expected").information
    inverse = torch.linalg.inv(information)
    h = likelihood.leverages(x, inverse)
    assert float(h.sum()) == pytest.approx(len(x), rel=1e-10)
    assert h.min() > 0
    assert h.max() <= 1 + 1e-12
    s = likelihood.scores(x)
    for power in (1, 2):
        found = likelihood.score_gram(x, inverse, power)
        wanted = (s / ((1 - h) ** power)[:, None]).T @ s
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", ("poisson", "logit", "probit weighted", "cbind"))
def test_the_two_likelihoods_agree(name, model):
    """Derivatives in the linear predictors, and torch.func on the whole model."""
    m = model(name)
    x = point(m)
    one = PredictorLikelihood(m, m.design, m.compute)
    two = UnitLikelihood(m, m.design, m.compute)
    a, b = one.derivatives(x, "observed"), two.derivatives(x, "observed")
    torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(a.information, b.information, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(one.scores(x), two.scores(x), rtol=1e-10, atol=1e-10)
    codes = torch.arange(m.design.n) % 5
    torch.testing.assert_close(
        one.group_scores(x, codes, 5),
        two.group_scores(x, codes, 5),
        rtol=1e-10,
        atol=1e-9,
    )
    torch.testing.assert_close(
        one.score_gram(x), two.score_gram(x), rtol=1e-9, atol=1e-9
    )


def everything(m):
    """All sums of a likelihood at one point, flat."""
    x = point(m)
    likelihood = PredictorLikelihood(m, m.design, m.compute)
    d = likelihood.derivatives(x)
    inverse = torch.linalg.inv(likelihood.derivatives(x, "expected").information)
    codes = torch.arange(m.design.n) % 4
    pieces = (
        torch.tensor([d.value]), d.gradient, d.information, likelihood.scores(x),
        likelihood.score_gram(x, inverse, 2), likelihood.group_scores(x, codes, 4),
        likelihood.leverages(x, inverse),
    )  # fmt: skip
    return torch.cat([p.reshape(-1).double() for p in pieces])


@pytest.mark.parametrize("rows", (1, 7, 64, 1000))
@pytest.mark.parametrize("name", ("poisson", "cbind", "poisson levels twice"))
def test_sizes_of_blocks(name, rows, model, monkeypatch):
    wanted = everything(model(name))
    monkeypatch.setattr(Compute, "block_rows", lambda self, *sizes: rows)
    monkeypatch.setattr(Compute, "resident", lambda self, elements: False)
    torch.testing.assert_close(everything(model(name)), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ("poisson", "cbind", "poisson levels twice"))
def test_threads(name, model, monkeypatch):
    monkeypatch.setattr(Compute, "block_rows", lambda self, *sizes: 9)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(compute_module, "_default", Compute("cpu", threads=threads))
        found.append(everything(model(name)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_threads_twice_the_same(model, monkeypatch):
    """The order of the sums does not depend on which worker is faster."""
    monkeypatch.setattr(Compute, "block_rows", lambda self, *sizes: 9)
    monkeypatch.setattr(compute_module, "_default", Compute("cpu", threads=2))
    torch.testing.assert_close(
        everything(model("poisson")), everything(model("poisson")), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", MODELS)
def test_float32(name, model):
    wide, narrow = everything(model(name)), everything(model(name, dtype="float32"))
    scale = float(wide.abs().max())
    torch.testing.assert_close(narrow, wide, rtol=2e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ("poisson", "logit", "poisson levels"))
def test_fit_in_float32(name, model):
    wide, narrow = model(name).fit("HC1"), model(name, dtype="float32").fit("HC1")
    assert narrow.converged
    np.testing.assert_allclose(narrow.params, wide.params, atol=1e-4)
    np.testing.assert_allclose(narrow.bse, wide.bse, rtol=1e-3)


def test_reduce_and_map(model):
    m = model("poisson")
    likelihood = PredictorLikelihood(m, m.design, m.compute)
    x = point(m)
    eta = likelihood.map(x, lambda batch, etas: etas[0])
    wanted = m.design.X.to_dense() @ x + torch.as_tensor(np.array(m.design.offset))
    torch.testing.assert_close(eta, wanted)
    both = likelihood.map(x, lambda b, e: torch.stack([e[0], b.y], dim=1), 2)
    torch.testing.assert_close(both[:, 0], wanted)
    total = likelihood.reduce(x, lambda batch, etas: torch.stack([etas[0].sum()]))
    torch.testing.assert_close(total, wanted.sum()[None])


def test_every(model):
    m = model("poisson")
    part = PredictorLikelihood(m, m.design.every(3), m.compute)
    x = point(m)
    wanted = PredictorLikelihood(m, m.design, m.compute).scores(x)[::3]
    torch.testing.assert_close(part.scores(x), wanted)


def test_many_clusters_are_refused_when_they_do_not_fit(model):
    m = model("poisson")
    likelihood = PredictorLikelihood(m, m.design, Compute("cpu", memory="1KB"))
    codes = torch.arange(m.design.n)
    with pytest.raises(MemoryError, match="120 clusters"):
        likelihood.group_scores(point(m), codes, m.design.n)
