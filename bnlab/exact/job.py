"""What every way of measuring is given, and what it leaves; the caller's batches, counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.batches import Forward, hold_batch, keep_batch, list_leaves
from bnlab.borrowing import KeptTensors
from bnlab.exact.breadth import CALLER, Cost
from bnlab.exact.budget import Budget
from bnlab.exact.inspection import Check, count_images
from bnlab.exact.ranks import Ranks
from bnlab.exact.standard_errors import count_rows, standard_error
from bnlab.exact.watch import OtherStatistics
from bnlab.layers import BatchNorm
from bnlab.moments import Moments, Partial
from bnlab.randomness import RandomStream
from bnlab.statistics import Statistics


@dataclass
class Job:
    """What every way of measuring needs, and what it leaves beside the moments."""

    model: nn.Module
    targets: dict[str, BatchNorm]
    forward: Forward
    device: torch.device
    ranks: Ranks
    budget: Budget
    weights: KeptTensors
    by_image: bool
    channels_last: bool
    others: OtherStatistics
    bar: Any = None
    cost: Cost = field(default_factory=Cost)
    parts: dict[str, list[Partial]] = field(default_factory=dict)  # where `by_image`
    hooks: list[Any] = field(default_factory=list)  # of the measurement, on the layers
    crowded: list[str] = field(default_factory=list)  # where `by_image`: layers with more rows than there are images
    elsewhere: dict[str, None] = field(default_factory=dict)  # layers that other threads have called
    check: Check | None = None

    def make_statistics(self, found: dict[str, Moments], source: Source) -> Statistics:
        """The result of moments that were `found`; ValueError if there was nothing to measure."""
        if not sum(self.ranks.gather(source.count)):
            raise ValueError(f"{CALLER}: batches is empty; pass at least one batch (is a generator used up?)")
        if not found:
            raise ValueError(
                f"{CALLER}: the forward reached none of {len(self.targets)} batch-norm layers in this thread; those "
                "that another thread, a direct .forward() or a functional batch norm runs are not seen"
            )
        self.cost.images, self.cost.peak_bytes = source.images, self.budget.peak
        unseen = [name for name in self.targets if name not in found]
        statistics = Statistics(found, {name: self.targets[name].eps for name in found}, unseen)
        statistics.cost, statistics.check = self.cost, self.check
        if self.by_image:
            rows = {name: count_rows(self.parts.get(name, [])) for name in found}
            # Of batches without tensors it is not known how many images they have.
            known = any(isinstance(leaf, Tensor) for leaf in list_leaves(source.first))
            self.crowded = [name for name in found if known and rows[name] > source.images]
            statistics.standard_errors = {
                name: standard_error(moments, self.parts.get(name, []), self.ranks) for name, moments in found.items()
            }
        return statistics


class KeptBatches:
    """Batches that are read when they are asked for, once, and kept.

    Args:
        batches: what may draw random numbers.
        random: these. Somebody may put their state back between two iterations: the second goes on drawing where the
            first has ended.
    """

    def __init__(self, batches: Iterable[Any], random: RandomStream) -> None:
        self._batches, self._random = batches, random
        self._read: list[Any] = []
        self._rest: Iterator[Any] | None = None
        self._drawn: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self._read
        if self._rest is None:
            self._rest = iter(self._batches)
        elif self._drawn:
            self._random.apply(self._drawn)
        for batch in self._rest:
            self._drawn = self._random.capture()
            self._read.append(keep_batch(batch))
            yield self._read[-1]


class Source:
    """The caller's batches, counted, in containers of ours; ValueError of one that can be read only once."""

    def __init__(self, batches: Iterable[Any], max_images: int | None) -> None:
        self._batches, self._limit = batches, max_images
        self.count = self.images = 0
        self.first: Any = None
        self.exhausted = False

    def __iter__(self) -> Iterator[Any]:
        for batch in map(hold_batch, self._batches):
            images = count_images(batch)
            if not images:
                raise ValueError(f"{CALLER}: batch {self.count} has no images; leave empty batches out")
            self.first = batch if self.count == 0 else self.first
            self.count += 1
            self.images += images
            yield batch
            if self._limit is not None and self.images >= self._limit:
                return
        self.exhausted = True
