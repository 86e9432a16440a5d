"""Shifts between the images of training and those that are predicted: corrupted pixels, or other fonts.

A shift is `none`, a corruption with its strength, such as `noise:1`, or the fonts of glyphs, such as `fonts:dejavu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from bnlab.files import digest
from bnlab.harness.artifacts.corruptions import CORRUPTIONS, STRENGTHS, find_corruption
from bnlab.harness.artifacts.data import Data, Dataset, Split, load_dataset
from bnlab.harness.components import require_one_of
from bnlab.harness.errors import UserError


def check(shifts: Sequence[Any], config: Data, splits: Sequence[str]) -> None:
    """Raise UserError unless the images of these splits have each of these shifts."""
    known = ["none", *(f"{name}:{strength}" for name in CORRUPTIONS for strength in STRENGTHS)]
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


def shift_images(dataset: Dataset, config: Data, split: str, shift: str) -> Split:
    """Select the images of a split that are predicted, see `Dataset.images_of`, and shift them."""
    if find_corruption(shift):
        return _corrupt(dataset, split, shift)
    if shift in config.list_shifts():
        dataset = load_dataset(config.change_test_images(shift), dataset.test.images.device)
    return dataset.images_of(split)


def digest_of_shifted(dataset: Dataset, config: Data, split: str, shift: str) -> str:
    """Digest what `shift_images` gives; of a corruption by what it is made of, without corrupting any image."""
    corruption = find_corruption(shift)
    if corruption is None:
        return shift_images(dataset, config, split, shift).digest
    return digest(dataset.images_of(split).digest, shift, str(corruption.version), digits=16)


@lru_cache(maxsize=1)
def _corrupt(dataset: Dataset, split: str, shift: str) -> Split:
    """Corrupt the stored pixels of a split, clip them to their range and standardize them like those of training.

    Each image draws from a generator that its pixels and the corruption seed: what is drawn depends neither on other
    images nor on the strength.
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
        pixels = stored.to(torch.uint8).contiguous().numpy().data
        seed = int(digest(name, pixels, digits=12), 16)
        generator = torch.Generator().manual_seed(seed)
        corrupted = corruption.apply(stored / dataset.largest, amount, generator)
        images[index] = (corrupted.clamp(0, 1) * dataset.largest - mean) / std
    return Split(images.to(plain.images.device), plain.labels)
