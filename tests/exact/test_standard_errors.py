"""Standard errors with batches as the units, and reading until they are small."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import Statistics, gap, population_statistics, using
from tests import references
from tests.exact.zoo import Net, conv
from tests.helpers import images, plain, randomized


def get_errors(statistics: Statistics, layer: str) -> tuple[Tensor, Tensor]:
    assert statistics.standard_errors is not None
    return statistics.standard_errors[layer]


@pytest.mark.parametrize("statistic", ["exact", "precise"])
def test_standard_errors_are_those_of_the_images_where_each_is_a_batch(statistic: str) -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(3), conv(3, 4)))
    data = torch.cat(images(9, 9, 6))
    found = population_statistics(model, data.split(1), statistic=statistic, standard_errors=True)

    mean, var = references.sampling_errors(data)
    torch.testing.assert_close(get_errors(found, "0")[0], mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(get_errors(found, "0")[1], var, rtol=1e-4, atol=0)


def make_clouds(batches: int, clouds: int, points: int) -> list[Tensor]:
    """Batches of rows that scatter about the centers of their clouds."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(batches, clouds, 1, 4, generator=generator)
    scattered = torch.randn(batches, clouds, points, 4, generator=generator)
    return list((scattered + 2 * centers).flatten(1, 2))


@pytest.mark.parametrize("count", [None, lambda rows: 3, lambda rows: torch.tensor(3)])
def test_rows_of_a_batch_are_not_taken_for_independent(count: Any) -> None:
    data = make_clouds(20, 3, 50)
    found = population_statistics(nn.Sequential(nn.BatchNorm1d(4)), data, standard_errors=True, images=count)

    batches = torch.stack(data)[..., None].transpose(1, 2)
    for error, expected in zip(get_errors(found, "0"), references.sampling_errors(batches), strict=True):
        torch.testing.assert_close(error, expected, rtol=1e-4, atol=0)
    assert found.cost is not None
    assert found.cost.images == (3000 if count is None else 60)


def test_one_batch_has_no_standard_errors() -> None:
    found = population_statistics(plain(), images(8), standard_errors=True)
    assert all(error.isnan().all() for error in get_errors(found, "1"))


def test_a_layer_that_is_called_several_times_has_the_errors_of_its_batches() -> None:
    def run(net: Any, x: Tensor) -> None:
        for _ in range(net.times):
            net.bn(x)

    model: Any = Net(run, bn=nn.BatchNorm2d(3))
    model.times = 1
    once = population_statistics(model, images(*[16] * 10), standard_errors=True)
    model.times = 4
    often = population_statistics(model, images(*[16] * 10), standard_errors=True)

    torch.testing.assert_close(get_errors(often, "bn")[0], get_errors(once, "bn")[0], rtol=1e-6, atol=0)


def test_batches_with_more_rows_weigh_more() -> None:
    """A detector in small: of each image a number of parts."""

    def detect(net: Any, x: Tensor, parts: Tensor) -> Tensor:
        means = net.backbone(x).mean((2, 3))
        return net.head(means.repeat_interleave(parts, 0))

    def run(model: nn.Module, batch: Any) -> Any:
        return model(*batch)

    model = Net(detect, backbone=nn.BatchNorm2d(3), head=nn.BatchNorm1d(3)).eval()
    data = [(x, torch.arange(8) + 1 + number) for number, x in enumerate(images(*[8] * 10))]
    found = population_statistics(model, data, forward=run, standard_errors=True)

    with using(model, found), torch.no_grad():
        seen = [references.moments_of_inputs(model, ["head"], [batch], run)["head"] for batch in data]
    whole = found["head"]
    added = torch.stack([(of.mean - whole.mean) * of.count / whole.count for of in seen])
    expected = (added.square().sum(0) * 10 / 9).sqrt()
    torch.testing.assert_close(get_errors(found, "head")[0], expected, rtol=1e-4, atol=0)


# -- until they are small ---------------------------------------------------------------------------------------------


def measure_until(model: nn.Module, data: list[Tensor], tolerance: float, **options: Any) -> Any:
    """Measure with `max_images="auto"`; the statistics, and what it took."""
    found = population_statistics(model, data, max_images="auto", tolerance=tolerance, **options)
    assert found.standard_errors
    return found, found.cost


def test_auto_stops_as_soon_as_the_errors_of_means_and_variances_are_within_the_tolerance() -> None:
    """Of n independent values the error of the mean is σ/√n, that of the variance σ²·√(2/n)."""
    generator = torch.Generator().manual_seed(0)
    data = [0.2 * torch.randn(8, 30, generator=generator) for _ in range(512)]
    model = nn.Sequential(nn.BatchNorm1d(30))

    _, cost = measure_until(model, data, 0.1)
    assert cost.images == 256  # √(2/256) = 0.088

    _, cost = measure_until(model, data, 0.05)
    assert cost.images == 1024  # √(2/1024) = 0.044

    _, cost = measure_until(model, data[:40], 1e-9)
    assert cost.images == 320


def test_auto_reads_eight_batches_at_least() -> None:
    """A batch of two clouds was read once, .025 σ was said, and it was .32 σ off."""
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))
    data = make_clouds(150, 2, 200)
    found, cost = measure_until(model, data, 0.1)

    assert cost.batches > 30
    assert gap(population_statistics(model, data), found)["mean_gap"].item() < 0.2


def test_auto_measures_again_only_what_has_grown() -> None:
    """After 8 batches and after 16, each time in two passes and a check of three batches."""
    sizes = []

    def forward(model: nn.Module, batch: Tensor) -> Any:
        sizes.append(len(batch))
        return model(batch)

    _, cost = measure_until(nn.Sequential(nn.BatchNorm2d(3)), images(*[32] * 16), 1e-9, forward=forward)

    assert cost.batches == 16
    assert sizes.count(32) == 2 * (8 + 16) + 2 * 3


@pytest.mark.parametrize(
    ("images_of", "message"),
    [
        (7, "pass a function of a batch"),
        (lambda batch: [0.5] * 12, "'list' object cannot be interpreted as an integer"),
    ],
)
def test_what_images_may_be(images_of: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        population_statistics(nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(12, 3)] * 2, images=images_of)
