"""One cell of the benchmark of mixed models, in a process of its own."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mixed_cases
from harness import few_calls
from mixed_libraries import LIBRARIES


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a library at a case: from the frame and the formula to the table."""
    warnings.simplefilter("ignore")
    library = LIBRARIES[spec["library"]]()
    case = mixed_cases.find(spec["case"])
    folder = Path(spec["folder"])
    library.table(case, mixed_cases.read(folder / "warm"))
    frame = mixed_cases.read(folder / "rows")
    found, took = few_calls(lambda: library.table(case, frame))
    return {"frame": took} | asdict(library.read(case, found))


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
