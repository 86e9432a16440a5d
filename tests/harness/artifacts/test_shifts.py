"""Corruptions against their float64 twins and closed forms; what is predicted under them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts import data
from bnlab.harness.artifacts.data import DataConfig, Dataset, Split, load_dataset
from bnlab.harness.artifacts.shifts import (
    CORRUPTIONS,
    add_noise,
    blur,
    check,
    digest_of_shifted,
    list_predictions,
    occlude,
    reduce_contrast,
    shift_images,
    translate,
)
from bnlab.harness.errors import UserError
from tests import references

TWINS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": references.noisy,
    "blur": references.blurred,
    "contrast": references.low_contrast,
    "translation": references.translated,
    "occlusion": references.occluded,
}
SHIFTS = [f"{kind}:{strength}" for kind in CORRUPTIONS for strength in (1, 2, 3)]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    data._load.cache_clear()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(channels: int = 3, size: int = 8, largest: int = 255, images: int = 12) -> Dataset:
    """A data set of random pixels, standardized as its training split."""
    stored = torch.randint(largest + 1, (images, channels, size, size), generator=draw()).double()
    mean, std = stored.mean((0, 2, 3)), stored.std((0, 2, 3))
    pixels = ((stored - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).float()
    split = Split(pixels.contiguous(memory_format=torch.channels_last), torch.arange(images), "made")
    return Dataset("made", split, split, split, 10, tuple(mean.tolist()), tuple(std.tolist()), largest)


def stored_of(dataset: Dataset, images: Tensor) -> Tensor:
    """The pixels of standardized images, float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
    return images.double() * std + mean


# Each corruption of an image


@pytest.mark.parametrize("strength", [1, 2, 3])
@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28)])
def test_a_corruption_is_its_twin(kind: str, strength: int, channels: int, size: int) -> None:
    image = torch.rand(channels, size, size, generator=draw(size))
    corruption, amounts = CORRUPTIONS[kind]
    for seed in range(1 if kind == "blur" else 8):  # the twin of blur is slow, and draws nothing
        before = image.clone()
        found = corruption(image, amounts[strength - 1], draw(seed))
        expected = TWINS[kind](image, amounts[strength - 1], draw(seed))
        # float32 against float64: a Gaussian mean has some 250 terms below 1.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=250 * 2**-24 if kind == "blur" else 1e-6)
        assert torch.equal(image, before)


def test_noise_has_its_deviation() -> None:
    found = add_noise(torch.full((1, 200, 200), 0.5), 0.2, draw()).double()
    assert found.mean().item() == pytest.approx(0.5, abs=5 * 0.2 / 200)  # five standard errors
    assert found.std().item() == pytest.approx(0.2, abs=5 * 0.2 / (2**0.5 * 200))


def test_blur_keeps_the_sum_inside_and_constants() -> None:
    """Of a square that is farther from the border than the Gaussian reaches; as far as its deviation it spreads."""
    image = torch.zeros(2, 32, 32)
    image[:, 16, 16] = 1.0
    found = blur(image, 2 / 32, draw())[0].double()
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    at = torch.arange(32).double() - 16
    assert (found.sum(1) @ at.square()).item() ** 0.5 == pytest.approx(2, rel=0.03)  # cut off at three deviations
    assert torch.equal(found, found.T) and found.argmax() == 16 * 32 + 16
    torch.testing.assert_close(blur(torch.full((1, 8, 8), 0.3), 3 / 32, draw()), torch.full((1, 8, 8), 0.3))


def test_contrast_keeps_the_mean_of_each_channel_and_constants() -> None:
    image = torch.rand(3, 16, 16, generator=draw())
    found = reduce_contrast(image, 0.3, draw())
    torch.testing.assert_close(found.mean((1, 2)), image.mean((1, 2)))
    torch.testing.assert_close(found.std((1, 2)), 0.3 * image.std((1, 2)))
    torch.testing.assert_close(reduce_contrast(torch.full((1, 8, 8), 0.7), 0.15, draw()), torch.full((1, 8, 8), 0.7))


def test_a_translation_brings_zeros_in_at_one_side() -> None:
    """A quarter of the pixels, at each of the four sides for some image; the others keep their values."""
    image = torch.arange(1.0, 65).view(1, 8, 8)
    sides = set()
    for seed in range(20):
        found = translate(image, 0.25, draw(seed))[0]
        assert (found == 0).sum() == 2 * 8
        (rows, columns) = ((found != 0).any(1).nonzero()[:, 0], (found != 0).any(0).nonzero()[:, 0])
        sides.add((rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item()))
        assert found[found != 0].numel() == 48
    assert sides == {(2, 7, 0, 7), (0, 5, 0, 7), (0, 7, 2, 7), (0, 7, 0, 5)}


def test_an_occlusion_has_its_area_and_lies_anywhere() -> None:
    places = set()
    for seed in range(400):
        hidden = occlude(torch.ones(2, 8, 8), 0.5, draw(seed)) == 0
        assert hidden.sum() == 2 * 4 * 4 and torch.equal(hidden[0], hidden[1])
        rows, columns = hidden[0].nonzero().unbind(1)
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (3, 3)
        places.add((rows.min().item(), columns.min().item()))
    assert places == {(top, left) for top in range(5) for left in range(5)}


# The images that are predicted


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("channels", "size", "largest"), [(1, 8, 16), (3, 32, 255)])
def test_stored_pixels_are_corrupted(shift: str, channels: int, size: int, largest: int) -> None:
    """As shares of their largest value, clipped, and standardized by the training split."""
    dataset, config = made(channels, size, largest), DataConfig()
    plain, found = dataset.test, shift_images(dataset, config, "test", shift)
    stored, pixels = stored_of(dataset, plain.images), stored_of(dataset, found.images)
    assert pixels.min() > -1e-3 and pixels.max() < largest + 1e-3 and not torch.equal(stored, pixels)
    assert torch.equal(found.labels, plain.labels) and found.images.dtype == torch.float32
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    kind, amount = shift.partition(":")[0], CORRUPTIONS[shift.partition(":")[0]][1][int(shift[-1]) - 1]
    if kind == "contrast":
        mean = stored.mean((2, 3), keepdim=True)
        torch.testing.assert_close(pixels, mean + amount * (stored - mean), rtol=0, atol=1e-3)
    if kind == "noise":
        inside = (pixels > 1) & (pixels < largest - 1)  # what has not been clipped
        assert ((pixels - stored)[inside].abs() > 0).all()
        assert (pixels - stored)[inside].std() < 1.2 * amount * largest


@pytest.mark.parametrize("shift", ["noise:2", "translation:1", "occlusion:3"])
def test_an_image_is_corrupted_by_itself(shift: str) -> None:
    """Whatever the others are and in whatever order; each has draws of its own, the same for all strengths."""
    dataset, order = made(), torch.randperm(12, generator=draw(1))[:7]
    fewer = Split(dataset.test.images[order], dataset.test.labels[order], "fewer")
    whole = shift_images(dataset, DataConfig(), "test", shift).images
    part = shift_images(replace(dataset, test=fewer), DataConfig(), "test", shift).images
    assert torch.equal(part, whole[order])
    changed = (whole - dataset.test.images).flatten(1)
    assert len(torch.unique(changed, dim=0)) == 12


def test_a_larger_strength_goes_further_in_the_same_direction() -> None:
    dataset = made()
    grey = replace(dataset.test, images=torch.zeros_like(dataset.test.images))
    weak, strong = (
        shift_images(replace(dataset, test=grey), DataConfig(), "test", f"noise:{s}").images for s in (1, 2)
    )
    middle = ((strong.abs() < 1.2) & (weak.abs() < 1.2)).double()
    start = shift_images(replace(dataset, test=grey), DataConfig(), "test", "contrast:1").images  # the rounded mean
    torch.testing.assert_close((strong - start) * middle, 2 * (weak - start) * middle, rtol=1e-3, atol=1e-4)


def test_digits_are_known_to_end_at_16() -> None:
    dataset = load_dataset(DataConfig())
    found = stored_of(dataset, shift_images(dataset, DataConfig(), "test", "noise:3").images)
    assert dataset.largest == 16 and found.max().item() == pytest.approx(16, abs=1e-4)


def test_splits_and_their_digests() -> None:
    """One for each split and shift, also without the images."""
    config, dataset = DataConfig(), load_dataset(DataConfig())
    digests = set()
    for split in ("test", "val", "train"):
        plain = dataset.images_of(split)
        assert shift_images(dataset, config, split, "none").digest == plain.digest
        for shift in ("none", *SHIFTS):
            digests.add(digest_of_shifted(dataset, config, split, shift))
        found = shift_images(dataset, config, split, "blur:2")
        assert found.digest == digest_of_shifted(dataset, config, split, "blur:2")
        assert len(found.labels) == len(plain.labels)
    assert len(digests) == 3 * (1 + len(SHIFTS))


def test_other_fonts_are_those_of_the_test_images(tmp_path: Path) -> None:
    config = DataConfig("glyphs", str(tmp_path), images=100, fonts="dejavu", test_fonts="dejavu")
    dataset, expected = load_dataset(config), load_dataset(replace(config, test_fonts="stix_cm"))
    found = shift_images(dataset, config, "test", "fonts:stix_cm")
    assert torch.equal(found.images, expected.test.images) and not torch.equal(found.images, dataset.test.images)
    assert digest_of_shifted(dataset, config, "test", "fonts:stix_cm") == expected.test.digest == found.digest


# The setting


def test_each_prediction_once() -> None:
    config = DataConfig("glyphs")
    assert list_predictions(config, ["test", "val"], ["none", "noise:1", "none"]) == [
        ("test", "none"), ("test", "noise:1"), ("val", "none"), ("val", "noise:1"),
    ]  # fmt: skip
    other = replace(config, test_fonts="dejavu")
    assert list_predictions(other, ["test", "val"], ["none"]) == [("test", "fonts:dejavu"), ("val", "none")]
    assert list_predictions(replace(other, name="digits"), ["test"], ["none"]) == [("test", "none")]


def test_what_there_is() -> None:
    glyphs = DataConfig("glyphs")
    check(["none", *SHIFTS], DataConfig(), ["test", "val", "train"])
    check(["none", *SHIFTS, "fonts:dejavu", "fonts:stix_cm"], glyphs, ["test"])
    check(["none"], replace(glyphs, test_fonts="dejavu"), ["test"])
    check(["none", "noise:1"], replace(glyphs, test_fonts="dejavu"), ["val", "train"])


@pytest.mark.parametrize(
    ("shift", "changes", "message"),
    [
        ("nois:1", {}, r"shifts=nois:1: unknown \(did you mean noise\?\); there are none, noise, blur, .*fonts:all$"),
        ("rain", {}, "shifts=rain: unknown; there are none, "),
        (None, {}, "shifts=None: unknown"),
        ("", {}, "shifts=: unknown"),
        ("noise", {}, "shifts=noise: write noise with a strength of 1, 2, 3, such as noise:1"),
        ("noise(1)", {}, "such as noise:1"),
        ("noise:0", {}, "shifts=noise:0: write noise with a strength of 1, 2, 3"),
        ("blur:4", {}, "shifts=blur:4: write blur with a strength of 1, 2, 3"),
        ("blur:1.5", {}, "blur with a strength of 1, 2, 3"),
        ("fonts:dejavu", {"name": "digits"}, "shifts=fonts:dejavu: data.name=digits has none; only glyphs do"),
        ("fonts:arial", {}, "shifts=fonts:arial: those of training are data.fonts=all; choose from dejavu, stix_cm$"),
        ("fonts:all", {}, "those of training are data.fonts=all; choose from"),
        ("fonts:dejavu", {"splits": ["test", "val"]}, "evaluate_on=val has those of training; there are others"),
        ("noise:1", {"test_fonts": "dejavu"},
         "shifts=noise:1: .* other fonts already .data.fonts=all, data.test_fonts=dejavu.; set data.test_fonts=all, "
         "and list fonts:de"),
    ],
)  # fmt: skip
def test_what_is_refused(shift: Any, changes: dict[str, Any], message: str) -> None:
    splits = changes.get("splits", ["test"])
    config = replace(DataConfig("glyphs"), **{key: value for key, value in changes.items() if key != "splits"})
    with pytest.raises(UserError, match=message):
        check(["none", shift, "none"], config, splits)
    with pytest.raises(UserError, match=r"shifts=\[\]: give at least one, such as none"):
        check([], config, splits)
