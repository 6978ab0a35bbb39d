"""Regression whose coefficients deviate by group, the deviations penalised."""

from .model import HierarchicalRegression, hierreg
from .results import HierarchicalResults

__all__ = ["HierarchicalRegression", "HierarchicalResults", "hierreg"]
