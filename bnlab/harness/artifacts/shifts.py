"""Shifts between the images of training and those that are predicted: corrupted pixels, or other fonts.

A shift is `none`, a corruption with its strength, such as `noise:1`, or the fonts of glyphs, such as `fonts:dejavu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bnlab.files import digest
from bnlab.harness.artifacts.corruptions import CORRUPTIONS, STRENGTHS, Corruption, find_corruption
from bnlab.harness.artifacts.data import Data, Dataset, Split, load_dataset
from bnlab.harness.components import require_one_of
from bnlab.harness.errors import UserError


def list_corrupting() -> list[str]:
    """List the shifts that corrupt pixels: each corruption in each strength."""
    return [f"{name}:{strength}" for name in CORRUPTIONS for strength in STRENGTHS]


def check(shifts: Sequence[Any], config: Data, splits: Sequence[str]) -> None:
    """Raise UserError unless the images of these splits have each of these shifts."""
    known = ["none", *list_corrupting()]
    if [*splits] == ["test"]:
        known += config.list_shifts()

    for shift in shifts:
        require_one_of("shifts", shift, known)
        if find_corruption(shift) and not config.has_known_range():
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
    if find_corruption(shift):
        return _corrupt(dataset, split, shift)
    return _change_test_images(dataset, config, shift).images_of(split)


def digest_of_shifted(dataset: Dataset, config: Data, split: str, shift: str) -> str:
    """Digest what `shift_images` gives, without corrupting any image."""
    images = _change_test_images(dataset, config, shift).images_of(split)
    corruption = find_corruption(shift)
    if corruption is None:
        return images.digest
    return _digest(images, shift, corruption)


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
    name, _, strength = shift.partition(":")
    corruption = CORRUPTIONS[name]
    amount = corruption.amount_of(int(strength))
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)

    plain = dataset.images_of(split)
    images = torch.empty_like(plain.images, device="cpu")
    for index, image in enumerate(plain.images.cpu()):
        stored = (image * std + mean).round()
        generator = _make_generator(name, stored)
        corrupted = corruption.apply(stored / dataset.largest, amount, generator)
        pixels = corrupted.clamp(0, 1)
        images[index] = (pixels * dataset.largest - mean) / std

    on_device = images.to(plain.images.device)
    return Split(on_device, plain.labels, _digest(plain, shift, corruption))


def _make_generator(name: str, stored: Tensor) -> torch.Generator:
    """Make the generator of one image, of which the name of the corruption and the stored pixels are the seed."""
    pixels = stored.to(torch.uint8).contiguous().numpy().data
    seed = int(digest(name, pixels, digits=12), 16)
    return torch.Generator().manual_seed(seed)


def _digest(plain: Split, shift: str, corruption: Corruption) -> str:
    """Digest the images that a corruption makes of a split, by what they are made of."""
    return digest(plain.digest, shift, str(corruption.version), digits=16)
