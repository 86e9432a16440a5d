"""data=package.module.function: a function of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Data, Parts, Size
from bnlab.harness.artifacts.data.own_parts import OwnParts, read_own
from bnlab.harness.artifacts.own import REQUIRED, add_arguments, find_arguments
from bnlab.harness.components import setting


@dataclass(unsafe_hash=True)
class OwnData(Data):
    """The user's own: `name` is the import path of a function that gives the training and the test part.

    Each part is a pair of images [N, C, H, W] (uint8 or floats) and labels [N], or a torchvision data set with images
    of one size. A third part may be the training part with random transforms: see `own_parts`. The function's arguments
    are settings, see `describe_own`.
    """

    has_any_name: ClassVar[bool] = True
    is_own: ClassVar[bool] = True
    unread: ClassVar[tuple[str, ...]] = ("root",)
    storage: ClassVar[tuple[str, ...]] = ("root",)
    flip: bool = setting(False, "augmentation: random horizontal flip")

    @property
    def flips(self) -> bool:
        return self.flip

    def size(self) -> Size:
        parts = self._read()
        images, labels = parts.train
        _, test_labels = parts.test
        return Size(
            available=len(labels),
            test=len(test_labels),
            pixels=images.shape[-1],
            classes=int(labels.max()) + 1,
        )

    def read(self) -> Parts:
        return Parts(*self._read())

    def has_known_range(self) -> bool:
        images, _ = self._read().train
        return not images.is_floating_point()

    def _read(self) -> OwnParts:
        return read_own(self.name, tuple(find_arguments(self).items()))


def describe_own(path: str) -> OwnData:
    """Make the configuration of a user's function: its arguments are settings; `root`, a folder, is "data" by default.

    Raises:
        UserError: it cannot be imported, or an argument has the name of a setting of bnlab's.
    """
    config = add_arguments(OwnData, path, ())(name=path)
    if getattr(config, "root", None) == REQUIRED:
        config.root = "data"  # type: ignore[attr-defined]
    return config
