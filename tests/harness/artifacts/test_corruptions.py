"""Corruptions against their float64 twins, and the digests by which measured rows are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions import CHANGES, digest_of_shifted
from bnlab.harness.artifacts.data import Digits
from bnlab.harness.artifacts.dataset import load_dataset
from bnlab.harness.artifacts.shifts import CORRUPTIONS, STRENGTHS
from tests import references

TWINS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "blur": references.blurred,
    "contrast": references.low_contrast,
    "noise": references.noisy,
    "occlusion": references.occluded,
    "translation": references.translated,
}
# Digests of shifted images, by which measured rows are known: where one changes, no row of before is read any more.
DIGESTS = {
    "blur:2": "fbef36cef0d72f92",
    "contrast:1": "5dc8fb73db425c12",
    "noise:3": "bf4aa3722cfc95f4",
    "occlusion:1": "94fadd901a5450f3",
    "translation:3": "0db84bbd468e2ad8",
}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_its_twin(name: str, strength: int, size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=draw())
    amount = CORRUPTIONS[name].amounts[strength - 1]
    for seed in range(1 if name == "blur" else 8):  # the twin of blur is slow, and draws nothing
        before = image.clone()

        found = CHANGES[name](image, amount, draw(seed))

        expected = TWINS[name](image, amount, draw(seed))
        # float32 against float64: a Gaussian mean has some 250 terms below 1.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=250 * 2**-24 if name == "blur" else 1e-6)
        assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["occlusion", "translation"])
def test_a_long_image_is_never_hidden_as_a_whole(name: str) -> None:
    """Shares are of the shorter side: three eighths of the width would be more than the height."""
    image = torch.ones(1, 8, 32)
    for strength, amount in zip(STRENGTHS, CORRUPTIONS[name].amounts, strict=True):
        for seed in range(20):
            found = CHANGES[name](image, amount, draw(seed))

            assert found.mean() >= 0.5, (strength, seed)


def test_images_keep_their_digests() -> None:
    dataset = load_dataset(Digits())

    assert {shift.partition(":")[0] for shift in DIGESTS} == {*CORRUPTIONS}
    assert {shift: digest_of_shifted(dataset, Digits(), "test", shift) for shift in DIGESTS} == DIGESTS
