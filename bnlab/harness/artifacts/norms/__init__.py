"""Norms, which normalize activations in our own networks: each in a file, found by its name."""

from bnlab.harness.artifacts.norms.base import Norm, NormBuilder
from bnlab.harness.components import discover

__all__ = ["Norm", "NormBuilder"]

discover(__name__)
