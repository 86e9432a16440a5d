"""Batch norm that chooses its momentum itself."""

from bnlab.nn.readers import momenta
from bnlab.nn.self_tuned import SelfTuned

__all__ = ["SelfTuned", "momenta"]
