"""The processes that measure together: one, or those of a torch.distributed group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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

        told = None if failure is None else _Failure(isinstance(failure, Interleaved), str(failure))
        failures = {rank: other for rank, other in enumerate(self.gather(told)) if other is not None}
        if not failures:
            return result
        mistakes = {rank: other for rank, other in failures.items() if not other.is_interleaved}
        rank, first = next(iter((mistakes or failures).items()))  # nothing is measured again where data are wrong
        if failure is not None and isinstance(failure, Interleaved) == first.is_interleaved:
            raise failure
        kind = Interleaved if first.is_interleaved else ValueError
        raise kind(f"rank {rank} failed: {first.message}") from failure


class _Failure(NamedTuple):
    """What other ranks are told of an exception: it need not be one that can be pickled."""

    is_interleaved: bool
    message: str
