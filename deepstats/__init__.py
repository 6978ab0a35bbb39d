"""Statistical models by formula: fitted by PyTorch, printed for a paper."""

from __future__ import annotations

from .compute import set_default_device
from .models.glm import GLM
from .models.linear import OLS
from .summary import compare, etable

__version__ = "0.1.0"
