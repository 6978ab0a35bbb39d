"""Generalised linear mixed models, by Laplace's method."""

from __future__ import annotations

from .levels import MixedOrdinalResults
from .model import MixedGLM
from .ordinal import MixedOrdinal, mixed_glm
from .results import MixedGLMResults

__all__ = [
    "MixedGLM",
    "MixedGLMResults",
    "MixedOrdinal",
    "MixedOrdinalResults",
    "mixed_glm",
]
