"""What waiting and running forwards hold, against a limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from bnlab.memory import LiveBytes


class Budget:
    """A limit in bytes for the activations of waiting and running forwards.

    What a batch needs is known once one has been profiled. That costs a forward of one batch and is put off until a
    rough count comes near the limit, unless `exact`.
    """

    def __init__(self, limit: int, exact: bool) -> None:
        self.limit, self.exact, self.profiled = limit, exact, False
        self.overhead = 0  # bytes for moments and copies of weights and buffers beside the activations
        self.waiting = 0  # bytes that suspended forwards hold
        self.peak = 0  # of waiting and running together, by the profile
        self._largest = 0  # bytes of the largest batch so far
        self._running = 0.0  # bytes that a running forward needs at most, per byte of its batch
        self._live: dict[str, float] = {}  # bytes that a forward holds while it waits at a layer, per element there
        self._follower: LiveBytes | None = None

    def release(self, size: int) -> None:
        """A waiting forward goes on or ends."""
        self.waiting -= size

    def takes(self, size: int) -> bool:
        """Whether a forward can wait with so many bytes beside the others, with room for one that runs; counts it."""
        self.peak = max(self.peak, self.waiting + size) if self.profiled else 0
        if self.overhead + self.waiting + size + self._estimate_need(self._largest) > self.limit:
            return False
        self.waiting += size
        return True

    def room_to_run(self, size: int) -> bool:
        """Whether a forward of a batch of so many bytes can run beside those that wait."""
        self._largest = max(self._largest, size)
        if self.profiled:
            self.peak = max(self.peak, self.waiting + self._estimate_need(size))
        return self.overhead + self.waiting + self._estimate_need(size) <= self.limit

    def check_alone(self, size: int) -> None:
        """ValueError if a batch does not fit the limit even alone."""
        if self.overhead + self._estimate_need(size) > self.limit:
            raise ValueError(
                f"population_statistics: one batch's forward needs {self._estimate_need(size):,} bytes, moments and "
                f"copies of weights {self.overhead:,}, memory= allows {self.limit:,}; pass smaller batches or raise "
                "memory="
            )

    def _estimate_need(self, size: int) -> int:
        return int(self._running * max(1, size))

    def must_profile(self, x: Tensor, batch: int) -> bool:
        """Whether it is time: the roughly counted bytes of those that wait come to a third of the limit."""
        return not self.profiled and self.waiting + self.live("", x, batch) > self.limit / 3

    def live(self, layer: str, x: Tensor, batch: int) -> int:
        """Bytes that a forward holds while it waits at a layer with input `x`; a rough count before the profile."""
        if not self.profiled:
            return 3 * x.numel() * x.element_size() + batch
        return int(self._live.get(layer, max(self._live.values(), default=0.0)) * x.numel())

    @contextlib.contextmanager
    def profiling(self, batch: int) -> Iterator[None]:
        """Follow what the block, the forward of a batch of so many bytes, allocates."""
        self._live.clear()
        with LiveBytes() as self._follower:
            yield
        self._running = self._follower.peak / max(1, batch)
        self._follower, self.profiled = None, True

    def profile_layer(self, layer: str, x: Tensor) -> None:
        """The profiled forward is at a layer."""
        if self._follower is not None:
            self._live[layer] = max(self._live.get(layer, 0.0), self._follower.now() / x.numel())
