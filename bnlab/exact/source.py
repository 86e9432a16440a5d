"""Reading the caller's batches, and noticing where a loader has written the next batch into the memory of one before.

Batches are kept as they are, without a copy: that is exact unless their memory is refilled. Some values of each batch
are therefore copied when it is read, and compared when all have been read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bnlab.memory import read_free_bytes
from bnlab.model.batches import copy_batch, count_bytes, is_dense, list_arrays, list_tensors

_VALUES = 1024  # of each tensor and array that are compared
_GOLDEN = 0.6180339887498949
_CPU = torch.device("cpu")


class Source:
    """Reads the caller's batches as far as they are wanted.

    Args:
        batches: what the caller gave.
        count: counts the images of a batch.
        caller: the public call, for messages.
    """

    def __init__(self, batches: Iterable[Any], count: Callable[[Any], int], caller: str) -> None:
        self._source = batches
        self._iterator: Iterator[Any] = iter(batches)
        self._count = count
        self._caller = caller
        self._are_copied = False
        self._values: list[list[Any]] = []  # some of each batch, from when it was read
        self._free: dict[torch.device, int] = {}  # bytes, when a device's first batch was read
        self._bytes = Counter[torch.device]()  # of all batches so far

    def read(self, data: list[Any], wanted: int | None, least_batches: int = 1) -> bool:
        """Add batches to `data`, at least one, until they are as many images and batches as wanted.

        Where a loader has refilled the memory of a batch, all are read again from the start, and copied.

        Args:
            data: the batches so far.
            wanted: number of images; None: all there are.
            least_batches: number of batches.

        Returns:
            Whether there are no further batches.

        Raises:
            ValueError: a batch has no images; batches of a loader take more than half of the memory that was free; or
                memory was refilled, and the batches cannot be read again.
        """
        is_exhausted = self._read(data, wanted, least_batches)
        # The loader cannot write into copies, so that they need not be compared.
        if self._are_copied or self._find_changed(data) is None:
            return is_exhausted

        number = len(data)
        self._start_again(data)
        is_exhausted = self._read(data, wanted, least_batches)
        # It is no iterator, but can be read only once all the same: its `__iter__` gives the same generator.
        if not data:
            raise ValueError(f"{self._caller}: {self._describe_refill(number)}")
        return is_exhausted

    def require_unchanged(self, data: list[Any]) -> None:
        """Raise ValueError if a batch has changed since it was read, as by a thread that goes on filling memory."""
        changed = self._find_changed(data)
        if changed is not None:
            batch = f"batch {changed + 1} of {len(data)}"
            raise ValueError(
                f"{self._caller}: {batch} has been written into while it was measured, and is not put back; pass "
                "copies, such as images.clone(), or let forward= write into copies"
            )

    def _read(self, data: list[Any], wanted: int | None, least_batches: int) -> bool:
        images = sum(map(self._count, data))
        # Batches of a list are there already, and reading them takes no memory unless they are copied.
        is_in_memory = isinstance(self._source, (list, tuple)) and not self._are_copied
        for loaded in self._iterator:
            # The limit is checked only when there is a further batch, so that data which end here are never refused.
            if not is_in_memory:
                self._require_memory(len(data))
            batch = copy_batch(loaded, None) if self._are_copied else loaded
            count = self._count(batch)
            if count < 1:
                raise ValueError(f"{self._caller}: a batch has no images; leave empty batches out")
            data.append(batch)
            self._values.append(_take_values(batch))
            images += count
            for tensor in list_tensors(batch):
                if tensor.device not in self._free:
                    # Read only once: later on, the batches read so far would be missing from it.
                    self._free[tensor.device] = read_free_bytes(tensor.device)
                self._bytes[tensor.device] += count_bytes(tensor)
            if wanted is not None and images >= wanted and len(data) >= least_batches:
                return False
        return True

    def _start_again(self, data: list[Any]) -> None:
        """Go back to the start, and copy batches from now on; ValueError if the caller gave an iterator."""
        again = iter(self._source)
        # `iter` returns an iterator itself, which cannot begin again.
        if again is self._source:
            raise ValueError(f"{self._caller}: {self._describe_refill(len(data))}")
        self._iterator = again
        self._are_copied = True
        data.clear()
        self._values.clear()
        self._bytes.clear()

    def _describe_refill(self, number: int) -> str:
        return (
            f"the loader writes a batch into the memory of one before it ({number} were read), and cannot be read "
            "again, to copy them; yield copies, such as images.clone(), or pass the loader itself, not an iterator"
        )

    def _find_changed(self, data: list[Any]) -> int | None:
        """Return the number of the first batch that has other values than when it was read; None if there is none."""
        differences = [_compare(before, _take_values(batch)) for batch, before in zip(data, self._values, strict=True)]
        if not differences:
            return None
        # One read for all: on an accelerator no comparison waits for the device.
        are_different = torch.stack([each.to(differences[0].device) for each in differences]).tolist()
        return are_different.index(True) if True in are_different else None

    def _require_memory(self, batches: int) -> None:
        """Refuse one more batch where those that were read take more than half of the memory."""
        batches_take = "1 batch takes" if batches == 1 else f"{batches:,} batches take"
        for device, size in self._bytes.items():
            if 2 * size > self._free[device]:
                raise ValueError(
                    f"{self._caller}: {batches_take} {size:,} bytes, more than half of the memory that was free, and "
                    "there are more; pass max_images=, as a loader without end needs, or fewer batches"
                )


def _take_values(batch: Any) -> list[Any]:
    """Copy some values of each tensor and array of a batch, which another batch hardly shares."""
    tensors = [tensor for tensor in list_tensors(batch) if is_dense(tensor)]
    arrays = [array for array in list_arrays(batch) if not array.dtype.hasobject]
    of_tensors = [_take(_view_bytes(each), _choose_places(each.numel(), each.device)) for each in tensors]
    of_arrays = [array.flat[_choose_places(array.size, _CPU).numpy()] for array in arrays]
    return [*of_tensors, *of_arrays]


def _take(tensor: Tensor, places: Tensor) -> Tensor:
    if tensor.device.type == "mps":  # for which there is no torch.take
        return tensor.flatten()[places]
    return torch.take(tensor, places)  # copies nothing else, whatever the layout in memory


def _view_bytes(tensor: Tensor) -> Tensor:
    """View types of one byte as whole numbers: not all of them can be indexed."""
    detached = tensor.detach()
    return detached.view(torch.uint8) if tensor.element_size() == 1 else detached


@lru_cache(maxsize=64)
def _choose_places(count: int, device: torch.device) -> Tensor:
    """Choose the places of the values that are compared: spread over all, by the golden ratio.

    Not at equal distances: these might all lie in the first column of images, which may be black in each.
    """
    if count <= _VALUES:
        return torch.arange(count, device=device)
    shares = torch.arange(1, _VALUES + 1, dtype=torch.float64, device=_CPU) * _GOLDEN % 1
    return (shares * count).long().to(device)


def _compare(before: list[Any], now: list[Any]) -> Tensor:
    """Return whether values differ, as a tensor without axes; NaN does not differ from itself."""
    # A loader may put a tensor of another shape into the same dictionary, such as a smaller last batch.
    if [_describe(values) for values in before] != [_describe(values) for values in now]:
        return torch.tensor(True)
    differences = []
    for old, new in zip(before, now, strict=True):
        if isinstance(old, Tensor):
            differences.append((old.view(torch.uint8) != new.view(torch.uint8)).any())
        elif old.tobytes() != new.tobytes():
            return torch.tensor(True)
    if not differences:
        return torch.tensor(False)
    # They stay on the device of the first: bringing something there from the CPU would wait for it.
    place = differences[0].device
    return torch.stack([each.to(place) for each in differences]).any()


def _describe(values: Any) -> tuple[Any, ...]:
    return (*values.shape, values.dtype, values.device if isinstance(values, Tensor) else None)
