"""Regression by any loss, with penalties, constraints and monitored fits."""

from .frontier import Frontier, fairness_frontier
from .losses import Loss, get_link, get_loss
from .model import LossRegression, lossreg
from .path import LossPath
from .penalties import Penalty
from .rates import fairness_table
from .results import LossResults

__all__ = [
    "Frontier",
    "Loss",
    "LossPath",
    "LossRegression",
    "LossResults",
    "Penalty",
    "fairness_frontier",
    "fairness_table",
    "get_link",
    "get_loss",
    "lossreg",
]
