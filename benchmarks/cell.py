"""One cell of the benchmark, in a process of its own: load, warm up, time, report."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Data, measure, read_data
from libraries import LIBRARIES, Estimates, Task

# Enough rows for the factor's levels; the first calls compile and fill caches.
WARM_ROWS = 4000


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
        prepared = library.prepare(task, data, frame)
        found, took = measure(prepared)
        out["fit"] = asdict(took)
        del prepared
    if library.has_frame:
        found, took = measure(lambda: library.table(task, frame))
        out["frame"] = asdict(took)
    assert found is not None
    return out | {
        "slopes": list(map(float, found.slopes)),
        "errors": None if found.errors is None else list(map(float, found.errors)),
        "iterations": found.iterations,
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
