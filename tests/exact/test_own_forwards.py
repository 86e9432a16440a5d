"""Layers with forwards of their own: asked what they average, told with inputs=, or named."""

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
from tests.helpers import assert_moments, images, measure_difference, plain, unchanged


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


@pytest.mark.parametrize("momentum", [0.1, 1e-5, None])
def test_what_a_layer_averages_is_seen_however_little_a_batch_weighs(momentum: float | None) -> None:
    """With momentum=None a batch weighs little after a long training."""
    layer = Masked(4, momentum=momentum)
    layer.get_buffer("num_batches_tracked").fill_(100_000)
    model = nn.ModuleList([layer])
    x = images(8, channels=4, side=5)[0].flatten(2)
    mask = torch.arange(25) < 15
    x[:, :, ~mask] = 0.0
    data = [(x, mask.expand(8, 25))]

    with unchanged(model), pytest.raises(ValueError, match="does not average the moments of its input"):
        population_statistics(model, data, forward=lambda net, batch: net.get_submodule("0")(*batch))


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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Filtered, r"layer '0' \(Filtered\) does not average .* inputs=\{Filtered: function"),
        (Half, r"\(Half\) averages other channels than those of its input; say"),
        (Slim, "expects 8 channels, .* as some ghost batch norms do, .* leave it out of layers="),
    ],
)
def test_what_averages_something_else_is_refused_by_name(kind: type[nn.BatchNorm2d], message: str) -> None:
    channels = 4 if kind is Slim else 8
    model = nn.Sequential(kind(8))
    with unchanged(model), pytest.raises(ValueError, match=message):
        population_statistics(model, images(4, channels=channels))


def test_data_that_are_not_finite_are_not_blamed_on_the_layer() -> None:
    with pytest.raises(ValueError, match="has NaN or infinite values"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(nn.Sequential(Activated(3)), [images(8)[0] * torch.nan])


def test_a_layer_that_never_averages_is_measured_and_named_once() -> None:
    class Frozen(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.batch_norm(input, self.running_mean, self.running_var)

    with pytest.warns(RuntimeWarning, match=r"'0' never average in train mode") as caught:
        population_statistics(nn.Sequential(Frozen(3), nn.BatchNorm2d(3)), images(8, 8))
    assert len(caught) == 1


def test_a_forward_that_was_set_on_a_layer_is_asked() -> None:
    """One that normalizes another input is refused, one that only looks is not."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = images(8, 8)
    own = model[0].forward
    model[0].forward = lambda x: own(x + 0)
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(model, data)

    model[0].forward = lambda x: own(2 * x)
    with unchanged(model), pytest.raises(ValueError, match=r"layer '0' .* inputs=\{'0': function"):
        population_statistics(model, data)


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


# -- what inputs= says ------------------------------------------------------------------------------------------------


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


def take_unmasked(layer: nn.Module, args: tuple[Tensor, Tensor], kwargs: Any) -> Tensor:
    x, mask = args
    return x.transpose(1, 2)[mask]


def test_a_layer_that_averages_nothing_of_a_batchs_first_images_is_asked_on_all_of_it() -> None:
    ((x, mask), *_) = make_sequences()
    mask[:5] = False
    with pytest.raises(ValueError, match="does not average the moments of its input"):
        population_statistics(Masked(2), [(x, mask)], forward=call)


@pytest.mark.parametrize(("key", "statistic"), [(Masked, "exact"), ("", "precise")])
def test_a_masked_layer_is_measured_as_told(key: Any, statistic: str) -> None:
    batches = make_sequences()
    options: dict[str, Any] = {"forward": call, "statistic": statistic}
    with pytest.raises(ValueError, match=r"inputs=\{Masked: function"):
        population_statistics(Masked(2), batches, forward=call)

    found = population_statistics(Masked(2), batches, inputs={key: take_unmasked}, standard_errors=True, **options)

    unmasked = torch.cat([x.transpose(1, 2)[mask] for x, mask in batches])
    assert_moments(found[""], references.moments(unmasked))
    assert found.standard_errors is not None


def take_halved(layer: nn.Module, args: tuple[Tensor, Tensor], kwargs: Any) -> Tensor:
    return take_unmasked(layer, args, kwargs) / 2


def take_padded(layer: nn.Module, args: tuple[Tensor, Tensor], kwargs: Any) -> Tensor:
    return args[0]


def take_nearer(layer: nn.Module, args: tuple[Tensor, Tensor], kwargs: Any) -> Tensor:
    """Take values with the mean of those that are normalized, and half of their deviation."""
    values = take_unmasked(layer, args, kwargs)
    return (values + values.mean(0)) / 2


@pytest.mark.parametrize("wrong", [take_halved, take_padded, take_nearer])
@pytest.mark.parametrize("statistic", ["exact", "precise"])
def test_values_that_a_layer_does_not_average_are_refused_by_name(wrong: Any, statistic: str) -> None:
    model = Masked(2)
    with unchanged(model), pytest.raises(ValueError, match=r"inputs= gives layer '' \(Masked\) values with another"):
        population_statistics(model, make_sequences(), forward=call, inputs={Masked: wrong}, statistic=statistic)


class Ghost(nn.BatchNorm2d):
    """It averages the mean and the variance of the halves of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            halves = torch.stack(input.chunk(2))
            self.get_buffer("running_mean").lerp_(halves.mean((0, 1, 3, 4)), 0.1)
            self.get_buffer("running_var").lerp_(halves.var((1, 3, 4)).mean(0), 0.1)
        return input


def test_a_ghost_batch_norm_is_measured_as_told() -> None:
    """The mean of its groups is that of all values; their variance is not."""
    data = images(8, 8)
    inputs = {Ghost: lambda layer, args, kwargs: args[0]}
    assert_moments(population_statistics(nn.Sequential(Ghost(3)), data, inputs=inputs)["0"], references.merge(data))


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

    recalibration = recalibrate(model, data)
    diagnosis = diagnose(model, data)

    expected = references.merge(data)
    assert recalibration.written
    running_mean = model.get_buffer("0.running_mean").double()
    torch.testing.assert_close(running_mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_moments(diagnosis.case.exact["0"], expected)


def test_a_layer_whose_parts_are_not_all_of_its_input_is_refused() -> None:
    model = nn.Sequential(WithoutLast(3))
    message = r"\(WithoutLast\) does not average the moments of its input"
    with unchanged(model), pytest.raises(ValueError, match=message):
        population_statistics(model, images(8, 7))


class Padded(Masked):
    """It averages padding too, which it does not normalize."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, torch.ones_like(mask) if self.training else mask)


def test_a_layer_that_averages_its_padding_is_measured_without() -> None:
    batches = make_sequences()
    found = population_statistics(Padded(2), batches, forward=call, inputs={Padded: take_unmasked})
    unmasked = torch.cat([x.transpose(1, 2)[mask] for x, mask in batches])
    assert_moments(found[""], references.moments(unmasked))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({nn.BatchNorm1d: take_unmasked}, ValueError, "which is no layer here"),
        ([take_unmasked], TypeError, "pass functions by a layer's name or class"),
        ({"1": lambda *_: None}, ValueError, "expects 6 channels"),
        (
            {"1": lambda layer, args, _: (args[0],)},
            ValueError,
            "inputs= gives a tuple for layer '1'; return the values alone",
        ),
    ],
)
def test_what_inputs_may_be(inputs: Any, error: type[Exception], message: str) -> None:
    model = plain()
    with unchanged(model), pytest.raises(error, match=message):
        population_statistics(model, images(8), inputs=inputs)


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


def test_a_layer_of_a_pair_is_refused_by_name_or_measured_diagnosed_and_repaired() -> None:
    torch.manual_seed(0)
    model = Net(OfPair(3)).eval()
    data = [torch.randn(32, 3) for _ in range(4)]
    with pytest.raises(ValueError, match=r"is given a tuple; say what it normalizes: inputs=\{OfPair: "):
        population_statistics(model, data)

    inputs = {OfPair: lambda layer, args, kwargs: args[0][0][args[0][1]]}
    kept = torch.cat([x[5:] for x in data]) + 3
    assert_moments(population_statistics(model, data, inputs=inputs)["norm"], references.moments(kept))

    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in data]
    assert diagnose(model, labelled, inputs=inputs, progress=False).skipped is not None
    recalibrate(model, labelled, inputs=inputs, force=True, progress=False)
    torch.testing.assert_close(model.norm.get_buffer("running_mean"), kept.mean(0), rtol=1e-4, atol=1e-5)
