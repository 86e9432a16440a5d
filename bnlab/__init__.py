"""How far are batch normalization's running averages from the true population statistics, and what to use instead.

The public names are here; importing this package needs torch only (pandas is imported when a frame is asked for).
"""

from bnlab import estimators
from bnlab.gap import gap
from bnlab.moments import Moments
from bnlab.population import population_statistics
from bnlab.statistics import Statistics, running_statistics, using
from bnlab.trace import MomentTrace, record, replay

__version__ = "0.1.0"

__all__ = [
    "MomentTrace",
    "Moments",
    "Statistics",
    "estimators",
    "gap",
    "population_statistics",
    "record",
    "replay",
    "running_statistics",
    "using",
]
