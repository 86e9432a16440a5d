"""What is known of a data set, and what it is made of: its size, its parts, and images that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    Pixels = tuple[Tensor, Tensor]
    """Images [N, C, H, W], uint8 or float32, and labels [N, ...], int64 or float32; of classes int64 [N]."""
    Draw = Callable[[Tensor, int], Tensor]
    """Gives images [N, C, H, W] of these numbers, always the same for a seed."""


class Size(NamedTuple):
    """The size of a data set."""

    available: int  # training and validation images
    test: int
    pixels: int  # of the shorter side
    classes: int


class Parts(NamedTuple):
    """Images and labels as they are stored; training and validation images are one part."""

    train: Pixels
    test: Pixels
    augmented: Draw | None = None  # draws images of the training part with random transforms of the user's
    content: str = ""  # see `Data.find_content`


class Description(NamedTuple):
    """What is known of a user's data set without keeping its images."""

    size: Size
    content: str
    has_known_range: bool
    has_maps: bool  # labels are maps, [N, ..., H, W]
    label_fault: str
