"""What lme4 and glmmTMB say of rows and levels; only in ../shared/reference."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["recorded"]

_SHARED = Path(__file__).parents[4] / "shared" / "reference"


@lru_cache
def _read(program: str) -> dict[str, Any]:
    path = _SHARED / f"mixed_{program}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is only in ../shared/reference, not here")
    return json.loads(path.read_text())


def recorded(program: str, *keys: str) -> Any:
    """Return an entry of a program's record; skips the test where there is none.

    Parameters
    ----------
    program : {"lme4", "glmmTMB"}
    *keys : str
        For lme4 "cases" or "inference" comes first.
    """
    found = _read(program)
    for key in keys:
        found = found["cases"] if key not in found and "cases" in found else found
        found = found[key]
    return found
