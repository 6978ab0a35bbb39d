"""One cell of the benchmark of mixed models, in a process of its own."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mixed_cases
from harness import measure
from mixed_libraries import LIBRARIES

# As in cell.py: up to three calls while they are short. Calls of milliseconds are
# timed in batches, as R's clock has no finer grain, and nothing is swept in between.
CALLS, ENOUGH = 3, 5.0
SHORT, BATCHES, BATCH = 0.1, 5, 10


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a library at a case: from the frame and the formula to the table."""
    warnings.simplefilter("ignore")
    library = LIBRARIES[spec["library"]]()
    case = mixed_cases.find(spec["case"])
    folder = Path(spec["folder"])
    library.table(case, mixed_cases.read(folder / "warm"))
    frame = mixed_cases.read(folder / "rows")
    found, took = _least(lambda: library.table(case, frame))
    return {"frame": took} | asdict(library.read(case, found))


def _least(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Least times, and the most memory, of a few calls."""
    taken = []
    while len(taken) < CALLS and sum(t.wall for t in taken) < ENOUGH:
        found = None  # its memory is not the next call's
        found, took = measure(call)
        taken.append(took)
    least = {
        "cpu": min(t.cpu for t in taken),
        "wall": min(t.wall for t in taken),
        "extra": max(t.extra for t in taken),
    }
    return found, least | (_batches(call) if least["wall"] < SHORT else {})


def _batches(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds a call of the quickest batch."""
    times = []
    for _ in range(BATCHES):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(BATCH):
            call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(t) / BATCH for t in zip(*times, strict=True))
    return {"cpu": cpu, "wall": wall}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
