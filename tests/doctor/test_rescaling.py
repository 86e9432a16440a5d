"""Images that are scaled and shifted until averages fit them, on planted scales and shifts, and BN213."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, population_statistics
from bnlab.doctor.rescaling import Rescaling, fit_shifts
from bnlab.moments import Moments
from bnlab.statistics import Statistics
from tests.doctor.networks import find, list_images, make_batches

SHIFTS = torch.tensor([-2.1, -1.9, -1.7], dtype=torch.float64)


def build_first_block(seed: int = 0) -> nn.Sequential:
    """Build a padded convolution of three colours, and a batch norm of 16 channels."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)).eval()


def standardize(images: Tensor) -> Tensor:
    return 1.25 * images + SHIFTS.to(images).view(-1, 1, 1)


def make_fitted(images: list[Tensor], change: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Make a block whose averages are exact for these images, once they are changed."""
    model = build_first_block()
    population_statistics(model, [change(batch) for batch in images], progress=False).write_to(model)
    return model


def make_images() -> list[Tensor]:
    """Make images [32, 3, 8, 8] from 0 to 1, as ToTensor leaves them."""
    return [batch.sigmoid() for batch in list_images(make_batches(8, seed=3))]


@pytest.mark.parametrize("scale", [4.4, 0.3])
def test_planted_shifts_are_found(scale: float) -> None:
    """Of values that are linear in three colours, without borders: to rounding of float64."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(500, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(16, generator=generator, dtype=torch.float64)

    def respond(pixels: Tensor) -> Tensor:
        return pixels @ weight.T + bias

    wanted = respond(scale * colours + SHIFTS)
    running = torch.stack((wanted.mean(0), wanted.var(0, correction=0)))
    means = respond(torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)]))

    shifts = fit_shifts(running, respond(colours).mean(0), means, scale)

    torch.testing.assert_close(shifts, SHIFTS)


def test_it_is_said_as_a_standardization() -> None:
    statistics = Statistics({"0": Moments.of(torch.ones(2, 1))}, {"0": 0.0})

    rescaling = Rescaling(4.0, torch.tensor([-2.0, -1.0]), statistics)

    assert str(rescaling) == "(images - [0.5, 0.25]) / 0.25"
    assert str(Rescaling(255.0, torch.zeros(1), statistics)) == "the images times 255"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (standardize, " σ on (images - [1.7, 1.5, 1.4]) / 0.8"),
        (lambda images: images + 1, " σ on (images - [-1, -1, -1]) / 1"),
    ],
    ids=["standardized", "brighter"],
)
def test_bn213_averages_of_images_that_were_prepared_otherwise(change: Callable[[Tensor], Tensor], told: str) -> None:
    """Padding makes the variance depend on shifts too, so that the fit takes several rounds."""
    images = make_images()

    finding = find("BN213", make_fitted(images, change), images)

    assert finding is not None
    assert finding.signs.layers == ("1",)
    assert finding.signs.evidence.endswith(told)


def test_bn213_finds_a_scale_that_padding_hides() -> None:
    """The block subtracts 118, so that images from 0 to 1 are nearly constant, and zeros beside them vary most."""

    class Standardizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = build_first_block()

        def forward(self, images: Tensor) -> Tensor:
            return self.block((images - 118) / 58)

    images = make_images()
    model = Standardizing().eval()
    population_statistics(model, [255 * batch for batch in images], progress=False).write_to(model)

    finding = find("BN213", model, images)

    assert finding is not None
    told = finding.signs.evidence
    assert float(told.rpartition(" σ on the images times ")[2]) == pytest.approx(255, rel=0.02)
    assert finding.severity == "warning"


def test_images_that_overflow_as_scaled_are_no_fit() -> None:
    class Overflowing(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, images: Tensor) -> Tensor:
            return self.block(images.where(images.abs() <= 1, torch.inf))

    images = make_images()
    model = Overflowing(make_fitted(images, standardize)).eval()

    diagnosis = diagnose(model, images, progress=False)

    assert diagnosis.case.data.rescaling is None


def blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
        blur,
        lambda images: images.mean(1, keepdim=True).expand_as(images),
    ],
    ids=["as they are", "noisy", "blurred", "grey"],
)
def test_bn213_is_quiet_on_images_that_differ_otherwise(change: Callable[[Tensor], Tensor]) -> None:
    images = make_images()
    assert find("BN213", make_fitted(images, change), images) is None


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_bn213_is_quiet_on_averages_of_other_weights(seed: int) -> None:
    images = make_images()
    model = make_fitted(images, lambda batch: batch)
    other = build_first_block(seed)
    model.load_state_dict({**model.state_dict(), "0.weight": other.state_dict()["0.weight"]})

    assert find("BN213", model, images) is None


def test_bn213_is_quiet_where_averages_far_off_come_nearer_and_do_not_fit() -> None:
    """Averages times 300, as of a converter that left out a factor: from hundreds of σ to more than one."""
    images = make_images()
    model = make_fitted(images, lambda batch: batch)
    for buffer in (model.state_dict()["1.running_mean"], model.state_dict()["1.running_var"]):
        buffer *= 300

    diagnosis = diagnose(model, images, progress=False)
    case = diagnosis.case
    rescaling = case.data.rescaling

    assert rescaling is not None
    off = case.find_distance("1", case.data.exact)
    left = case.find_distance("1", rescaling.statistics)
    assert 1 < left < off / 10
    assert "BN213" not in [finding.rule.code for finding in diagnosis.faults]


def test_nothing_is_fitted_where_the_averages_are_near() -> None:
    images = make_images()
    model = make_fitted(images, lambda batch: batch)

    near = diagnose(model, images, progress=False).case.data.rescaling
    farther = diagnose(model, [batch + 0.1 for batch in images], progress=False).case.data.rescaling

    assert near is None
    assert farther is not None


def test_bn213_leaves_images_unlike_those_of_training_to_bn207() -> None:
    images = make_images()
    model = make_fitted(images, standardize)
    training = [standardize(batch) for batch in images]

    assert find("BN213", model, images, training_batches=training) is None
    assert find("BN207", model, images, training_batches=training) is not None


def test_bn213_is_quiet_where_the_averages_are_not_of_the_training_batches() -> None:
    images = make_images()
    model = make_fitted(images, standardize)

    assert find("BN213", model, images, training_batches=images) is None


def test_bn213_is_quiet_where_channels_are_too_few_to_tell() -> None:
    images = [batch[:, :1] for batch in make_images()]
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval()
    population_statistics(model, [batch + 1 for batch in images], progress=False).write_to(model)

    assert find("BN213", model, images) is None


# BN214


@pytest.mark.parametrize(
    ("left", "evidence"),
    [
        ("running_var", "variance 1 in all channels, but means that are not 0"),
        ("running_mean", "mean 0 in all channels, but variances that are not 1"),
    ],
)
def test_bn214_one_of_the_averages_was_never_updated(left: str, evidence: str) -> None:
    images = make_images()
    model = make_fitted(images, standardize)
    state = model.state_dict()
    state[f"1.{left}"].fill_(1.0 if left == "running_var" else 0.0)

    finding = find("BN214", model, images)

    assert finding is not None
    assert finding.signs.layers == ("1",)
    assert finding.signs.evidence == evidence
    assert find("BN002", model, images) is None


def test_bn214_is_quiet_on_both_halves() -> None:
    images = make_images()

    assert find("BN214", make_fitted(images, standardize), images) is None
    assert find("BN214", build_first_block(), images) is None  # BN002 says that both are where they start
