"""Shifts between the images of training and those that are predicted: corrupted pixels, or other fonts.

A shift is `none`, a corruption with its strength, such as `noise:1`, or the fonts of glyphs, such as `fonts:dejavu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.files import digest
from bnlab.harness.artifacts.data import Data, Dataset, Split, load_dataset
from bnlab.harness.checks import require_one_of
from bnlab.harness.errors import UserError

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
"""A function that changes an image [C, H, W] of pixels from 0 to 1 by an amount, with numbers from a generator."""


def add_noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of this standard deviation to each pixel."""
    return image + deviation * torch.randn(image.shape, generator=generator)


def blur(image: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Average with Gaussian weights; the deviation is a share of the width. Outside of the image its edges go on."""
    deviation = width * image.shape[-1]
    reach = math.ceil(3 * deviation)
    distances = torch.arange(-reach, reach + 1)
    heights = torch.exp(-0.5 * (distances / deviation) ** 2)
    weights = (heights / heights.sum()).to(image)

    row = weights.view(1, 1, 1, -1)
    column = weights.view(1, 1, -1, 1)
    channels = image[:, None]  # as images of one channel
    padded = F.pad(channels, [reach] * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, row), column)
    return blurred[:, 0]


def reduce_contrast(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Keep this share of each pixel's difference to the mean of its channel."""
    mean = image.mean((1, 2), keepdim=True)
    return mean + share * (image - mean)


def translate(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Move up, down, left or right, by a share of the width in whole pixels; pixels that come in are 0."""
    distance = int(share * image.shape[-1])
    turns = int(torch.randint(4, (), generator=generator))
    turned = image.rot90(turns, (1, 2))
    height = turned.shape[1]
    padded = F.pad(turned, (0, 0, distance, 0))
    moved = padded[:, :height]
    return moved.rot90(-turns, (1, 2))


def occlude(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Put a square of 0 anywhere within the image, its side a share of the width in whole pixels."""
    _, height, width = image.shape
    side = int(share * width)
    down, across = torch.rand(2, generator=generator).tolist()
    top = int(down * (height - side + 1))
    left = int(across * (width - side + 1))
    hidden = image.clone()
    hidden[:, top : top + side, left : left + side] = 0
    return hidden


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (add_noise, (0.1, 0.2, 0.3)),
    "blur": (blur, (1 / 32, 2 / 32, 3 / 32)),
    "contrast": (reduce_contrast, (0.5, 0.3, 0.15)),
    "translation": (translate, (1 / 8, 2 / 8, 3 / 8)),
    "occlusion": (occlude, (1 / 4, 3 / 8, 1 / 2)),
}
"""Corruptions by name, with the amounts of strength 1, 2 and 3."""
_VERSION = 1  # raise the number when the same shift gives other images


def check(shifts: Sequence[Any], config: Data, splits: Sequence[str]) -> None:
    """Raise UserError unless the images of these splits have each of these shifts."""
    known = ["none", *(f"{kind}:{strength}" for kind in CORRUPTIONS for strength in (1, 2, 3))]
    if [*splits] == ["test"]:
        known += config.list_shifts()
    for shift in shifts:
        require_one_of("shifts", shift, known)
        if _is_corruption(shift) and not config.has_known_range():
            raise UserError(
                f"shifts={shift}: data={config.name} has float images, of which black and white are not known; "
                "give bytes (uint8), which are standardized too"
            )
        if shift != "none" and "test" in splits and config.own_shift:
            raise UserError(f"shifts={shift}: the test images have other fonts already; use data.test_fonts=data.fonts")


def list_predictions(config: Data, splits: Sequence[str], shifts: Sequence[str]) -> list[tuple[str, str]]:
    """List each split with each shift, once. Test images that have other fonts anyway have these for a shift."""
    own = {("test", "none"): ("test", config.own_shift or "none")}
    pairs = [(split, shift) for split in splits for shift in shifts]
    return list(dict.fromkeys(own.get(pair, pair) for pair in pairs))


def shift_images(dataset: Dataset, config: Data, split: str, shift: str) -> Split:
    """Select the images of a split that are predicted, see `Dataset.images_of`, and shift them.

    Args:
        dataset: as it was loaded.
        config: which data set it is.
        split: test, val or train.
        shift: as above.
    """
    if _is_corruption(shift):
        return _corrupt(dataset, split, shift)
    return _change_test_images(dataset, config, shift).images_of(split)


def digest_of_shifted(dataset: Dataset, config: Data, split: str, shift: str) -> str:
    """Digest what `shift_images` gives, without corrupting any image."""
    images = _change_test_images(dataset, config, shift).images_of(split)
    return _digest(images, shift) if _is_corruption(shift) else images.digest


def _is_corruption(shift: str) -> bool:
    return shift.partition(":")[0] in CORRUPTIONS


def _change_test_images(dataset: Dataset, config: Data, shift: str) -> Dataset:
    """Load the same data set with other test images, if that is the shift."""
    if shift not in config.list_shifts():
        return dataset
    return load_dataset(config.change_test_images(shift), dataset.test.images.device)


@lru_cache(maxsize=1)
def _corrupt(dataset: Dataset, split: str, shift: str) -> Split:
    """Corrupt the stored pixels of a split, clip them to their range and standardize them like those of training.

    Each image draws from a generator of its own, which its pixels and the corruption seed: what is drawn depends
    neither on the other images nor on the strength.
    """
    kind, _, strength = shift.partition(":")
    corruption, amounts = CORRUPTIONS[kind]
    amount = amounts[int(strength) - 1]
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)

    plain = dataset.images_of(split)
    images = torch.empty_like(plain.images, device="cpu")
    for index, image in enumerate(plain.images.cpu()):
        stored = (image * std + mean).round()
        corrupted = corruption(stored / dataset.largest, amount, _seed(kind, stored))
        pixels = corrupted.clamp(0, 1)
        images[index] = (pixels * dataset.largest - mean) / std
    return Split(images.to(plain.images.device), plain.labels, _digest(plain, shift))


def _seed(kind: str, stored: Tensor) -> torch.Generator:
    pixels = stored.to(torch.uint8).contiguous().numpy().data
    seed = int(digest(kind, pixels, digits=12), 16)
    return torch.Generator().manual_seed(seed)


def _digest(plain: Split, shift: str) -> str:
    return digest(plain.digest, shift, str(_VERSION), digits=16)
