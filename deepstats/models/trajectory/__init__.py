"""Group-based trajectory models: latent groups of units, a trajectory for each."""

from __future__ import annotations

from .model import Trajectory
from .results import TrajectoryResults

__all__ = ["Trajectory", "TrajectoryResults"]
