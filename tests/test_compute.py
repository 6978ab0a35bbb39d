"""Device, precision, memory and threads: what is chosen and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepstats import compute
from deepstats.compute import Compute, default_compute, set_default_device


@pytest.fixture(autouse=True)
def session(monkeypatch):
    monkeypatch.setattr(compute, "_default", None)


def test_defaults():
    found = default_compute()
    assert found.device.type in ("cpu", "cuda")
    assert found.dtype == torch.float64
    assert found.memory > 0
    assert found.threads >= 1


@pytest.mark.parametrize(
    ("given", "bytes_"),
    (("2GB", 2e9), ("500 MB", 5e8), ("1.5g", 1.5e9), ("64KiB", 64e3), (1024, 1024)),
)
def test_memory(given, bytes_):
    assert Compute("cpu", memory=given).memory == bytes_


@pytest.mark.parametrize(
    ("options", "fragment"),
    (
        ({"device": "abacus"}, "use 'auto', 'cpu' or 'cuda'"),
        ({"dtype": "float16"}, "use 'float64' or 'float32'"),
        ({"dtype": torch.int64}, "use 'float64' or 'float32'"),
        ({"memory": "much"}, "write '2GB'"),
        ({"memory": 0}, "must be positive"),
        ({"threads": 0}, "at least 1"),
    ),
)
def test_refused(options, fragment):
    with pytest.raises(ValueError, match=fragment):
        Compute(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there():
    with pytest.raises(ValueError, match="no CUDA device"):
        Compute("cuda")


def test_session_default():
    chosen = set_default_device("cpu", dtype="float32", memory="1GB", threads=2)
    assert default_compute() is chosen
    other = default_compute(dtype="float64")
    assert other.dtype == torch.float64
    assert (other.memory, other.threads) == (10**9, 2)


def test_blocks_follow_the_budget():
    plenty, little = Compute("cpu"), Compute("cpu", memory="1MB")
    assert little.block_rows(100) <= plenty.block_rows(100)
    assert plenty.block_rows(10) >= plenty.block_rows(1000)
    assert Compute("cpu", memory=1).block_rows(10_000) >= 1


def test_require():
    with pytest.raises(MemoryError, match="a thing needs .* absorb it"):
        Compute("cpu", memory="1MB").require(10**6, "a thing", "absorb it")
    Compute("cpu", memory="1GB").require(10**6, "a thing", "absorb it")


@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("rows", (1, 7, 100, 1001))
def test_every_block_once_and_in_order(rows, threads):
    values = np.arange(rows)
    total = Compute("cpu", threads=threads).sum_blocks(
        rows,
        7,
        list,
        lambda a, b, out: out.extend(values[a:b]),
        lambda a, b: a.extend(b),
    )
    assert total == values.tolist()


def test_an_error_in_a_worker_is_seen():
    def body(start, stop, out):
        raise RuntimeError("in a block")

    with pytest.raises(RuntimeError, match="in a block"):
        Compute("cpu", threads=2).sum_blocks(100, 5, list, body, list.extend)
