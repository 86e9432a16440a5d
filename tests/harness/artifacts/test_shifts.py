"""What is predicted under shifts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions import CORRUPTIONS, Corruption
from bnlab.harness.artifacts.data import Data, Dataset, Digits, Glyphs, Split, load_dataset
from bnlab.harness.artifacts.shifts import (
    check,
    digest_of_shifted,
    list_corrupting,
    list_predictions,
    shift_images,
)
from bnlab.harness.errors import UserError

SHIFTS = list_corrupting()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(channels: int = 3, size: int = 8, largest: int = 255, images: int = 12) -> Dataset:
    """A data set of random pixels, standardized as its training split."""
    shape = (images, channels, size, size)
    stored = torch.randint(largest + 1, shape, generator=draw()).double()
    mean = stored.mean((0, 2, 3))
    std = stored.std((0, 2, 3))
    pixels = (stored - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    pixels = pixels.float().contiguous(memory_format=torch.channels_last)
    split = Split(pixels, torch.arange(images), "made")
    return Dataset(
        train=split,
        val=split,
        test=split,
        classes=10,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        largest=largest,
    )


def restore_pixels(dataset: Dataset, images: Tensor) -> Tensor:
    """As shares of the largest value, float64."""
    mean = torch.tensor(dataset.mean, dtype=torch.float64).view(-1, 1, 1)
    std = torch.tensor(dataset.std, dtype=torch.float64).view(-1, 1, 1)
    return (images.double() * std + mean) / dataset.largest


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("channels", "size", "largest"), [(1, 8, 16), (3, 32, 255)])
def test_stored_pixels_are_corrupted(shift: str, channels: int, size: int, largest: int) -> None:
    """As shares of their largest value, clipped; each image by itself, whatever the others are and in any order."""
    dataset = make(channels, size, largest)
    order = torch.randperm(12, generator=draw(1))[:7]
    found = shift_images(dataset, Digits(), "test", shift)
    plain = restore_pixels(dataset, dataset.test.images)
    pixels = restore_pixels(dataset, found.images)

    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    assert not torch.equal(plain, pixels)
    assert torch.equal(found.labels, dataset.test.labels)
    assert found.digest != dataset.test.digest
    assert found.images.is_contiguous(memory_format=torch.channels_last)

    fewer = Split(dataset.test.images[order], dataset.test.labels[order], "fewer")
    alone = shift_images(replace(dataset, test=fewer), Digits(), "test", shift)
    assert torch.equal(alone.images, found.images[order])


def test_a_digest_for_each_split_and_shift() -> None:
    config = Digits()
    dataset = load_dataset(Digits())
    splits = ("test", "val", "train")
    shifts = ("none", *SHIFTS)

    digests = {digest_of_shifted(dataset, config, split, shift) for split in splits for shift in shifts}
    assert len(digests) == len(splits) * len(shifts)

    blurred = shift_images(dataset, config, "val", "blur:2")
    assert digest_of_shifted(dataset, config, "val", "blur:2") == blurred.digest


def test_a_corruption_is_known_once_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^shifts=negative:3: must be one of none, blur:1"):
        check(["negative:3"], Digits(), ["test"])

    negative = Corruption(lambda image, amount, generator: amount - image, (0.5, 0.75, 1.0), "black for white")
    monkeypatch.setitem(CORRUPTIONS, "negative", negative)
    dataset = make(largest=16)
    found = shift_images(dataset, Digits(), "test", "negative:3")

    check(["negative:3"], Digits(), ["test"])
    plain = restore_pixels(dataset, dataset.test.images)
    pixels = restore_pixels(dataset, found.images)
    torch.testing.assert_close(pixels, 1 - plain, rtol=0, atol=1e-5)


def test_another_version_of_a_corruption_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make()
    blurred = digest_of_shifted(dataset, Digits(), "test", "blur:1")
    noisy = digest_of_shifted(dataset, Digits(), "test", "noise:1")

    monkeypatch.setitem(CORRUPTIONS, "blur", replace(CORRUPTIONS["blur"], version=2))

    assert digest_of_shifted(dataset, Digits(), "test", "blur:1") != blurred
    assert digest_of_shifted(dataset, Digits(), "test", "noise:1") == noisy


def test_other_fonts_are_those_of_the_test_images() -> None:
    config = Glyphs(images=100, fonts="dejavu", test_fonts="dejavu")
    dataset = load_dataset(config)
    expected = load_dataset(replace(config, test_fonts="stix_cm"))
    found = shift_images(dataset, config, "test", "fonts:stix_cm")

    assert torch.equal(found.images, expected.test.images)
    assert not torch.equal(found.images, dataset.test.images)
    assert found.digest == expected.test.digest
    assert digest_of_shifted(dataset, config, "test", "fonts:stix_cm") == found.digest


def test_each_prediction_once() -> None:
    plain, other = Glyphs(), Glyphs(test_fonts="dejavu")
    expected = [("test", "none"), ("test", "noise:1"), ("val", "none"), ("val", "noise:1")]

    assert list_predictions(plain, ["test", "val"], ["none", "noise:1", "none"]) == expected
    assert list_predictions(other, ["test", "val"], ["none"]) == [("test", "fonts:dejavu"), ("val", "none")]


@pytest.mark.parametrize(
    ("shift", "config", "splits"),
    [
        ("blur:4", Glyphs(), ["test"]),
        ("fonts:all", Glyphs(), ["test"]),  # those of training
        ("fonts:dejavu", Glyphs(), ["test", "val"]),
        ("noise:1", Glyphs(test_fonts="dejavu"), ["test"]),  # would be two shifts at once
    ],
)
def test_what_there_is(shift: str, config: Data, splits: list[str]) -> None:
    check(["none", *SHIFTS, "fonts:dejavu"], Glyphs(), ["test"])
    with pytest.raises(UserError, match=f"^shifts={shift}: "):
        check(["none", shift], config, splits)
