"""One cell of the benchmark, in a process of its own: load, warm up, time, report."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Data, measure, read_data
from libraries import LIBRARIES, Estimates, Task

# Enough rows for the factor's levels; the first calls compile and fill caches.
WARM_ROWS = 4000
# A process pays for touching memory that the machine has not given it before: twice the
# time, for what takes half a gigabyte. So calls are made again while they are short.
CALLS, ENOUGH = 3, 5.0


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a library at a task: from the frame, and the fit alone."""
    warnings.simplefilter("ignore")
    library = LIBRARIES[spec["library"]]()
    task = Task(spec["task"], spec["design"])
    data = read_data(Path(spec["folder"]))
    frame = library.frame_of(data)
    _warm_up(library, task, data)
    out: dict[str, Any] = {}
    found: Estimates | None = None
    if library.has_fit:
        found, out["fit"] = _least(lambda: library.prepare(task, data, frame))
    if library.has_frame:
        found, out["frame"] = _least(lambda: lambda: library.table(task, frame))
    assert found is not None
    return out | {
        "slopes": list(map(float, found.slopes)),
        "errors": None if found.errors is None else list(map(float, found.errors)),
        "iterations": found.iterations,
    }


def _least(
    prepare: Callable[[], Callable[[], Estimates]],
) -> tuple[Estimates, dict[str, float]]:
    """Least times, and the most memory, of a few calls; each is prepared anew."""
    taken = []
    while len(taken) < CALLS and sum(t.wall for t in taken) < ENOUGH:
        found, took = measure(prepare())
        taken.append(took)
    return found, {
        "cpu": min(t.cpu for t in taken),
        "wall": min(t.wall for t in taken),
        "extra": max(t.extra for t in taken),
    }


def _warm_up(library: Any, task: Task, data: Data) -> None:
    few = data.head(min(WARM_ROWS, len(data)))
    frame = library.frame_of(few)
    if library.has_fit:
        library.prepare(task, few, frame)()
    if library.has_frame:
        library.table(task, frame)


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
