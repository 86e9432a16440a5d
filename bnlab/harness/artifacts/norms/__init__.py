"""Norms, which normalize activations in our own networks: torch's, and one in each further file."""

from bnlab.harness.artifacts.norms.base import Batch, Group, Instance, Layer, NoNorm, Norm, NormBuilder
from bnlab.harness.settings import discover

__all__ = ["Batch", "Group", "Instance", "Layer", "NoNorm", "Norm", "NormBuilder"]

discover(__name__)
