"""Flat vectors, named blocks and the scale they are reported on."""

from __future__ import annotations

import pytest
import torch

from deepstats.parameters import Block, Parameters


@pytest.fixture
def parameters() -> Parameters:
    return Parameters(
        (
            Block("beta", ("Intercept", "x")),
            Block(
                "alpha", ("alpha",), positive=True, component="dispersion", lower=-18.0
            ),
        )
    )


def test_labels(parameters):
    assert len(parameters) == 3
    assert parameters.labels == ("Intercept", "x", "alpha")
    assert parameters.components == ("", "", "dispersion")
    assert parameters.lower().tolist() == [-torch.inf, -torch.inf, -18.0]


@pytest.mark.parametrize("shape", ((3,), (5, 3)))
def test_split(parameters, shape):
    flat = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    parts = parameters.split(flat)
    assert list(parts) == ["beta", "alpha"]
    torch.testing.assert_close(torch.cat(list(parts.values()), dim=-1), flat)


def test_join_undoes_split(parameters):
    flat = torch.tensor([1.0, 2.0, -3.0])
    torch.testing.assert_close(parameters.join(parameters.split(flat)), flat)


def test_reported_scale(parameters):
    flat = torch.tensor([1.0, -2.0, 0.5]).double()
    reported = parameters.reported(flat)
    assert reported.tolist() == pytest.approx(
        [1.0, -2.0, float(torch.tensor(0.5).exp())]
    )
    torch.testing.assert_close(parameters.working(reported), flat)
    slope = torch.func.jacrev(parameters.reported)(flat).diagonal()
    torch.testing.assert_close(parameters.scale(flat), slope)
