"""The images that are predicted: as they are, corrupted, or in other fonts; `shifts` has their names.

A corruption changes an image [C, H, W], whose pixels are from 0 to 1, by an amount, and does not write to it; pixels of
the result may lie outside of 0 to 1. It draws from the generator that it is given, the same at each strength.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.common.files import digest
from bnlab.harness.artifacts.data import Data
from bnlab.harness.artifacts.dataset import Dataset, Split, load_dataset
from bnlab.harness.artifacts.shifts import CORRUPTIONS, find_corruption

_PLANE = (1, 2)  # the dimensions of height and width
_VERSION = "1"  # another one where the same strength gives other images, so that they are measured again
_VERSION_OF_LONG = "2"  # of images that are not square: shares were of the width
_REACH = 3  # standard deviations, beyond which the weights of a blur are 0


def blur(image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Take means with Gaussian weights; the amount is the standard deviation, a share of the shorter side."""
    deviation = amount * _find_shorter_side(image)
    reach = math.ceil(_REACH * deviation)
    distances = torch.arange(-reach, reach + 1)
    heights = torch.exp(-0.5 * (distances / deviation) ** 2)
    weights = (heights / heights.sum()).to(image)

    channels = image.unsqueeze(1)  # as images of one channel
    padded = F.pad(channels, [reach] * 4, mode="replicate")
    row = weights.view(1, 1, 1, -1)
    column = weights.view(1, 1, -1, 1)
    # A square of Gaussian weights is the product of a column and a row, which together are far fewer weights.
    blurred = F.conv2d(padded, row)
    blurred = F.conv2d(blurred, column)
    return blurred.squeeze(1)


def lower_contrast(image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Leave a share, the amount, of each pixel's difference to the mean of its channel."""
    mean = image.mean((1, 2), keepdim=True)
    difference = image - mean
    return mean + amount * difference


def add_noise(image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add normal noise to each pixel; the amount is its standard deviation."""
    noise = torch.randn(image.shape, generator=generator)
    return image + amount * noise


def occlude(image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Hide a square within the image; the amount is its side, a share of the image's shorter one, in whole pixels."""
    _, height, width = image.shape
    side = int(amount * _find_shorter_side(image))
    # Shares are drawn rather than pixels, whose number depends on the strength: each strength has to draw the same.
    down, across = torch.rand(2, generator=generator).tolist()
    places_down = height - side + 1
    places_across = width - side + 1
    top = int(down * places_down)
    left = int(across * places_across)

    hidden = image.clone()
    hidden[:, top : top + side, left : left + side] = 0
    return hidden


def translate(image: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Move up, down, left or right; the amount is a share of the shorter side, in whole pixels."""
    distance = int(amount * _find_shorter_side(image))
    quarters = int(torch.randint(4, (), generator=generator))

    # Down, in an image that is turned by so many quarters and then turned back.
    turned = image.rot90(quarters, _PLANE)
    height = turned.shape[1]
    padded = F.pad(turned, (0, 0, distance, 0))
    moved = padded[:, :height]
    return moved.rot90(-quarters, _PLANE)


def _find_shorter_side(image: Tensor) -> int:
    # Of lines of text or spectrograms a square with half of the width might hide all.
    return min(image.shape[1:])


CHANGES = {
    "blur": blur,
    "contrast": lower_contrast,
    "noise": add_noise,
    "occlusion": occlude,
    "translation": translate,
}
"""What changes an image, by the name of the corruption."""


def shift_images(dataset: Dataset, config: Data, split: str, shift: str) -> Split:
    """Select the images of a split that are predicted, see `Dataset.images_of`, and shift them."""
    if find_corruption(shift):
        return _corrupt(dataset, split, shift)
    if shift in config.list_shifts():
        # The shift of a data set's own is one of its settings, so that it is read once more with that.
        dataset = load_dataset(config.change_test_images(shift), dataset.test.images.device)
    return dataset.images_of(split)


def digest_of_shifted(dataset: Dataset, config: Data, split: str, shift: str) -> str:
    """Digest what `shift_images` gives; of a corruption by what it is made of, without corrupting any image."""
    if find_corruption(shift) is None:
        return shift_images(dataset, config, split, shift).digest
    stored = dataset.images_of(split)
    height, width = stored.images.shape[2:]
    version = _VERSION if height == width else _VERSION_OF_LONG
    return digest(stored.digest, shift, version, digits=16)


@lru_cache(maxsize=1)
def _corrupt(dataset: Dataset, split: str, shift: str) -> Split:
    """Corrupt the stored pixels of a split, clip them to their range and standardize them like those of training.

    Each image draws from a generator that its pixels and the corruption seed: what is drawn depends neither on other
    images nor on the strength.
    """
    name, _, strength = shift.partition(":")
    change = CHANGES[name]
    amount = CORRUPTIONS[name].amounts[int(strength) - 1]
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)

    plain = dataset.images_of(split)
    # On the CPU, where the generators draw, so that accelerators predict the same images.
    images = torch.empty_like(plain.images, device="cpu")
    for index, image in enumerate(plain.images.cpu()):
        # Standardizing has rounded. Stored pixels are whole numbers, and rounding gives them back exactly.
        stored = (image * std + mean).round()
        pixels = stored.to(torch.uint8).contiguous().numpy().data
        seed = int(digest(name, pixels, digits=12), 16)
        generator = torch.Generator().manual_seed(seed)
        corrupted = change(stored / dataset.largest, amount, generator)
        images[index] = (corrupted.clamp(0, 1) * dataset.largest - mean) / std
    return Split(images.to(plain.images.device), plain.labels)
