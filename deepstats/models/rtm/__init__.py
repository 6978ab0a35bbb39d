"""Risk terrain modelling: which places near which things carry more crime.

Caplan, J., Kennedy, L., Barnum, J. and Piza, E. (2015). Risk terrain modeling for
spatial risk assessment. Cityscape 17(1), 7-16.
"""

from __future__ import annotations

from .geometry import grid, read_geojson
from .layers import PointLayer
from .model import RiskTerrain
from .results import RiskTerrainResults

__all__ = ["PointLayer", "RiskTerrain", "RiskTerrainResults", "grid", "read_geojson"]
