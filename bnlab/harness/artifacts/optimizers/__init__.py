"""Optimizers, which update weights: each in a file, found by its name."""

from bnlab.harness.artifacts.optimizers.base import Optimizer
from bnlab.harness.components import discover

__all__ = ["Optimizer"]

discover(__name__)
