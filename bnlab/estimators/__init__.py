"""Running estimators: averages of the stream of batch moments while a network trains.

Each is a fold `state ← state + gain·(x − state)` over the batches' values x; a class says which gains, and, where it
averages something other than mean and unbiased variance, which values. A new one is a subclass of `Estimator` with
`gains`; `list_estimators` has it by its `name`, and a sweep imports it where it is written as `package.module.Class`.
All modules of this folder are imported, so that the estimators of a new one are known by their names.

In the examples a stream of two batches is averaged: mean 1 and unbiased variance 2, then 3 and 8, two values each,
after a start at 0 and 1. `after(estimator, 1, 2)` gives mean and variance after one batch and after two.
"""

from importlib import import_module
from pkgutil import iter_modules

from bnlab.estimators.adaptive import Kalman
from bnlab.estimators.averages import (
    Cumulative,
    LastBatch,
    LastFullBatch,
    PooledCumulative,
    WeightedCumulative,
    WeightedEMA,
    Window,
)
from bnlab.estimators.base import Estimator, Stream, check_momentum
from bnlab.estimators.exponential import EMA, BiasedEMA, DebiasedEMA, PooledEMA
from bnlab.estimators.folding import fold
from bnlab.estimators.lookup import list_estimators, parse
from bnlab.estimators.predictive import Predictive

__all__ = [
    "EMA",
    "BiasedEMA",
    "Cumulative",
    "DebiasedEMA",
    "Estimator",
    "Kalman",
    "LastBatch",
    "LastFullBatch",
    "PooledCumulative",
    "PooledEMA",
    "Predictive",
    "Stream",
    "WeightedCumulative",
    "WeightedEMA",
    "Window",
    "check_momentum",
    "fold",
    "list_estimators",
    "parse",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
