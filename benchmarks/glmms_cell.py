"""One cell of the benchmark of generalised mixed models, in a process of its own."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mixed_cases
from glmms_cases import CASES
from glmms_libraries import LIBRARIES
from harness import few_calls


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a library at a case: from the frame and the formula to the table."""
    warnings.simplefilter("ignore")
    library, case = LIBRARIES[spec["library"]](), CASES[spec["case"]]
    folder = Path(spec["folder"])
    library.table(case, mixed_cases.read(folder / "warm"))
    frame = mixed_cases.read(folder / "rows")
    found, took = few_calls(lambda: library.table(case, frame))
    return {"frame": took} | asdict(library.read(found))


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
