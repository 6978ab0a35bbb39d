"""What every benchmark needs: data on disk, one fresh process a cell, honest clocks."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
COLUMNS = 20
LEVELS = 100
CLUSTERS = 5000
NAMES = tuple(f"x{j + 1}" for j in range(COLUMNS))

# Every library that has a thread pool reads one of these when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS", "BLIS_NUM_THREADS",
)  # fmt: skip


# -- clocks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One timed call.

    Attributes
    ----------
    cpu : float
        Seconds of processor time of all threads of the process and its children.
    wall : float
    extra : float
        Bytes of resident memory at the highest point, less those before the call.
    """

    cpu: float
    wall: float
    extra: float


def measure(function: Callable[[], Any]) -> tuple[Any, Measurement]:
    """Call `function` once and say what it took."""
    gc.collect()
    _give_back_free_memory()
    with _Peak() as peak:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        value = function()
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return value, Measurement(cpu, wall, peak.extra)


def _cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _give_back_free_memory() -> None:
    """Let freed heap leave the resident set: what it holds would hide new needs."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


class _Peak:
    """Highest resident memory while it is open: the kernel's mark, else a sampler."""

    def __enter__(self) -> _Peak:
        self.before = _status("VmRSS")
        self.exact = _reset_high_water_mark()
        self.highest, self.done = self.before, threading.Event()
        if not self.exact:
            self.sampler = threading.Thread(target=self._sample, daemon=True)
            self.sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.exact:
            self.highest = _status("VmHWM")
        else:
            self.done.set()
            self.sampler.join()
        self.extra = max(self.highest - self.before, 0)

    def _sample(self) -> None:
        while not self.done.wait(0.002):
            self.highest = max(self.highest, _status("VmRSS"))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# A library is called up to three times while that is short. Calls of milliseconds are
# timed in batches, as R's clock has no finer grain, and nothing is swept in between.
_CALLS, _ENOUGH = 3, 5.0
_SHORT, _BATCHES, _BATCH = 0.1, 5, 10


def few_calls(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Least times, and the most memory, of a few calls."""
    taken: list[Measurement] = []
    while len(taken) < _CALLS and sum(t.wall for t in taken) < _ENOUGH:
        found = None  # its memory is not the next call's
        found, took = measure(call)
        taken.append(took)
    least = {
        "cpu": min(t.cpu for t in taken),
        "wall": min(t.wall for t in taken),
        "extra": max(t.extra for t in taken),
    }
    return found, least | (_batches(call) if least["wall"] < _SHORT else {})


def _batches(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds a call of the quickest batch."""
    times = []
    for _ in range(_BATCHES):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(_BATCH):
            call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(t) / _BATCH for t in zip(*times, strict=True))
    return {"cpu": cpu, "wall": wall}


# -- data ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The rows of a benchmark, in memory before any clock starts.

    Attributes
    ----------
    X : ndarray, shape (columns, n)
    y, count, binary : ndarray, shape (n,)
    factor, cluster : ndarray of int, shape (n,)
    """

    X: np.ndarray
    y: np.ndarray
    count: np.ndarray
    binary: np.ndarray
    factor: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def head(self, n: int) -> Data:
        """First `n` rows, copied, the clusters among them numbered anew."""
        few = Data(*(v[..., :n].copy() for v in vars(self).values()))
        _, few.cluster[:] = np.unique(few.cluster, return_inverse=True)
        return few


_FILES = {
    "X": np.float64, "y": np.float64, "count": np.float64, "binary": np.float64,
    "factor": np.int32, "cluster": np.int32,
}  # fmt: skip


def write_data(folder: Path, n: int, seed: int = 20) -> None:
    """Draw `n` rows and write them as plain binary files that R reads as well."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n)
    eta = np.zeros(n)
    slopes = np.linspace(0.15, -0.15, COLUMNS)
    with (folder / "X").open("wb") as file:
        for slope in slopes:
            column = 0.9 * rng.standard_normal(n) + 0.4 * common
            eta += slope * column
            column.tofile(file)
    factor = rng.integers(0, LEVELS, n)
    cluster = rng.integers(0, CLUSTERS, n)
    eta += 0.2 * rng.standard_normal(LEVELS)[factor]
    group = 0.3 * rng.standard_normal(CLUSTERS)[cluster]
    spread = 0.7 + 0.3 * np.abs(common)
    drawn = {
        "y": 1 + eta + group + spread * rng.standard_normal(n),
        "count": rng.poisson(np.exp(0.3 + eta) * rng.gamma(5.0, 0.2, n)),
        "binary": rng.random(n) < 1 / (1 + np.exp(0.2 - eta)),
        "factor": factor,
        "cluster": cluster,
    }
    for name, values in drawn.items():
        values.astype(_FILES[name]).tofile(folder / name)
    (folder / "complete").touch()


def read_data(folder: Path) -> Data:
    """Read what `write_data` wrote."""
    read = {k: np.fromfile(folder / k, dtype) for k, dtype in _FILES.items()}
    read["X"] = read["X"].reshape(COLUMNS, -1)
    return Data(**read)


# -- cells -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One fresh process: a library, a task and a design at `n` rows."""

    library: str
    task: str
    design: str
    n: int
    threads: int


def run_cell(cell: Cell, folder: Path, timeout: float) -> dict[str, Any]:
    """Run a cell in a process of its own; an "error" entry where it failed."""
    spec = asdict(cell) | {"folder": str(folder)}
    command = [sys.executable, str(HERE / "cell.py"), json.dumps(spec)]
    if cell.library.startswith("R "):
        command = [
            "Rscript",
            "--vanilla",
            str(HERE / "cell.R"),
            *map(str, spec.values()),
        ]
    return run_process(command, cell.threads, timeout)


def run_process(command: list[str], threads: int, timeout: float) -> dict[str, Any]:
    """Run a command whose last line of output is JSON."""
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        done = subprocess.run(
            command, env=environment, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {timeout:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"exit {done.returncode}: {reason[:200]}"}
    return json.loads(lines[-1])


# Of the machine's memory, what a process may take: one that needs more fails by
# itself, and is not killed together with its neighbours.
_MEMORY_SHARE = 0.8


def limit_memory() -> None:
    """Let no process of this run take nearly all of the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(_MEMORY_SHARE * memory), hard))


def run_patiently(command: list[str], threads: int, patience: float) -> dict[str, Any]:
    """Run a process; "limit" holds its processor seconds where it was stopped."""
    start, cpu = time.perf_counter(), _children_seconds()
    result = run_process(command, threads, patience)
    if "error" in result and time.perf_counter() - start >= patience:
        result["limit"] = _children_seconds() - cpu
    return result


def _children_seconds() -> float:
    """Processor seconds of the processes that have ended, also of those stopped."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def least(repeats: Iterable[dict[str, Any]], kind: str) -> dict[str, float] | None:
    """Smallest processor time, wall time and memory over repeats of a cell."""
    found = [r[kind] for r in repeats if kind in r]
    return {k: min(f[k] for f in found) for k in found[0]} if found else None


# -- machine ---------------------------------------------------------------------------


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, memory and versions; nothing that names the machine or its user."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": _blas(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "versions": {p: v for p in packages if (v := _version(p))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    found = {
        f"{p['internal_api']} {p['version']} ({p.get('architecture', '?')})"
        for p in threadpool_info()
        if p["user_api"] == "blas"
    }
    return sorted(found)


def absence(package: str) -> str | None:
    """Say that a Python package is not installed, if so."""
    module = {"scikit-learn": "sklearn"}.get(package, package)
    return None if importlib.util.find_spec(module) else f"{package} is not installed"


def r_absence(package: str) -> str | None:
    """Say that R or a package of it is not installed, if so."""
    if shutil.which("Rscript") is None:
        return "R is not installed"
    found = r_output(f'cat("{package}" %in% rownames(installed.packages()))')
    return None if found == "TRUE" else f"R has no package {package}"


def r_versions(packages: Iterable[str]) -> dict[str, Any]:
    """Versions of R and of packages of it."""
    found = {p: r_output(f'cat(as.character(packageVersion("{p}")))') for p in packages}
    return {"r": r_output("cat(R.version.string)"), "r_packages": found}


def r_output(code: str) -> str:
    """Run a line of R and return what it prints."""
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


@dataclass(frozen=True)
class Floor:
    """What one core of this machine can do at best, measured.

    Attributes
    ----------
    bandwidth : float
        Bytes a second read from memory.
    multiply : float
        Floating-point operations a second in a large product of float64 matrices.
    exponential : float
        Values of exp a second, in cache.
    """

    bandwidth: float
    multiply: float
    exponential: float

    def seconds(self, n: int, columns: int, exponentials: int) -> float:
        """Shortest time of a pass: memory and arithmetic fully overlapped.

        A pass reads the columns and the response once, forms a symmetric ``X'WX`` (half
        of a product) and takes `exponentials` of each row.
        """
        read = 8 * n * (columns + 1) / self.bandwidth
        flops = n * (columns + 1) * (columns + 2) / self.multiply
        return max(read, flops + n * exponentials / self.exponential)


def measure_floor() -> Floor:
    """Measure the floor with one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), _one_torch_thread() as torch:
        long = np.ones(40_000_000)
        A = np.random.default_rng(0).standard_normal((1024, 1024))
        z = torch.linspace(-2, 2, 16384, dtype=torch.float64)
        out = torch.empty_like(z)
        read = _best(lambda: long @ long)
        product = _best(lambda: A @ A)
        exp = _best(lambda: [torch.exp(z, out=out) for _ in range(100)])
    return Floor(8 * len(long) / read, 2 * 1024**3 / product, 100 * len(z) / exp)


@contextmanager
def _one_torch_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def _best(function: Callable[[], Any], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


# -- Markdown --------------------------------------------------------------------------


def table(head: list[Any], rows: list[list[Any]]) -> str:
    """Set rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def digits(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"


def yes(met: bool) -> str:
    return "yes" if met else "**no**"


def available(packages: dict[str, str]) -> list[str]:
    """Names of the libraries whose packages are there; the others are said to be out.

    Parameters
    ----------
    packages : dict of str to str
        Package by library; those of R have names that begin with "R ".
    """
    there = []
    for name, package in packages.items():
        reason = (r_absence if name.startswith("R ") else absence)(package)
        if reason is None:
            there.append(name)
        else:
            print(f"left out: {name}: {reason}", file=sys.stderr)
    return there


def write_results(found: dict[str, Any], text: str, out: Path) -> None:
    """Write what was measured as JSON, and the tables of it beside."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(text)
