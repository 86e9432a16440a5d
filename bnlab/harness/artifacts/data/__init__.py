"""Data sets, which are found by their names; they are read whole, split once and for all, and standardized."""

from bnlab.harness.artifacts.data.base import Data, Draw
from bnlab.harness.artifacts.data.dataset import Dataset, Split, augment, load_dataset
from bnlab.harness.artifacts.data.digits import Digits
from bnlab.harness.artifacts.data.glyphs import Glyphs
from bnlab.harness.artifacts.data.own_data import OwnData
from bnlab.harness.components import discover

__all__ = ["Data", "Dataset", "Digits", "Draw", "Glyphs", "OwnData", "Split", "augment", "load_dataset"]

discover(__name__)
