"""The processes that measure together: one, or those of a torch.distributed group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from bnlab.moments import Moments
from bnlab.reading import Pooled


class Interleaved(Exception):
    """The forwards cannot take turns; says why, and which `batch` has failed, if one has."""

    def __init__(self, reason: str, batch: int | None = None) -> None:
        super().__init__(reason)
        self.batch = batch


class Ranks:
    """All ranks of `group` (None: this process alone); each calls every method, also one without a batch of its own."""

    def __init__(self, group: Any = None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"population_statistics: group is a {type(group).__name__}; pass a process group")
        self._group = group

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    @property
    def is_alone(self) -> bool:
        """Whether this process measures alone."""
        return self._group is None

    def merge(self, pooled: Pooled | None) -> Pooled:
        """The moments of all ranks' data, the same to the last bit on each; None where a rank has none."""
        if self.is_alone and pooled is not None:
            return pooled
        values = self.gather(None if pooled is None else (pooled.count, pooled.mean, pooled.var))
        merged, *others = (Moments(*value) for value in values if value is not None)
        for other in others:
            merged = merged.merge(other)
        return Pooled(int(merged.count), merged.mean, merged.var)

    def together(self, work: Callable[[], Any]) -> Any:
        """The result of this rank's share of the work; what one rank raises ends the call on all of them."""
        if self._group is None:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        failures = self.gather(None if failure is None else (isinstance(failure, Interleaved), str(failure)))
        # A mistake in the data comes first: nothing is measured again then.
        for rank, other in sorted(enumerate(failures), key=lambda pair: pair[1] is None or pair[1][0]):
            if other is not None and failure is not None and isinstance(failure, Interleaved) == other[0]:
                raise failure
            if other is not None:
                raise (Interleaved if other[0] else ValueError)(f"rank {rank} failed: {other[1]}") from failure
        return result
