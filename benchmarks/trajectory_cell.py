"""One cell of the benchmark of trajectory models, in a process of its own."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import few_calls
from mixed_cases import read
from trajectory_cases import CASES
from trajectory_libraries import LIBRARIES


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Time a program at a case: from the frame and the formula to the table."""
    warnings.simplefilter("ignore")
    library = LIBRARIES[spec["library"]]()
    case = CASES[spec["case"]]
    folder = Path(spec["folder"])
    library.table(case, *_given(folder / "warm"))
    frame, labels = _given(folder / "rows")
    found, took = few_calls(lambda: library.table(case, frame, labels))
    return {"frame": took} | asdict(library.read(case, found))


def _given(folder: Path) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Read rows and the labels of a start, if there is one."""
    units = folder / "units"
    labels = read(units)["label"].to_numpy() if units.exists() else None
    return read(folder), labels


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
