"""data=package.module.function: a function of the user's, which gives the training and the test part.

A third part may be the training part with random transforms. All measurements read the first two, which have to be the
same whenever they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

from bnlab.harness.artifacts.data.base import Data
from bnlab.harness.artifacts.data.parts import Description, Parts, Size
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, own
from bnlab.harness.settings import setting
from bnlab.harness.user_code import SOURCE


@own
@dataclass(eq=False)
class OwnData(Own, Data):
    """The user's own: `name` is the import path of a function that gives the training and the test part.

    Each part is a pair of images [N, C, H, W] (uint8 or floats) and labels [N, ...], or a data set of such pairs with
    images of one size. An argument `root`, a folder, is "data" by default.
    """

    usual: ClassVar[dict[str, Any]] = {"root": "data"}
    flip: bool = setting(False, "augmentation: random horizontal flip")

    def digest(self) -> dict[str, str]:
        """Digest images and labels, since what a function gives is known; of random transforms code and arguments."""
        # A planned job has its content; before that the function has to be called for it. With random
        # transforms it has two parts, see `_digest_parts`.
        content, _, source = (self.content or self.find_content()).partition("-")
        return {"content": content, SOURCE: source} if source else {"content": content}

    def identify(self) -> dict[str, Any]:
        """Collect what names networks: the content, in place of the arguments, by which it may be found elsewhere."""
        settings = super().identify()
        return {key: value for key, value in settings.items() if key not in self.arguments}

    def find_content(self) -> str:
        return self._describe().content

    def find_size(self) -> Size:
        return self._describe().size

    def has_known_range(self) -> bool:
        return self._describe().has_known_range

    def find_label_fault(self) -> str:
        return self._describe().label_fault

    @property
    def has_maps(self) -> bool:
        return self._describe().has_maps

    def read(self) -> Parts:
        parts = read_own(self.name, self._list_arguments())
        if self.content not in ("", parts.content):
            raise UserError(
                f"data={self.name}: gives other images or labels than those that this network is named by; "
                "give it those, or sweep again: these train a network of their own (a function has to give the same "
                "images whenever it is called)"
            )
        return parts

    def _describe(self) -> Description:
        return describe_own(self.name, self._list_arguments())

    def _list_arguments(self) -> tuple[tuple[str, Any], ...]:
        # A tuple, because caches need keys that can be hashed.
        return tuple(self.arguments.items())


@cache  # a sweep asks thousands of times, of more sets of arguments than there is memory for images
def describe_own(path: str, arguments: tuple[tuple[str, Any], ...]) -> Description:
    """Read a user's data set, and describe it."""
    from bnlab.harness.artifacts.data.images.own_images import describe_parts

    return describe_parts(read_own(path, arguments))


@lru_cache(maxsize=2)
def read_own(path: str, arguments: tuple[tuple[str, Any], ...]) -> Parts:
    """Read a user's data set."""
    from bnlab.harness.artifacts.data.images.own_images import read_parts

    return read_parts(path, dict(arguments))


def forget_own() -> None:
    """Forget what has been read: the functions are called again, as by a new process."""
    read_own.cache_clear()
    describe_own.cache_clear()
