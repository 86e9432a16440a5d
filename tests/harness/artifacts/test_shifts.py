"""What is predicted under shifts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.data.images.rendering import glyphs
from bnlab.harness.artifacts.shifts import CORRUPTIONS, STRENGTHS
from bnlab.harness.errors import UserError
from tests.helpers import Config, Run, plan_network

SHIFTS = [f"{name}:{strength}" for name in CORRUPTIONS for strength in STRENGTHS]

SMALL = ("data.images=100", "batch_size=16", "device=cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    """A network on digits. Not to be changed."""
    return plan_network(*SMALL, "data=digits").config


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stored_pixels_are_corrupted(name: str, config: Config) -> None:
    """As shares of their largest value, clipped; each image by itself, whatever the others are and in any order."""
    run = Run(config)
    test = run.dataset.test
    found = run.images_of("test", f"{name}:3")

    def restore_pixels(images: Tensor) -> Tensor:
        """As shares of the largest value, float64."""
        mean = torch.tensor(run.dataset.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(run.dataset.std, dtype=torch.float64).view(-1, 1, 1)
        return (images.double() * std + mean) / run.dataset.largest

    pixels = restore_pixels(found.images)

    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    assert not torch.equal(restore_pixels(test.images), pixels)
    assert torch.equal(found.labels, test.labels)
    assert found.images.is_contiguous(memory_format=torch.channels_last)

    order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(1))[:7]
    fewer = replace(test, images=test.images[order], labels=test.labels[order])
    run.dataset = replace(run.dataset, test=fewer)
    of_fewer = run.images_of("test", f"{name}:3").images
    assert torch.equal(of_fewer, found.images[order])

    changes = [(run.images_of("test", f"{name}:{strength}").images - fewer.images).norm() for strength in STRENGTHS]
    assert changes == sorted(changes)


def test_a_digest_for_each_split_and_shift_and_version(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(config)
    splits = ("test", "val", "train")
    shifts = ("none", *SHIFTS)
    digests = {run.digest_of(split, shift) for split in splits for shift in shifts}
    assert len(digests) == len(splits) * len(shifts)

    monkeypatch.setattr("bnlab.harness.artifacts.corruptions._VERSION", "2")
    assert run.digest_of("test", "blur:1") not in digests


def test_other_fonts_are_those_of_the_test_images() -> None:
    run = plan_network(*SMALL, "data=glyphs", "data.fonts=dejavu")
    images, labels = glyphs(25, 36, "stix_cm", seed=1)

    found = run.images_of("test", "fonts:stix_cm")

    pixels = found.images * torch.tensor(run.dataset.std) + torch.tensor(run.dataset.mean)
    assert torch.equal(pixels.round().to(torch.uint8), images)
    assert torch.equal(found.labels, labels)
    assert run.digest_of("test", "fonts:stix_cm") == found.digest != run.dataset.test.digest


def test_each_prediction_once(config: Config) -> None:
    twice = replace(config, evaluate_on=["test", "val"], shifts=["none", "noise:1", "none"])

    assert Run(twice).predicted_images == [("test", "none"), ("test", "noise:1"), ("val", "none"), ("val", "noise:1")]


def test_what_there_is() -> None:
    plan_network(*SMALL, "data=glyphs", f"shifts=[none,{','.join(SHIFTS)},fonts:dejavu]")


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ("blur:4", ""),
        ("fonts:all", ""),  # those of training
        ("fonts:dejavu", "evaluate_on=[test,val]"),
    ],
)
def test_what_there_is_not(shift: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^shifts={shift}: "):
        plan_network(*SMALL, "data=glyphs", f"shifts=[none,{shift}]", *words.split())
