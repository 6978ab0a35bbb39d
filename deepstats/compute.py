"""Where numbers live and how many at once: device, precision, memory, threads."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

__all__ = ["Compute", "default_compute", "one_thread", "set_default_device", "sharing"]

T = TypeVar("T")

# A block of this many bytes stays in a core's second-level cache on the machines
# measured (see docs/performance.md): larger blocks gain nothing, smaller ones pay
# for the call of each operation.
_CACHE_BYTES = 3_000_000
# Workers pay for each operation with a hand-over of Python's lock: a second one needs
# this many blocks to be worth it.
_BLOCKS_A_WORKER = 64
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Compute:
    """The one place that decides device, precision, block size and threads.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"} or torch.device, default "auto"
        "auto" takes CUDA when it is there, else the CPU.
    dtype : {"float64", "float32"} or torch.dtype, default "float64"
        Precision of the blocks. Sums over blocks are float64 in any case.
    memory : str or int, optional
        Budget for working memory, as "2GB" or bytes. By default a quarter of the
        memory of the machine or the card.
    threads : int, optional
        Blocks worked on at once on a CPU; by default what torch would use. Every
        block is worked on by one thread, so that two threads never compete inside
        one small product.

    Raises
    ------
    ValueError
        For a device, precision or memory that is not understood or not there.
    """

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "float64"
    memory: str | int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", _device(self.device))
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        memory = self.memory
        memory = _available(self.device) // 4 if memory is None else _bytes(memory)
        object.__setattr__(self, "memory", memory)
        if self.threads is None:
            object.__setattr__(self, "threads", torch.get_num_threads())
        elif int(self.threads) < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads!r}.")

    @property
    def on_gpu(self) -> bool:
        """Whether blocks are worked on by an accelerator."""
        return self.device.type != "cpu"

    def on_cpu(self) -> Compute:
        """Return one thread of the CPU with the same budget, in double precision."""
        return Compute("cpu", memory=self.memory, threads=1)

    def block_rows(self, columns: int, rows: int | None = None) -> int:
        """Rows of a block of `columns` float64 columns, of `rows` in all.

        Besides the block its scaled copy is held: with at least forty blocks both
        together stay below a twentieth of the whole.
        """
        width = 8 * max(columns, 1)
        if self.on_gpu:
            return max(1024, self.memory // (8 * width))
        size = max(256, min(65536, _CACHE_BYTES // width))
        size = max(64, min(size, self.memory // (4 * width)))
        return size if rows is None else min(size, max(1024, rows // 40))

    def resident(self, elements: int) -> bool:
        """Whether an array of that many elements may be held whole."""
        limit = self.memory // 2 if self.on_gpu else min(self.memory // 4, 2_000_000)
        return 8 * elements <= limit

    def require(self, elements: int, what: str, instead: str) -> None:
        """Refuse, with the reason and the alternative, what will not fit."""
        need = 8 * elements
        if need > self.memory:
            raise MemoryError(
                f"{what} needs {need / 1e9:.1f} GB and the budget is "
                f"{self.memory / 1e9:.1f} GB; {instead}"
            )

    def tensor(self, values: object) -> torch.Tensor:
        """Values as a tensor of this device and precision."""
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def sum_blocks(
        self,
        rows: int,
        size: int,
        prepare: Callable[[], T],
        body: Callable[[int, int, T], None],
        merge: Callable[[T, T], None],
    ) -> T:
        """Run `body` on every block of rows and merge what its workers gathered.

        Parameters
        ----------
        rows, size : int
            Number of rows, and rows a block.
        prepare : callable
            Makes one worker's accumulator (and its scratch memory).
        body : callable
            ``body(start, stop, accumulator)``.
        merge : callable
            ``merge(into, other)``; called in the order of the rows, so that the
            result does not depend on which worker was faster.
        """
        starts = range(0, rows, size)
        enough = max(1, len(starts) // _BLOCKS_A_WORKER)
        workers = 1 if self.on_gpu else min(self.threads, enough)
        share = -(-len(starts) // workers)

        def work(number: int) -> T:
            accumulator = prepare()
            for start in starts[number * share : (number + 1) * share]:
                body(start, min(start + size, rows), accumulator)
            return accumulator

        with one_thread():
            if workers == 1:
                return work(0)
            with ThreadPoolExecutor(workers, initializer=_join_others) as pool:
                total, *others = pool.map(work, range(workers))
        for other in others:
            merge(total, other)
        return total


_worker = threading.local()


def _join_others() -> None:
    _worker.shared = True
    torch.set_num_threads(1)


def sharing() -> bool:
    """Whether this thread is one of several workers on the blocks of one sum."""
    return getattr(_worker, "shared", False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside each operation, in this thread of ours.

    Blocks are shared among threads of our own; a second level of them inside small
    products costs several times what it saves.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(device: str | torch.device) -> torch.device:
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} is not known; use 'auto', 'cpu' or 'cuda'."
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no CUDA device.")
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        raise ValueError(
            f"dtype {dtype!r} is not supported; use 'float64' or 'float32'."
        )
    return found


def _bytes(memory: str | int) -> int:
    if isinstance(memory, (int, float)):
        value = int(memory)
    else:
        found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", memory, re.IGNORECASE)
        if found is None:
            raise ValueError(f"memory {memory!r} is not understood; write '2GB'.")
        power = " KMGT".index(found[2].upper() or " ")
        value = int(float(found[1]) * 1000**power)
    if value <= 0:
        raise ValueError(f"memory must be positive, not {memory!r}.")
    return value


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_default: Compute | None = None


def default_compute(
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
    threads: int | None = None,
) -> Compute:
    """Return the session's `Compute`, with what is given here in place of its own."""
    base = _default
    if base is not None and device is dtype is memory is threads is None:
        return base
    return Compute(
        device=device if device is not None else base.device if base else "auto",
        dtype=dtype if dtype is not None else base.dtype if base else "float64",
        memory=memory if memory is not None else base.memory if base else None,
        threads=threads if threads is not None else base.threads if base else None,
    )


def set_default_device(
    device: str | torch.device = "auto",
    *,
    dtype: str | torch.dtype = "float64",
    memory: str | int | None = None,
    threads: int | None = None,
) -> Compute:
    """Choose device, precision, memory budget and threads for the session.

    Parameters
    ----------
    device, dtype, memory, threads
        As in `Compute`.

    Returns
    -------
    Compute
        What later fits use unless they are told otherwise.
    """
    global _default
    _default = Compute(device, dtype, memory, threads)
    return _default
