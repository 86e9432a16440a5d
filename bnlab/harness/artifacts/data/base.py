"""The base of all data sets: settings, the size that is known without reading, and how images and labels are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from bnlab.harness.artifacts.data.parts import Parts, Size
from bnlab.harness.errors import UserError
from bnlab.harness.settings import Component, require_within, setting
from bnlab.harness.updates import count_training

# A tenth of them, rounded down, are validation images, of which there has to be one.
_FEWEST = 10  # training and validation images


# Hashable, because `load_dataset` caches by it; not frozen, because a user's arguments are set as attributes.
@dataclass(unsafe_hash=True)
class Data(Component):
    """A data set; its split into training, validation and test images is the same for every run."""

    group: ClassVar[str] = "data"
    is_made: ClassVar[bool] = False  # True: images are drawn by a program, as many as `images` says
    largest: ClassVar[float] = 255  # the value of a white pixel as it is stored; a black one is 0

    images: int | None = setting(None, "training and validation images to use; null: all, or as many as are usual")
    shift: int = setting(0, "augmentation: largest random shift, in pixels")
    content: str = field(default="", metadata={"omegaconf_ignore": True})  # see `find_content`; nothing that is set

    @property
    def flips(self) -> bool:
        """True if training images are mirrored at random."""
        return getattr(self, "flip", False)  # a setting of data whose classes stay the same in a mirror

    def find_content(self) -> str:
        """Digest what `read` gives, which is part of a network's name; empty where the other settings say it all.

        A job has it as `content` once it is planned.
        """
        return ""

    def find_size(self) -> Size:
        """Find out how large it is; only a data set of the user's own is read for it."""
        raise NotImplementedError

    def read(self) -> Parts:
        """Read all images and labels; UserError for files that are missing or corrupt."""
        raise NotImplementedError

    def has_known_range(self) -> bool:
        """Return whether the smallest and the largest value of a stored pixel are known."""
        return True

    def find_label_fault(self) -> str:
        """Say why its labels are not the numbers of classes; empty where they are."""
        return ""

    @property
    def has_maps(self) -> bool:
        """True if labels are maps, [N, ..., H, W], which would have to be moved as images are."""
        return False

    def list_shifts(self) -> list[str]:
        """List shifts of the test images that this data set has beside the corruptions."""
        return []

    def change_test_images(self, shift: str) -> Data:
        """Return the data set with this shift of `list_shifts`."""
        return self

    def check(self) -> None:
        """Raise UserError for a value out of range, or files that are neither there nor to be downloaded."""
        size = self.find_size()
        half = size.pixels // 2
        require_within("data.shift", self.shift, 0, half, f"half of the {size.pixels} pixels of the shorter side")

        if size.available < _FEWEST and not self.is_made:
            raise UserError(f"data={self.name}: has {size.available} training images; at least {_FEWEST} are needed")

        used = self.count_used()
        most = math.inf if self.is_made else size.available
        require_within("data.images", used, _FEWEST, most)

    def count_used(self) -> int:
        """Count training and validation images."""
        return self.find_size().available if self.images is None else self.images

    def count_training(self) -> int:
        """Count training images: nine in ten of those that are used."""
        used = self.count_used()
        return count_training(used)
