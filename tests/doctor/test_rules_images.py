"""Rules about what images a network is given, each on a network that shows its fault and on one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, recalibrate
from tests.doctor.networks import (
    Batch,
    average,
    build_cnn,
    change_images,
    find,
    list_images,
    make_batches,
    make_healthy,
)

# BN205


def list_real(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """List the positions [M, C] of sequences [N, C, T] that are not padding, which is 0 in all channels."""
    positions = args[0].transpose(1, 2).flatten(0, 1)
    return positions[(positions != 0).any(1)]


def make_sequences() -> list[Tensor]:
    """Make batches of sequences [16, 4, 10] of mean 1, of which the second half is padding in every other one."""
    sequences = 1 + torch.randn(4, 16, 4, 10, generator=torch.Generator().manual_seed(0))
    sequences[:, ::2, :, 5:] = 0
    return list(sequences)


def test_bn205_averages_count_padding() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None))
    average(model, [(batch, batch) for batch in make_sequences()])

    finding = find("BN205", model, make_sequences(), inputs={"0": list_real})

    assert finding is not None
    assert finding.signs.layers == ("0",)
    assert finding.severity == "warning"


def test_bn205_is_quiet_where_averages_leave_padding_out() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    population_statistics(model, make_sequences(), inputs={"0": list_real}, progress=False).write_to(model)

    assert find("BN205", model, make_sequences(), inputs={"0": list_real}) is None


def test_bn205_is_quiet_where_averages_are_something_else() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()  # mean 0, of 1 without padding and .75 with it

    assert find("BN205", model, make_sequences(), inputs={"0": list_real}) is None


# BN209


@pytest.mark.parametrize(
    ("change", "times"),
    [
        (lambda images: 255 * images, "2"),
        (lambda images: images / 255, "0.00"),
        (lambda images: images / 2, "0.5"),
        (lambda images: 0.25 * images + 0.5, "0.2"),  # without subtraction of the mean and division
    ],
    ids=["times 255", "by 255", "by 2", "not standardized"],
)
def test_bn209_input_is_scaled(change: Callable[[Tensor], Tensor], times: str, images: list[Tensor]) -> None:
    finding = find("BN209", make_healthy(), [change(batch) for batch in images])

    assert finding is not None
    assert finding.rule.hides
    assert finding.signs.layers == ("1",)
    assert finding.signs.evidence.startswith(f"standard deviations {times}")
    assert finding.severity == "warning"


@pytest.mark.parametrize("seed", [0, 1])
def test_bn209_channels_are_reversed(seed: int, images: list[Tensor]) -> None:
    finding = find("BN209", make_healthy(seed), [batch.flip(1) for batch in images])

    assert finding is not None
    assert "with the images' channels reversed" in finding.signs.evidence


def test_bn209_is_a_warning_at_least(batches: list[Batch]) -> None:
    """Also where it costs nothing, as running averages may serve reversed channels as well."""
    reversed_batches = change_images(batches, lambda images: images.flip(1))

    finding = find("BN209", make_healthy(), reversed_batches)

    assert finding is not None
    assert finding.severity in ("warning", "error")


@pytest.mark.parametrize(
    "change", [lambda images: 255 * images, lambda images: images.flip(1)], ids=["scaled", "reversed"]
)
def test_bn209_stops_a_recalibration_that_would_hide_it(
    change: Callable[[Tensor], Tensor], batches: list[Batch]
) -> None:
    recalibration = recalibrate(make_healthy(), change_images(batches, change))

    assert not recalibration.written
    assert recalibration.reason.startswith("it would hide a mistake: BN209")


def blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: 1.2 * images,
        lambda images: images + 1,
        lambda images: images.mean(1, keepdim=True).expand_as(images),
        lambda images: images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
        blur,
    ],
    ids=["as in training", "a little contrast", "brighter", "grey", "noisy", "blurred"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_bn209_is_quiet_on_other_images(change: Callable[[Tensor], Tensor], seed: int, images: list[Tensor]) -> None:
    assert find("BN209", make_healthy(seed), [change(batch) for batch in images]) is None


@pytest.mark.parametrize("count", [1, 3, 12])
def test_bn209_is_quiet_on_few_images(count: int) -> None:
    for seed in range(4):
        few = list_images(make_batches(count, size=4, seed=20 + seed))
        assert find("BN209", make_healthy(seed % 2), few) is None


def test_bn209_is_quiet_on_averages_that_were_never_made(images: list[Tensor]) -> None:
    assert find("BN209", build_cnn().eval(), images) is None


def make_bright_on_dark(count: int, seed: int) -> list[Tensor]:
    """Make batches of images [32, 1, 8, 8] from 0 to 1, dark with few bright points: of mean 1/4."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(32, 1, 8, 8, generator=generator) ** 3 for _ in range(count)]


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        (lambda images: 1 - images, True),
        (lambda images: images, False),
        (lambda images: images + 0.3, False),
        (lambda images: images - 0.2, False),
        (lambda images: 0.8 * images, False),
    ],
    ids=["negative", "as in training", "brighter", "darker", "of less contrast"],
)
def test_bn209_finds_negatives(change: Callable[[Tensor], Tensor], is_found: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    population_statistics(model, make_bright_on_dark(8, seed=0), progress=False).write_to(model)
    images = [change(batch) for batch in make_bright_on_dark(8, seed=1)]

    finding = find("BN209", model, images)

    assert (finding is not None) == is_found
    if finding is not None:
        assert finding.signs.evidence.endswith("on their negative")


# BN209 and BN210: an outlying training image


def make_norm(training: list[Tensor]) -> nn.Sequential:
    """Make a batch norm whose averages are exact for the training batches."""
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    population_statistics(model, training, progress=False).write_to(model)
    return model


def spoil_an_image(images: list[Tensor]) -> list[Tensor]:
    """Multiply image 70 by 100."""
    spoiled = [batch.clone() for batch in images]
    spoiled[2][6] *= 100
    return spoiled


def test_bn210_an_image_of_training_was_not_standardized(images: list[Tensor]) -> None:
    training = spoil_an_image(list_images(make_batches(24, seed=-1)))
    model = make_norm(training)

    assert find("BN209", model, images) is not None  # without training batches it looks like the images' scale
    assert find("BN209", model, images, training_batches=training) is None
    finding = find("BN210", model, images, training_batches=training)

    assert finding is not None
    assert not finding.rule.hides
    assert finding.signs.layers == ("0",)
    assert finding.signs.evidence.startswith("image 70 of the training batches, counted from 0: its σ is ")


def test_bn209_is_quiet_where_training_batches_are_scaled_as_the_images(images: list[Tensor]) -> None:
    model = make_norm([2 * batch for batch in images])

    assert find("BN209", model, images) is not None
    assert find("BN209", model, images, training_batches=list_images(make_batches(8, seed=-1))) is None


def test_bn209_is_found_beside_training_batches_of_another_scale(images: list[Tensor]) -> None:
    training = list_images(make_batches(8, seed=-1))

    finding = find("BN209", make_norm(training), [255 * batch for batch in images], training_batches=training)

    assert finding is not None


def test_bn210_is_quiet_where_the_averages_do_not_remember_the_image(images: list[Tensor]) -> None:
    training = spoil_an_image(list_images(make_batches(24, seed=-1)))

    assert find("BN210", make_norm(images), images, training_batches=training) is None


def test_bn210_is_quiet_on_images_of_common_contrast(images: list[Tensor]) -> None:
    training = make_batches(4, seed=-1)

    assert find("BN210", make_healthy(), images, training_batches=training) is None
