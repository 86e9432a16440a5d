"""Images: what is counted, and what standard errors take for independent."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from bnlab.batches import count_images

CountImages = Callable[[Any], Any]
"""Called with a batch; how many images it has (equal blocks of rows, in order), or an id for each row."""


class Images:
    """How many images a batch has, and which rows of a layer's input belong to the same one.

    Args:
        given: what the caller says; None: rows of the first tensor, and the length of a list of images.
        caller: the public call on whose behalf this is.
    """

    def __init__(self, given: CountImages | None, caller: str) -> None:
        if given is not None and not callable(given):
            raise TypeError(f"{caller}: images is a {type(given).__name__}; pass a function of a batch")
        self._given = given
        self._caller = caller

    @property
    def is_told(self) -> bool:
        """Whether the caller says it."""
        return self._given is not None

    def count(self, batch: Any) -> int:
        """How many images a batch has."""
        if self._given is None:
            return count_images(batch)
        told = self._ask(batch)
        return told if isinstance(told, int) else len(told.unique())

    def sum_by_image(self, batch: Any, rows: Tensor) -> Tensor | None:
        """Sum what belongs to one image.

        Args:
            batch: the one that is evaluated.
            rows: [..., R, C], of the rows of a layer's input.

        Returns:
            [..., images, C]; `rows` as they are where the caller says nothing; None where the rows are no equal
            blocks, as the proposals of a detector.
        """
        if self._given is None:
            return rows
        told = self._ask(batch)
        count = rows.shape[-2]
        if isinstance(told, int):
            if told < 1 or count % told:
                return None
            return rows.unflatten(-2, (told, count // told)).sum(-2)
        if count % len(told):
            raise ValueError(f"{self._caller}: images= gives {len(told)} ids, and a layer gets {count} rows")
        ids = told.unique(return_inverse=True)[1].repeat_interleave(count // len(told)).to(rows.device)
        summed = rows.new_zeros(*rows.shape[:-2], int(ids.max()) + 1, rows.shape[-1])
        return summed.index_add(-2, ids, rows)

    def _ask(self, batch: Any) -> int | Tensor:
        """A number of images, or an id for each row, int64 [R]."""
        assert self._given is not None
        told = self._given(batch)
        is_number = isinstance(told, Tensor) and not told.dim() and not told.is_floating_point()
        if is_number or (isinstance(told, Integral) and not isinstance(told, bool)):
            return int(told)
        try:
            ids = torch.as_tensor(told).cpu().flatten()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self._caller}: images= returned a {type(told).__name__}; return how many images a batch has, or an "
                "id for each row"
            ) from error
        if not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{self._caller}: images= returned {told!r}; return integers, an id for each row")
        return ids.long()
