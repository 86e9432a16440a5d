"""Statistics that `estimator=` chooses by name, beside running estimators and rules at inference time: a class each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

import bnlab
from bnlab.common.names import Named, list_named
from bnlab.estimators import EMA, Cumulative, Estimator, WeightedCumulative
from bnlab.inference import TestTimeStatistics
from bnlab.statistics.network import Statistics


@dataclass(frozen=True)
class Measured(Named, ABC):
    """Statistics of frozen weights, measured on images.

    All but exact ones are measured while each batch, of the training size, normalizes with its own moments (with
    norm=ghost each part of a batch with its own).
    """

    images: int | None = None  # that are drawn; None: all
    depends_on_batch_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.images is None:
            return
        # Not isinstance, because True is an int in Python.
        if type(self.images) is not int or self.images < 1:
            raise ValueError(f"images={self.images}: write {self.name}, or {self.name}(images=1000) for so many images")

    @property
    def label(self) -> str:
        """Canonical name; the number of images is left out where all are drawn."""
        return self.name if self.images is None else super().label

    @abstractmethod
    def measure(self, model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
        """Measure the statistics of frozen weights."""


@dataclass(frozen=True)
class Exact(Measured):
    """Statistics of the whole population: each layer's input is computed with the exact statistics of those before."""

    name: ClassVar[str] = "exact"
    depends_on_batch_size: ClassVar[bool] = False

    def measure(self, model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
        return bnlab.population_statistics(model, batches)


@dataclass(frozen=True)
class Precise(Measured):
    """Moments pooled over all batches (Wu & Johnson 2021; fvcore)."""

    name: ClassVar[str] = "precise"

    def measure(self, model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
        return bnlab.population_statistics(model, batches, statistic="precise")


@dataclass(frozen=True)
class UpdateBN(Measured):
    """The mean of batch means and of unbiased variances (torch's update_bn)."""

    name: ClassVar[str] = "update_bn"
    estimator: ClassVar[Estimator] = Cumulative()

    def measure(self, model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
        trace = bnlab.record_frozen(model, batches)
        return bnlab.replay(trace, self.estimator, [trace.last_step])[trace.last_step]


@dataclass(frozen=True)
class SWA(UpdateBN):
    """The means of `update_bn`, weighted by the sizes of batches (SWA's reference code)."""

    name: ClassVar[str] = "swa"
    estimator: ClassVar[Estimator] = WeightedCumulative()


@dataclass(frozen=True)
class OfAveraging(Named):
    """Statistics for a network whose weights are averaged over training."""


@dataclass(frozen=True)
class Stale(OfAveraging):
    """Running averages that were recorded while the network trained, before its weights were averaged."""

    name: ClassVar[str] = "stale"
    # The momentum of torch's layers, whose buffers this stands for.
    running_average: ClassVar[Estimator] = EMA(momentum=0.1)


@dataclass(frozen=True)
class Averaged(OfAveraging):
    """Running averages from the network's buffers, averaged with the same factors as its weights."""

    name: ClassVar[str] = "averaged"


@dataclass(frozen=True)
class NoStatistics(Named):
    """Placeholder for networks that train without statistics of the batch. It cannot be chosen."""

    name: ClassVar[str] = "none"


CHOOSABLE: tuple[type[Named], ...] = (Estimator, Measured, OfAveraging, TestTimeStatistics)
"""The base classes of all that `estimator=` can choose."""


def list_statistics() -> dict[str, type[Named]]:
    """List by name the classes that `estimator=` can choose, except by import path; ValueError if two have one name."""
    named = list_named(Named)
    return {name: cls for name, cls in named.items() if issubclass(cls, CHOOSABLE)}
