"""Corruptions of the images that are predicted: each in a file, found by its name."""

from bnlab.harness.artifacts.corruptions.base import (
    STRENGTHS,
    Corruption,
    describe_corruptions,
    find_corruption,
    list_corruptions,
)
from bnlab.harness.components import discover

__all__ = ["STRENGTHS", "Corruption", "describe_corruptions", "find_corruption", "list_corruptions"]

discover(__name__)
