"""Exact population statistics: everything that `population_statistics` and `self_consistency` need alone.

`breadth` has the algorithm; `population` is the public call around it.
"""

from bnlab.exact.consistency import self_consistency
from bnlab.exact.population import population_statistics

__all__ = ["population_statistics", "self_consistency"]
