"""The processes that measure together: one, or those of a torch.distributed group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from bnlab.moments import Moments


class Ranks:
    """All ranks of `group` (None: this process alone) take the same decisions from the same data.

    Every method is collective: each rank calls it, also one without a batch of its own.

    Attributes:
        size: how many there are.
        own: which of them this process is.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"population_statistics: group is a {type(group).__name__}; pass a process group")
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.own = 0 if group is None else dist.get_rank(group)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def merge(self, moments: Moments) -> Moments:
        """The moments of all ranks' data, the same to the last bit on each."""
        first, *others = (Moments(*values) for values in self.gather((moments.count, moments.mean, moments.var)))
        for other in others:
            first = first.merge(other)
        return first

    def together(self, work: Callable[[], None]) -> None:
        """Do this rank's share; what one rank raises ends the call on all of them."""
        if self.size == 1:
            return work()
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        reasons = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise ValueError(f"population_statistics: rank {rank} failed with {reason}")
