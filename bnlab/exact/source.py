"""Reading the caller's batches, of which there may be more than memory holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from bnlab.batches import list_tensors
from bnlab.exact.units import ImageCounter
from bnlab.memory import find_free_bytes


class Source:
    """Reads the caller's batches as far as they are wanted.

    Args:
        batches: what the caller gave.
        counter: counts the images of a batch.
        caller: the public call, for messages.
    """

    def __init__(self, batches: Iterable[Any], counter: ImageCounter, caller: str) -> None:
        self._batches = iter(batches)
        self._counter = counter
        self._caller = caller
        self._free: dict[torch.device, int] = {}  # bytes, when a device's first batch was read
        self._bytes: dict[torch.device, int] = {}  # of all batches so far

    def read(self, data: list[Any], wanted: int | None, least_batches: int = 1) -> bool:
        """Add batches to `data`, at least one, until they are as many images and batches as wanted.

        Args:
            data: the batches so far.
            wanted: number of images; None: all there are.
            least_batches: number of batches.

        Returns:
            Whether there are no further batches.

        Raises:
            ValueError: a batch has no images, or those before it take more than half of the memory that was free.
        """
        images = sum(map(self._counter.count, data))
        for batch in self._batches:
            self._require_memory(len(data))
            count = self._counter.count(batch)
            if count < 1:
                raise ValueError(f"{self._caller}: a batch has no images; leave empty batches out")
            data.append(batch)
            images += count
            self._count_bytes(batch)
            if wanted is not None and images >= wanted and len(data) >= least_batches:
                return False
        return True

    def _count_bytes(self, batch: Any) -> None:
        for tensor in list_tensors(batch):
            device = tensor.device
            if device not in self._free:
                self._free[device] = find_free_bytes(device)
            self._bytes[device] = self._bytes.get(device, 0) + tensor.nbytes

    def _require_memory(self, batches: int) -> None:
        """Refuse one more batch where those that were read take more than half of the memory."""
        batches_take = "1 batch takes" if batches == 1 else f"{batches:,} batches take"
        for device, size in self._bytes.items():
            if 2 * size > self._free[device]:
                raise ValueError(
                    f"{self._caller}: {batches_take} {size:,} bytes, more than half of the memory that was free, and "
                    "there are more; pass max_images=, as a loader without end needs, or fewer batches"
                )
