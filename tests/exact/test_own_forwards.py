"""Layers with forwards of their own: what they normalize is seen, or they are named."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, population_statistics, recalibrate, record
from bnlab.model.layers import get_running_buffers
from tests import references
from tests.helpers import assert_moments, images, measure_difference, unchanged


class Averaging(nn.BatchNorm2d):
    """It averages what `select` makes of its input, and normalizes with its buffers."""

    correction = 1

    def select(self, x: Tensor) -> Tensor:
        return x

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if self.training:
            values = self.select(input)
            mean.copy_(0.9 * mean + 0.1 * values.mean((0, 2, 3)))
            var.copy_(0.9 * var + 0.1 * values.var((0, 2, 3), correction=self.correction))
        return F.batch_norm(input, mean, var, eps=self.eps)


class Biased(Averaging):
    correction = 0


class Rounded(Averaging):
    def select(self, x: Tensor) -> Tensor:
        return x.float()


class Filtered(Averaging):
    def select(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1)


class Activated(nn.BatchNorm2d):
    """As timm's: an activation and dropout inside are no reason to refuse it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(F.relu(super().forward(input)), 0.3, self.training)


class ByHand(nn.BatchNorm2d):
    """Its arithmetic is its own."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return (input - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()


class Half(nn.BatchNorm2d):
    """It averages half of its channels."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("running_mean")[:4].lerp_(input.mean((0, 2, 3))[:4], 0.1)
            self.get_buffer("running_var")[:4].lerp_(input.var((0, 2, 3))[:4], 0.1)
        return input


class Slim(nn.BatchNorm2d):
    """It takes fewer channels than it has."""

    def forward(self, input: Tensor) -> Tensor:
        k = input.shape[1]
        mean, var = self.get_buffer("running_mean")[:k], self.get_buffer("running_var")[:k]
        return F.batch_norm(input, mean, var, None, None, self.training)


class Masked(nn.BatchNorm1d):
    """Of x [N, C, T] it averages and normalizes what a mask [N, T] leaves."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        normalized = torch.zeros_like(x.transpose(1, 2))
        normalized[mask] = super().forward(x.transpose(1, 2)[mask])
        return normalized.transpose(1, 2)


ALLOWED = [
    *itertools.product([Activated], [0.1, 1e-3, 1.0, None], [1.0], [0.0, 1e4]),
    *itertools.product([Averaging, Biased, Rounded], [0.1], [1e-3, 1.0, 1e3], [0.0]),
]


@pytest.mark.parametrize(("kind", "momentum", "sigma", "offset"), ALLOWED)
def test_what_averages_its_input_is_measured(
    kind: type[nn.BatchNorm2d], momentum: float | None, sigma: float, offset: float
) -> None:
    """Rounding inside of the layer is no reason to refuse it."""
    data = [sigma * x + offset for x in images(4, 4, channels=8, side=5)]
    model = nn.Sequential(kind(8, momentum=momentum))
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, data)

    assert_moments(found["0"], references.merge(data))


def test_what_is_normalized_is_measured_whatever_is_averaged() -> None:
    """Filtered averages something else, and normalizes its input."""
    data = images(8, 8)
    assert_moments(population_statistics(nn.Sequential(Filtered(3)), data)["0"], references.merge(data))


@pytest.mark.parametrize(("kind", "channels"), [(ByHand, 8), (Half, 8), (Slim, 4)])
def test_what_is_no_operation_of_all_channels_is_not_covered(kind: type[nn.BatchNorm2d], channels: int) -> None:
    """It is named, and the other layers are measured."""
    model = nn.Sequential(kind(8), nn.BatchNorm2d(channels))
    with unchanged(model), pytest.warns(RuntimeWarning, match="in the forward of '0' no batch-norm operation"):
        found = population_statistics(model, images(4, channels=channels))
    assert ([*found], found.unseen) == (["1"], ("0",))


def test_data_that_are_not_finite_are_not_blamed_on_the_layer() -> None:
    with pytest.raises(ValueError, match="has NaN or infinite values"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(nn.Sequential(Activated(3)), [images(8)[0] * torch.nan])


def test_a_layer_that_never_averages_is_measured() -> None:
    class Frozen(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.batch_norm(input, self.running_mean, self.running_var)

    data = images(8, 8)
    assert_moments(population_statistics(nn.Sequential(Frozen(3)), data)["0"], references.merge(data))


def test_a_forward_that_was_set_on_a_layer_is_seen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = images(8, 8)
    own = model[0].forward
    for factor in (1, 2):
        model[0].forward = lambda x, factor=factor: own(factor * x)
        with unchanged(model):
            found = population_statistics(model, data)
        assert_moments(found["0"], references.merge([factor * x for x in data]))


def test_a_forward_that_was_set_on_a_layer_may_round_as_torch_does_where_channels_are_innermost() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))
    own = model[1].forward
    model[1].forward = lambda x: own(x)
    data = torch.randn(512, 8, 24, 24, generator=torch.Generator().manual_seed(0))
    population_statistics(model, [data.to(memory_format=torch.channels_last)])


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Activated])
def test_layers_that_are_recorded_are_measured_as_ever(kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(kind(3))
    expected = population_statistics(model, images(8, 8))
    with warnings.catch_warnings(), record(model), record(model):
        warnings.simplefilter("error")
        found = population_statistics(model, images(8, 8))

    assert measure_difference(found, expected) == 0


# -- masks and parts ------------------------------------------------------------------------------------------------


def make_sequences() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(20):
        mask = torch.arange(40) < torch.randint(5, 41, (16, 1), generator=generator)
        x = torch.randn(16, 2, 40, generator=generator) + 5
        batches.append((x * mask[:, None], mask))
    return batches


def call(model: nn.Module, batch: Any) -> Any:
    return model(*batch)


@pytest.mark.parametrize("statistic", ["exact", "precise"])
def test_a_masked_layer_is_measured(statistic: str) -> None:
    batches = make_sequences()
    model = Masked(2)
    with unchanged(model):
        found = population_statistics(model, batches, forward=call, statistic=statistic, standard_errors=True)

    unmasked = torch.cat([x.transpose(1, 2)[mask] for x, mask in batches])
    assert_moments(found[""], references.moments(unmasked))
    assert found.standard_errors is not None


class InParts(nn.BatchNorm2d):
    """It averages one part of a batch after the other, of which the last is smaller."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super(InParts, self).forward(part) for part in input.split(3)])


class InPartsWhileTrained(InParts):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else nn.BatchNorm2d.forward(self, input)


class AroundOne(nn.Module):
    """It calls a batch norm on parts of a batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bn(part) for part in x.chunk(3)])


class WithoutLast(nn.BatchNorm2d):
    """It averages two parts of a batch and leaves the last images out."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            for part in input[:-2].chunk(2):
                super().forward(part)
        return F.batch_norm(input, self.running_mean, self.running_var)


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [InParts, InPartsWhileTrained, AroundOne])
def test_ghost_batch_norms_are_measured_over_all_parts(kind: Any, momentum: float | None, strategy: str) -> None:
    """What is given to all parts of all batches is what the layer normalizes, however each part was averaged."""
    data = images(8, 7)
    ghost = kind(3)
    model = nn.Sequential(ghost, nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).eval()
    layer = next(module for module in ghost.modules() if isinstance(module, nn.BatchNorm2d))
    layer.momentum = momentum

    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, data, strategy=strategy)

    name = next(name for name, module in model.named_modules() if module is layer)
    assert_moments(found[name], references.merge(data))
    assert found.check is not None and found.check.is_exact


def test_a_ghost_batch_norm_is_recalibrated_and_diagnosed() -> None:
    data = images(8, 7)
    model = nn.Sequential(InParts(3), nn.Flatten(), nn.LazyLinear(2)).eval()
    model(data[0])

    diagnosis = diagnose(model, data)
    repair = recalibrate(model, data, force=True)

    expected = references.merge(data)
    assert repair.written
    running_mean = model.get_buffer("0.running_mean").double()
    torch.testing.assert_close(running_mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_moments(diagnosis.patient.exact["0"], expected)


def test_what_is_normalized_counts_and_not_the_parts_that_are_averaged() -> None:
    data = images(8, 7)
    assert_moments(population_statistics(nn.Sequential(WithoutLast(3)), data)["0"], references.merge(data))


class Padded(Masked):
    """It averages padding too, which it does not normalize."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, torch.ones_like(mask) if self.training else mask)


def test_a_layer_that_averages_its_padding_is_measured_without() -> None:
    batches = make_sequences()
    found = population_statistics(Padded(2), batches, forward=call)
    unmasked = torch.cat([x.transpose(1, 2)[mask] for x, mask in batches])
    assert_moments(found[""], references.moments(unmasked))


class OfPair(nn.BatchNorm1d):
    """It averages the rows that a mask keeps, of a pair (features, mask)."""

    def forward(self, input: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        features, keep = input
        if self.training:
            super().forward(features[keep])
        mean, var = get_running_buffers(self)
        return F.batch_norm(features, mean, var, eps=self.eps)


class Net(nn.Module):
    """A network with a batch norm of masked rows; the first rows of a batch are left out."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.arange(len(x)) >= 5
        output: Tensor = self.norm((x + 3 * keep[:, None], keep))
        return output


def test_a_layer_of_a_pair_is_measured_diagnosed_and_repaired() -> None:
    torch.manual_seed(0)
    model = Net(OfPair(3)).eval()
    data = [torch.randn(32, 3) for _ in range(4)]
    kept = torch.cat([x + 3 * (torch.arange(len(x)) >= 5)[:, None] for x in data])
    assert_moments(population_statistics(model, data)["norm"], references.moments(kept))

    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in data]
    recalibrate(model, labelled, force=True)
    torch.testing.assert_close(model.norm.get_buffer("running_mean"), kept.mean(0), rtol=1e-4, atol=1e-5)
