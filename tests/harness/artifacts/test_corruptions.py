"""Corruptions against their float64 twins, and what the documentation says of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.corruptions import STRENGTHS, describe_corruptions, list_corruptions
from bnlab.harness.artifacts.data import load_dataset
from bnlab.harness.artifacts.data.digits import Digits
from bnlab.harness.artifacts.shifts import digest_of_shifted
from bnlab.harness.measurements import find_measurement
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


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", list_corruptions())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_a_corruption_is_its_twin(name: str, strength: int, channels: int, size: int) -> None:
    image = torch.rand(channels, size, size, generator=draw(size))
    corruption = list_corruptions()[name]
    amount = corruption.amount_of(strength)
    for seed in range(1 if name == "blur" else 8):  # the twin of blur is slow, and draws nothing
        before = image.clone()

        found = corruption.apply(image, amount, draw(seed))

        expected = TWINS[name](image, amount, draw(seed))
        # float32 against float64: a Gaussian mean has some 250 terms below 1.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=250 * 2**-24 if name == "blur" else 1e-6)
        assert torch.equal(image, before)


def test_each_corruption_has_a_digest() -> None:
    names = {shift.partition(":")[0] for shift in DIGESTS}

    assert names == {*list_corruptions()}


@pytest.mark.parametrize("shift", DIGESTS)
def test_images_keep_their_digests(shift: str) -> None:
    dataset = load_dataset(Digits())

    assert digest_of_shifted(dataset, Digits(), "test", shift) == DIGESTS[shift]


def test_the_documentation_names_all_corruptions_with_their_amounts() -> None:
    found = describe_corruptions()

    about = find_measurement("evaluations").table.about
    assert found in about
    assert [line.split("`")[1] for line in found.splitlines() if line.startswith("- ")] == [*list_corruptions()]
    assert "a standard deviation of 0.1, 0.2, 0.3 of the range" in " ".join(found.split())
    assert "is 1/32, 1/16, 3/32 of the width" in " ".join(found.split())
