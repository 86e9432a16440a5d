"""data=glyphs"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from bnlab.harness.artifacts.data.base import Data
from bnlab.harness.artifacts.data.fonts import CLASSES, FONTS, SIZE
from bnlab.harness.artifacts.data.parts import Parts, Size
from bnlab.harness.settings import component, require_one_of, setting

_USUAL = 20_000  # training and validation images
_MOST_TESTED = 5_000


@component
@dataclass(unsafe_hash=True)
class Glyphs(Data):
    """Images of 32×32 pixels made on the spot, usually 20,000: characters, distorted."""

    is_made: ClassVar[bool] = True
    name: str = "glyphs"
    classes: int = setting(36, "10 digits, 36 with capitals, 62 with small letters")
    fonts: str = setting("all", "fonts of the images", choices=tuple(FONTS))
    other_fonts: str = field(
        default="", metadata={"omegaconf_ignore": True}
    )  # of the test images under a shift; empty: those of training

    def find_size(self) -> Size:
        count = _USUAL if self.images is None else self.images
        tested = min(_MOST_TESTED, count // 4)
        return Size(available=count, test=tested, pixels=SIZE, classes=self.classes)

    def check(self) -> None:
        require_one_of("data.classes", self.classes, CLASSES)
        super().check()

    def read(self) -> Parts:
        from bnlab.harness.artifacts.data.images.rendering import glyphs

        size = self.find_size()
        train = glyphs(size.available, self.classes, self.fonts, seed=0)
        test = glyphs(size.test, self.classes, self.other_fonts or self.fonts, seed=1)
        return Parts(train, test)

    def list_shifts(self) -> list[str]:
        return [f"fonts:{name}" for name in FONTS if name != self.fonts]

    def change_test_images(self, shift: str) -> Glyphs:
        return replace(self, other_fonts=shift.partition(":")[2])
