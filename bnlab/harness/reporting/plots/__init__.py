"""The kinds of plot that figures are made of, each in a file: settings first, then the rows of all panels."""

from bnlab.harness.reporting.plots.base import (
    ACCURACY,
    AGAINST_EXACT,
    GAP,
    LOST,
    LOST_OF_ANY_SIZE,
    TIMES_THE_BEST,
    Plot,
)
from bnlab.harness.reporting.plots.curves import Curves
from bnlab.harness.reporting.plots.forest import Forest
from bnlab.harness.reporting.plots.stacked import Stacked
from bnlab.harness.reporting.plots.stream import Stream, Zone
from bnlab.harness.reporting.style import Axis

__all__ = [
    "ACCURACY",
    "AGAINST_EXACT",
    "GAP",
    "LOST",
    "LOST_OF_ANY_SIZE",
    "TIMES_THE_BEST",
    "Axis",
    "Curves",
    "Forest",
    "Plot",
    "Stacked",
    "Stream",
    "Zone",
]
