"""How far are batch normalization's running averages from the true population statistics, and what to use instead.

The public names are here; importing this package does not import pandas, which a frame asks for.
"""

from bnlab import estimators, inference, theory
from bnlab.decomposition import decompose
from bnlab.exact.consistency import self_consistency
from bnlab.exact.population import population_statistics
from bnlab.gap import gap
from bnlab.moments import Moments
from bnlab.statistics import Statistics, running_statistics, using
from bnlab.trace import MomentTrace, record, record_frozen, replay

__version__ = "0.1.0"

__all__ = [
    "MomentTrace",
    "Moments",
    "Statistics",
    "decompose",
    "estimators",
    "gap",
    "inference",
    "population_statistics",
    "record",
    "record_frozen",
    "replay",
    "running_statistics",
    "self_consistency",
    "theory",
    "using",
]
