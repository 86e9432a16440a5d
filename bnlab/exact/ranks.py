"""The processes that measure together: one, or those of a torch.distributed group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributed as dist

from bnlab.moments import Moments
from bnlab.reading import Pooled


class InterleavingError(Exception):
    """The forwards of the batches cannot take turns, for the reason that is the message.

    Attributes:
        batch: the number of the batch whose forward has failed while others waited; None if none has.
    """

    def __init__(self, reason: str, batch: int | None = None) -> None:
        super().__init__(reason)
        self.batch = batch


class Ranks:
    """The ranks that measure together. All of them call each method, also a rank that has no batches.

    Args:
        group: their process group; None: this process measures alone.
        caller: the public call, for the message.
    """

    def __init__(self, group: Any, caller: str) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"{caller}: group is a {type(group).__name__}; pass a process group")
        self.group = group

    def gather(self, value: Any) -> list[Any]:
        """Collect every rank's value, in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    @property
    def is_alone(self) -> bool:
        """Return whether this process measures alone."""
        return self.group is None

    def merge(self, pooled: Pooled | None) -> Pooled:
        """Merge the moments of all ranks' data; every rank gets the same, to the last bit.

        Args:
            pooled: those of this rank's data; None if it has none. At least one rank has some.
        """
        if self.is_alone and pooled is not None:
            return pooled
        values = self.gather(None if pooled is None else (pooled.count, pooled.mean, pooled.var))
        moments = [Moments(*value) for value in values if value is not None]
        merged = moments[0]
        for other in moments[1:]:
            merged = merged.merge(other)
        return Pooled(int(merged.count), merged.mean, merged.var)

    def run_together(self, work: Callable[[], Any]) -> Any:
        """Run this rank's share of the work, and return its result; an exception of one rank is raised on all."""
        if self.group is None:
            return work()
        own_error: Exception | None = None
        try:
            result = work()
        except Exception as error:
            own_error = error

        failures = {rank: failure for rank, failure in enumerate(self.gather(_describe(own_error))) if failure}
        if not failures:
            return result

        # An error of data or model goes before one that only asks for another way to measure.
        serious = {rank: failure for rank, failure in failures.items() if not failure.cannot_interleave}
        rank, first = next(iter((serious or failures).items()))
        if own_error is not None and isinstance(own_error, InterleavingError) == first.cannot_interleave:
            raise own_error
        kind = InterleavingError if first.cannot_interleave else ValueError
        raise kind(f"rank {rank} failed: {first.message}") from own_error


class _Failure(NamedTuple):
    """An exception as the other ranks get to know it; it may be one that cannot be pickled itself."""

    cannot_interleave: bool
    message: str


def _describe(error: Exception | None) -> _Failure | None:
    return None if error is None else _Failure(isinstance(error, InterleavingError), str(error))
