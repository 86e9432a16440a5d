"""Data sets, which are found by their names; they are read whole, split once and for all, and standardized."""

from bnlab.harness.artifacts.data.base import Data
from bnlab.harness.artifacts.data.digits import Digits
from bnlab.harness.artifacts.data.glyphs import Glyphs
from bnlab.harness.artifacts.data.own_data import OwnData
from bnlab.harness.settings import discover

__all__ = ["Data", "Digits", "Glyphs", "OwnData"]

discover(__name__)
