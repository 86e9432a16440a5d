"""What torch rounds, in other types, layouts and channels than usual, is no finding and no reason to refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, population_statistics, record
from bnlab.common.precision import to_float64
from bnlab.nn import SelfTuned, momenta
from tests import references
from tests.helpers import assert_moments


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("momentum", "updates"), [(0.5, 400), (0.1, 1300)])
def test_a_variance_that_decays_to_the_smallest_numbers_is_an_average(momentum: float, updates: int) -> None:
    """As that of pixels that are always 0."""
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=momentum))
    rows = draw(8, 2)
    rows[:, 1] = 0

    with no_warning(), record(model) as trace:
        for _ in range(updates):
            model(rows)
            trace.step()

    assert model[0].get_buffer("running_var")[1] < torch.finfo(torch.float32).tiny


class InAnyType(nn.BatchNorm2d):
    """Averages moments that it computes in the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if self.training:
            now, varied = input.mean((0, 2, 3)), input.var((0, 2, 3))
            with torch.no_grad():
                mean.lerp_(now.float(), 0.1)
                var.lerp_(varied.float(), 0.1)
        else:
            now, varied = mean, var
        return (input - now.view(1, -1, 1, 1)) / (varied.view(1, -1, 1, 1) + self.eps).sqrt()


def test_a_layer_may_average_moments_of_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), InAnyType(8))
    with no_warning(), record(model) as trace, torch.autocast("cpu", torch.bfloat16):
        for number in range(20):
            model(draw(16, 3, 10, 10, seed=number))
            trace.step()


def make_deep() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    for number in range(7):
        stride = 2 if number in (1, 3) else 1
        layers += [nn.Conv2d(64, 64, 3, padding=1, stride=stride), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers)


def in_bfloat16(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)  # type: ignore[no-any-return]


def make_pruned() -> nn.Sequential:
    """Filters that are 0 leave their biases, channels that are constant but for rounding."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    with torch.no_grad():
        model[0].get_parameter("weight")[:4] = 0
        model[0].get_parameter("weight")[4] *= 1e-21
        model[0].get_parameter("weight")[5] *= 1e-7
        model[0].get_parameter("bias")[5] = 1.3
    return model


class Widens(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


def make_wrapped() -> nn.Sequential:
    """Somebody has set a forward on a layer, as hooks for offloading do."""
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
    own = model[1].forward
    model[1].forward = lambda x: own(x)
    return model


class RoundsByLayout(nn.Module):
    """Rounds channels_last otherwise than contiguous images, as the convolutions of some processors do."""

    def forward(self, input: Tensor) -> Tensor:
        is_turned = input.is_contiguous(memory_format=torch.channels_last)
        return input if is_turned else input + torch.finfo(input.dtype).eps / 4


def draw_each(count: int, *shape: int) -> list[Tensor]:
    return [draw(*shape, seed=number) for number in range(count)]


Case = tuple[nn.Sequential, list[Tensor], Callable[[nn.Module, Tensor], Tensor] | None]
CASES: dict[str, Callable[[], Case]] = {  # a model, its data and how it is called
    "half precision": lambda: (
        make_deep().to(torch.bfloat16),
        [batch.bfloat16() for batch in draw_each(4, 8, 3, 16, 16)],
        None,
    ),
    "half precision, rounded by layout": lambda: (
        nn.Sequential(RoundsByLayout(), nn.BatchNorm2d(3)).to(torch.bfloat16),
        [batch.bfloat16() for batch in draw_each(4, 8, 3, 16, 16)],
        None,
    ),
    "autocast": lambda: (make_deep(), draw_each(4, 8, 3, 16, 16), in_bfloat16),
    "pruned": lambda: (make_pruned(), draw_each(3, 64, 3, 22, 27), None),
    "widens": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3), Widens(8)), draw_each(1, 16, 3, 12, 12), None),
    "wrapped": lambda: (make_wrapped().to(torch.bfloat16), [draw(16, 4, 12, 12).bfloat16()], None),
    "wrapped, large": lambda: (make_wrapped(), [draw(32, 4, 128, 128).bfloat16()], in_bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_statistics_are_measured_at_once(case: str) -> None:
    """Not layer by layer, as where a model is random or keeps state."""
    model, data, forward = CASES[case]()

    with no_warning():
        found = population_statistics(model.eval(), data, forward=forward)

    assert found.check is not None and found.check.is_exact
    assert found.cost is not None and found.cost.passes <= 2


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


def test_a_random_model_is_told_in_half_precision_too() -> None:
    """Where what it draws moves a batch's moments by more than rounding may."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Drops(), nn.BatchNorm2d(8)).to(torch.bfloat16).eval()
    data = [draw(64, 3, 8, 8, seed=number).bfloat16() for number in range(3)]
    with pytest.warns(RuntimeWarning, match="random"):
        population_statistics(model, data)


def test_a_forward_of_something_else_is_seen_in_half_precision_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).to(torch.bfloat16).eval()
    own = model[0].forward
    model[0].forward = lambda x: own(3 * x)
    x = draw(16, 4, 12, 12).bfloat16()
    assert_moments(population_statistics(model, [x])["0"], references.moments(3 * x))


def test_a_layer_that_averages_something_else_is_recorded_so() -> None:
    class Larger(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(1.0005 * input)

    model = nn.Sequential(Larger(4))
    x = draw(64, 4, 32, 32)
    with no_warning(), record(model) as trace:
        model(x)
    torch.testing.assert_close(trace.layers["0"].moments[0, 0], (1.0005 * x).mean((0, 2, 3)))


def test_numbers_are_widened_on_the_cpu_where_their_device_has_no_float64() -> None:
    values = draw(3)
    of_a_mac = Mock(spec=Tensor, device=Mock(type="mps"), cpu=lambda: values)

    assert to_float64(values).dtype == torch.float64
    assert torch.equal(to_float64(of_a_mac), values.double())


def test_batches_of_half_precision_are_all_averaged() -> None:
    """Plain sums of their moments, which have few digits, are often the same."""
    model = SelfTuned.convert(nn.Sequential(nn.BatchNorm2d(16))).to(torch.bfloat16).train()
    for number in range(200):
        model(draw(16, 16, 16, 16, seed=number).relu().bfloat16())

    assert momenta(model)["batches"].tolist() == [200, 200]


def test_weights_that_are_lost_beside_their_biases_leave_nothing_out() -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model = nn.Sequential(*convolutions, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(model[4].get_parameter("weight"), 1e-10)
    nn.init.uniform_(model[4].get_parameter("bias"), 0.5, 1.0)
    data = [draw(32, 3, 9, 9, seed=number) for number in range(6)]
    for batch in data * 20:
        model(batch)

    diagnosis = diagnose(model.eval(), data)

    assert "BN304" not in diagnosis.findings["code"].tolist()


def test_images_of_255_levels_are_told_in_half_precision() -> None:
    """There 255 + 1 is 256, and 256 + 1 as well."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(256, 3, 16, 16, generator=generator)
    is_white = torch.rand(256, 1, 16, 16, generator=generator) < 0.6
    images = images.where(~is_white, 1.0)
    brightness = images.mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        chosen = torch.randperm(256, generator=generator)[:64]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()

    data = list(zip((255 * images).split(64), labels.split(64), strict=True))
    diagnosis = diagnose(model.eval(), data, forward=lambda model, batch: in_bfloat16(model, batch[0]))

    assert diagnosis.causes == ["BN209"]
    assert math.isclose(float(diagnosis.found[0].words.split("·")[0].split()[-1]), 255, rel_tol=0.1)
