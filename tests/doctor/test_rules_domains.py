"""BN207: images of another population than those of training, found where they are far off or cost something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from tests.doctor.networks import Batch, change_images, find, list_images, make_batches, make_healthy, reset


def test_bn207_images_of_another_domain(images: list[Tensor]) -> None:
    training = make_batches(8, seed=-1)
    dark = [batch - 1 for batch in images]

    finding = find("BN207", make_healthy(), dark, training_batches=training)

    assert finding is not None
    assert finding.signs.layers[0] == "1"
    assert finding.severity == "warning"


def test_bn207_is_a_warning_at_least_on_images_that_are_far_off(batches: list[Batch]) -> None:
    """Averages that fit training's images may be as good as any on these, and the images still are others."""
    model = make_healthy()
    dark = change_images(batches, lambda images: images - 1)
    population_statistics(model, list_images(make_batches(8, seed=-1)), progress=False).write_to(model)

    finding = find("BN207", model, dark, training_batches=make_batches(8, seed=-1), worth=1.0)

    assert finding is not None
    assert finding.severity == "warning"


def draw_rows(images: int, seed: int, shift: float = 0.0) -> list[Batch]:
    """Draw standard normal values [N, 1] and whether each is positive, then shift the values."""
    rows = torch.randn(images, 1, generator=torch.Generator().manual_seed(seed))
    return list(zip((rows + shift).split(200), (rows[:, 0] > 0).long().split(200), strict=True))


def make_sign(training: list[Batch]) -> nn.Sequential:
    """Make a network that names the sign of what a batch norm gives out; its averages are those of training."""
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, 2, bias=False)).eval()
    model[1].weight.data = torch.tensor([[-1.0], [1.0]])
    population_statistics(model, training, progress=False).write_to(model)
    return model


@pytest.mark.parametrize(
    ("images", "shift", "are_labelled", "severity"),
    [
        (6400, 0.1, True, "warning"),
        (6400, 0.2, True, "error"),
        (6400, 0.1, False, None),  # augmentation may do that
        (6400, 0.0, True, None),
        (400, 0.1, True, None),  # two standard errors
    ],
)
def test_bn207_a_small_shift_is_graded_by_its_cost(
    images: int, shift: float, are_labelled: bool, severity: str | None
) -> None:
    """Of 6,400 rows on either side: 0.1 is 5.7 standard errors, and 4% of normal values lie between 0 and 0.1."""
    training = draw_rows(6400, seed=0)
    batches = draw_rows(images, seed=1, shift=shift)

    data = batches if are_labelled else list_images(batches)
    finding = find("BN207", make_sign(training), data, training_batches=training)

    assert (None if finding is None else finding.severity) == severity


def test_bn207_few_training_images_leave_open_whether_a_shift_is_by_chance() -> None:
    """Averages of 50 images cost something, as these are 0.17 σ off by chance, and no others."""
    training = draw_rows(50, seed=5)
    model = make_sign(training)

    diagnosis = diagnose(model, draw_rows(6400, seed=1), training_batches=training, progress=False)

    assert diagnosis.verdict == "averages"
    assert "BN207" not in diagnosis.findings["code"].tolist()


def test_bn207_is_quiet_on_images_of_the_same_domain(images: list[Tensor]) -> None:
    assert find("BN207", make_healthy(), images, training_batches=make_batches(8, seed=-1)) is None


def test_bn207_is_quiet_where_averages_are_wrong_for_the_training_batches_too(images: list[Tensor]) -> None:
    model = reset(make_healthy())
    dark = [batch - 1 for batch in images]

    assert find("BN207", model, dark, training_batches=make_batches(8, seed=-1)) is None
