"""Layers with forwards of their own: asked what they average, told with inputs=, or named."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, record, replay
from bnlab.estimators import EMA
from bnlab.exact.probe import probe
from tests import references
from tests.helpers import assert_moments, images, plain, unchanged


class Masked(nn.BatchNorm1d):
    """Of x [N, C, T] it averages what a mask [N, T] leaves."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        values = x.transpose(1, 2)[mask]
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        if self.training:
            mean.lerp_(values.mean(0), 0.1)
            var.lerp_(values.var(0), 0.1)
            mean = values.mean(0)
            var = values.var(0)
        return (x - mean[:, None]) / (var[:, None] + self.eps).sqrt() * mask[:, None]


class Activated(nn.BatchNorm2d):
    """As timm's: an activation and dropout inside are no reason to refuse it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(F.relu(super().forward(input)), 0.3, self.training)


class Smoothed(nn.BatchNorm2d):
    """It averages a filtered input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(input, 3, 1, 1))


class Slim(nn.BatchNorm2d):
    """It takes fewer channels than it has."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        k = input.shape[1]
        mean, var = self.running_mean[:k], self.running_var[:k]
        return F.batch_norm(input, mean, var, None, None, self.training)


class Frozen(nn.BatchNorm2d):
    """It never averages."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Sliced(nn.Module):
    """It normalizes with slices of a layer's buffers, without a call of the layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        k = x.shape[1]
        assert self.bn.running_mean is not None
        assert self.bn.running_var is not None
        return F.batch_norm(x, self.bn.running_mean[:k], self.bn.running_var[:k], None, None, self.training)


def make_sequences() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(40):
        lengths = torch.randint(5, 41, (16,), generator=generator)
        mask = torch.arange(40) < lengths[:, None]
        x = torch.randn(16, 2, 40, generator=generator) + 5
        batches.append((x * mask[:, None], mask))
    return batches


def call(model: nn.Module, batch: Any) -> Any:
    return model(*batch)


def take_unmasked(layer: nn.Module, args: tuple[Tensor, Tensor], kwargs: Any) -> Tensor:
    x, mask = args
    return x.transpose(1, 2)[mask]


def test_a_masked_layer_is_refused_by_name() -> None:
    model = Masked(2)
    with unchanged(model), pytest.raises(ValueError, match=r"\(Masked\) does not average .* inputs=\{Masked: function"):
        population_statistics(model, make_sequences(), forward=call)


@pytest.mark.parametrize("upstream", ["population", "batch"])
@pytest.mark.parametrize("key", [Masked, ""])
def test_a_masked_layer_is_measured_as_told(key: Any, upstream: str) -> None:
    batches = make_sequences()
    unmasked = torch.cat([x.transpose(1, 2)[mask] for x, mask in batches])

    found = population_statistics(
        Masked(2),
        batches,
        forward=call,
        inputs={key: take_unmasked},
        upstream=upstream,
        standard_errors=True,
    )

    assert_moments(found[""], references.moments(unmasked))
    assert found[""].mean.tolist() == pytest.approx([5, 5], abs=0.05)
    assert found.standard_errors is not None


@pytest.mark.parametrize("kind", [Activated, nn.BatchNorm2d])
@pytest.mark.parametrize("momentum", [0.1, 1e-3, 1.0, None])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_what_averages_its_input_is_recognized(
    offset: float, momentum: float | None, kind: type[nn.BatchNorm2d]
) -> None:
    layer = kind(8, momentum=momentum)
    probed = probe(layer, (2 * torch.randn(4, 8, 5, 5) + offset,), {})

    assert probed is not None
    assert probed.is_input


class SmoothedInPart(nn.BatchNorm2d):
    """It averages its input, but for one channel, which it filters."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat((F.avg_pool2d(input[:, :1], 3, 1, 1), input[:, 1:]), 1))


@pytest.mark.parametrize("kind", [Smoothed, SmoothedInPart])
@pytest.mark.parametrize("momentum", [0.1, 1e-3, 1.0])
def test_what_averages_something_else_is_recognized(momentum: float, kind: type[nn.BatchNorm2d]) -> None:
    probed = probe(kind(8, momentum=momentum), (2 * torch.randn(4, 8, 5, 5) + 3,), {})

    assert probed is not None
    assert not probed.is_input
    assert probed.off > 0.1


class Rounded(nn.BatchNorm2d):
    """It averages in float32."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training:
            mean = input.mean((0, 2, 3)).float()
            var = input.var((0, 2, 3)).float()
            self.running_mean.copy_(0.9 * self.running_mean.float() + 0.1 * mean)
            self.running_var.copy_(0.9 * self.running_var.float() + 0.1 * var)
        return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)


class Half(nn.BatchNorm2d):
    """It averages half of its channels."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training:
            self.running_mean[:4].lerp_(input.mean((0, 2, 3))[:4], 0.1)
            self.running_var[:4].lerp_(input.var((0, 2, 3))[:4], 0.1)
        return input


@pytest.mark.parametrize("sigma", [1e-3, 1e-2, 1.0, 1e3])
def test_rounding_inside_of_a_layer_is_no_reason(sigma: float) -> None:
    probed = probe(Rounded(8), (sigma * torch.randn(4, 8, 5, 5),), {})
    assert probed is not None
    assert probed.is_input


def test_a_layer_that_averages_some_channels_is_no_plain_one() -> None:
    probed = probe(Half(8), (torch.randn(4, 8, 5, 5),), {})

    assert probed is not None
    assert not probed.is_input


def test_data_that_are_not_finite_are_not_blamed_on_the_layer() -> None:
    with pytest.raises(ValueError, match="has NaN or infinite values"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(nn.Sequential(Activated(3)), [images(8)[0] * torch.nan])


def test_a_probe_leaves_the_layer_and_random_numbers_as_they_were() -> None:
    layer = Activated(3)
    with unchanged(layer):
        probe(layer, (torch.ones(4, 3, 2, 2),), {})


def test_an_activation_inside_is_measured_and_a_filter_refused() -> None:
    data = images(8, 8)
    with_activation = nn.Sequential(Activated(3))
    with_filter = nn.Sequential(Smoothed(3))

    found = population_statistics(with_activation, data)

    assert_moments(found["0"], references.merge(data))
    with pytest.raises(ValueError, match="Smoothed"):
        population_statistics(with_filter, data)


def test_a_layer_that_never_averages_is_measured_and_named_once() -> None:
    with pytest.warns(RuntimeWarning, match=r"'0' never average in train mode") as told:
        population_statistics(nn.Sequential(Frozen(3), nn.BatchNorm2d(3)), images(8, 8))
    assert len(told) == 1


def test_a_layer_that_takes_fewer_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expects 8 channels"):
        population_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), Slim(8)), images(8, 8, 5))


def test_a_layer_whose_buffers_are_used_without_a_call_of_it_stays_unseen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), Sliced(8))
    found = population_statistics(model, [torch.randn(32, 3, 8, 8) + 4])
    assert found.unseen == ("2.bn",)


class Place(nn.Module):
    """A queue whose place moves with each batch, of which a few images leave a place where all do not fit."""

    place: Tensor
    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bn = Activated(3)
        self.register_buffer("queue", torch.zeros(32, 3))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> None:
        rows = self.bn(x).mean((2, 3))
        place = int(self.place)
        self.queue[place : place + len(x)] = rows
        self.place[0] = (place + len(x)) % 32


def test_asking_leaves_nothing_in_the_model() -> None:
    found = population_statistics(Place(), [torch.randn(32, 3, 4, 4)] * 2)
    assert found["bn"].count == 64 * 16


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


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Activated])
def test_layers_that_are_recorded_are_measured_as_ever(kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(kind(3))
    data = images(8, 8)
    expected = population_statistics(model, data)
    with warnings.catch_warnings(), record(model), record(model):
        warnings.simplefilter("error")
        found = population_statistics(model, data)

    assert torch.equal(found["0"].mean, expected["0"].mean)
    assert torch.equal(found["0"].var, expected["0"].var)


def test_a_layer_that_averages_some_channels_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"\(Half\) averages other channels than those of its input; say"):
        population_statistics(nn.Sequential(Half(8)), [torch.randn(8, 8, 4, 4)])


def test_other_norms_and_those_without_statistics_are_named_once() -> None:
    other = nn.Module()
    other.register_buffer("running_avg_mean", torch.zeros(3))
    other.register_buffer("running_std", torch.ones(3))
    other.forward = lambda x: x
    model = nn.Sequential(nn.BatchNorm2d(3), other, nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.warns(RuntimeWarning, match=r"'1' keep running statistics .*; '2' are batch norms without") as told:
        population_statistics(model, images(8))

    assert len(told) == 1


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({nn.BatchNorm1d: take_unmasked}, ValueError, "which is no layer here"),
        ({"9": take_unmasked}, ValueError, "which is no layer here"),
        ([take_unmasked], TypeError, "pass functions by a layer's name or class"),
        ({"1": "x"}, TypeError, "pass functions by a layer's name or class"),
        ({"1": lambda *_: None}, ValueError, "expects 6 channels"),
        ({"1": lambda layer, args, _: (args[0],)}, ValueError, "its input has type tuple"),
    ],
)
def test_what_inputs_may_be(inputs: Any, error: type[Exception], message: str) -> None:
    model = plain()
    with unchanged(model), pytest.raises(error, match=message):
        population_statistics(model, images(8), inputs=inputs)


def test_recording_leaves_alone_what_it_cannot_read() -> None:
    """Case 6: it never raises inside of the training."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Slim(8), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).train()
    bare = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="'1' were left to their own forward"), record(model) as trace:
        for x in images(6, 6):
            model(x)
    for x in images(6, 6):
        bare(x)

    assert len(trace.layers["1"]) == 0
    assert len(trace.layers["3"]) == 2

    for mine, other in zip(model.buffers(), bare.buffers(), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(replay(trace, EMA(0.1))[2]["3"].mean.float(), bare[3].running_mean)


def test_recording_says_where_a_layer_averages_something_else() -> None:
    model = Masked(2).train()
    with pytest.warns(UserWarning, match="are not the average of what was recorded"), record(model):
        for batch in make_sequences()[:2]:
            model(*batch)


def test_torch_s_own_layers_are_not_asked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(plain(), images(8))
