"""Generalised linear mixed models, by Laplace's method."""

from __future__ import annotations

from .model import MixedGLM
from .results import MixedGLMResults

__all__ = ["MixedGLM", "MixedGLMResults"]
