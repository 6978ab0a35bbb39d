"""Linear mixed models."""

from .model import LinearMixed
from .results import MixedResults

__all__ = ["LinearMixed", "MixedResults"]
