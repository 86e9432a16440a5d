"""Reading the caller's batches. They are kept for several forwards, so that what a loader gives is copied, once.

Loaders may write the next batch into the memory of one before. The batches of a list lie there already, and stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from bnlab.exact.task import CALLER
from bnlab.memory import read_free_bytes
from bnlab.model.batches import copy_batch, count_bytes, list_tensors


class Source:
    """Reads the caller's batches as far as they are wanted.

    Args:
        batches: what the caller gave.
        count: counts the images of a batch.
    """

    def __init__(self, batches: Iterable[Any], count: Callable[[Any], int]) -> None:
        self._is_list = isinstance(batches, (list, tuple))
        self._iterator: Iterator[Any] = iter(batches)
        self._count = count
        self._free: dict[torch.device, int] = {}  # bytes, when a device's first batch was read
        self._bytes = Counter[torch.device]()  # of all copies so far

    def read(self, data: list[Any], wanted: int | None, least_batches: int = 1) -> bool:
        """Add batches to `data`, at least one, until they are as many images and batches as wanted.

        Args:
            data: the batches so far.
            wanted: number of images; None: all there are.
            least_batches: number of batches.

        Returns:
            Whether there are no further batches.

        Raises:
            ValueError: a batch has no images, or copies take more than half of the memory that was free.
        """
        images = sum(map(self._count, data))
        for batch in self._iterator:
            count = self._count(batch)
            if count < 1:
                raise ValueError(f"{CALLER}: a batch has no images; leave empty batches out")
            data.append(batch if self._is_list else self._copy(batch, len(data)))
            images += count
            if wanted is not None and images >= wanted and len(data) >= least_batches:
                return False
        return True

    def _copy(self, batch: Any, batches: int) -> Any:
        """Copy a batch; ValueError where those before it take more than half of the memory."""
        # Checked only when there is a further batch, so that data which end here are never refused.
        for device, size in self._bytes.items():
            if 2 * size > self._free[device]:
                raise ValueError(
                    f"{CALLER}: the first {batches:,} batches take {size:,} bytes, more than half of the memory "
                    "that was free, and there are more; pass max_images=, as a loader without end needs, or fewer "
                    "batches"
                )
        for tensor in list_tensors(batch):
            if tensor.device not in self._free:
                # Read only once: later on, the batches read so far would be missing from it.
                self._free[tensor.device] = read_free_bytes(tensor.device)
            self._bytes[tensor.device] += count_bytes(tensor)
        return copy_batch(batch, None)
