"""Deep mixed models: networks that start at a mixed model and must earn their leave."""

from .model import DeepMixed, dgmm
from .nets import Net, net
from .results import DeepMixedResults

__all__ = ["DeepMixed", "DeepMixedResults", "Net", "dgmm", "net"]
