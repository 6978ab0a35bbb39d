"""Nonlinear least squares and nonlinear mixed models."""

from .model import NonlinearMixed
from .regression import NonlinearRegression, NonlinearRegressionResults
from .results import NonlinearMixedResults

__all__ = [
    "NonlinearMixed",
    "NonlinearMixedResults",
    "NonlinearRegression",
    "NonlinearRegressionResults",
]
