"""Simple weights: the best model whose coefficients are small whole numbers of a step.

Schnorr, C. and Euchner, M. (1994). Lattice basis reduction: improved practical
algorithms and solving subset sum problems. Mathematical Programming 66, 181-199.
"""

from .cards import ScoreCard
from .model import SimpleWeights, simple_weights
from .results import SimpleWeightsResults

__all__ = ["ScoreCard", "SimpleWeights", "SimpleWeightsResults", "simple_weights"]
