"""Batch norm that chooses its momentum itself."""

from bnlab.nn.self_tuned import SelfTuned, momenta

__all__ = ["SelfTuned", "momenta"]
