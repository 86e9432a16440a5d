"""Images: what is counted, and what standard errors take to be independent."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import count_images

CountImages = Callable[[Any], Any]
"""Called with a batch; returns how many images it has (equal blocks of rows, in order), or an id for each row."""


class ImageCounter:
    """Counts the images of a batch, and sums the rows of a layer's input that belong to the same image.

    Args:
        function: the caller's function of a batch; None: the rows of the batch's first tensor are the images, or the
            members of a list of images.
        caller: the public call, for messages.
    """

    def __init__(self, function: CountImages | None, caller: str) -> None:
        if function is not None and not callable(function):
            raise TypeError(f"{caller}: images is a {type(function).__name__}; pass a function of a batch")
        self._function = function
        self._caller = caller

    @property
    def is_given(self) -> bool:
        """Return whether the caller says what the images are."""
        return self._function is not None

    def count(self, batch: Any) -> int:
        """Count the images of a batch."""
        if self._function is None:
            return count_images(batch)
        count_or_ids = self._ask(batch)
        return count_or_ids if isinstance(count_or_ids, int) else len(count_or_ids.unique())

    def sum_by_image(self, batch: Any, rows: Tensor) -> Tensor | None:
        """Sum the rows that belong to one image.

        Args:
            batch: the batch that is evaluated.
            rows: [..., R, C], a value for each row of a layer's input.

        Returns:
            [..., images, C]; `rows` themselves if the caller says nothing of images; None if they are not as many
            equal blocks as there are images, as the proposals of a detector are not.
        """
        if self._function is None:
            return rows
        count_or_ids = self._ask(batch)
        if isinstance(count_or_ids, int):
            return _sum_blocks(rows, count_or_ids)

        length = rows.shape[-2]
        if length % len(count_or_ids):
            raise ValueError(f"{self._caller}: images= gives {len(count_or_ids)} ids, and a layer gets {length} rows")
        image_of_id = count_or_ids.unique(return_inverse=True)[1]
        image_of_row = image_of_id.repeat_interleave(length // len(count_or_ids)).to(rows.device)
        sums = rows.new_zeros(*rows.shape[:-2], int(image_of_row.max()) + 1, rows.shape[-1])
        return sums.index_add(-2, image_of_row, rows)

    def _ask(self, batch: Any) -> int | Tensor:
        """Call the caller's function: a number of images, or an id for each row, int64 [R]."""
        assert self._function is not None
        returned = self._function(batch)
        is_integer_tensor = isinstance(returned, Tensor) and not returned.dim() and not returned.is_floating_point()
        is_integer = isinstance(returned, Integral) and not isinstance(returned, bool)
        if is_integer_tensor or is_integer:
            return int(returned)
        try:
            ids = torch.as_tensor(returned).cpu().flatten()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self._caller}: images= returned a {type(returned).__name__}; return how many images a batch has, or "
                "an id for each row"
            ) from error
        if not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{self._caller}: images= returned {returned!r}; return integers, an id for each row")
        return ids.long()


def _sum_blocks(rows: Tensor, blocks: int) -> Tensor | None:
    """Sum equal blocks of rows [..., R, C]; None if they cannot be made."""
    length = rows.shape[-2]
    if blocks < 1 or length % blocks:
        return None
    return rows.unflatten(-2, (blocks, length // blocks)).sum(-2)
