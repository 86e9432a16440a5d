"""Batch norms of other classes than torch's: measured, recorded and repaired where they normalize their input."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, gap, population_statistics, recalibrate, record, replay, running_statistics
from bnlab.estimators import Cumulative
from tests import references
from tests.helpers import assert_moments, images, unchanged

DATA = images(8, 5, 8)


class InPlaceNorm(nn.Module):
    """As InPlaceABN's: batch norm and an activation, written into the input; no `num_batches_tracked`."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.momentum = 0.1
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, channels))
        self.bias = nn.Parameter(torch.linspace(-1.0, 1.0, channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        with torch.no_grad():
            x.copy_(F.leaky_relu(y))
        return x * 1


class Filtered(InPlaceNorm):
    """It averages something other than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 3, 1, 1))


class Untouched(InPlaceNorm):
    """Its averages never change, as those of an adaptive instance norm, which has them for show."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, self.running_mean.clone(), self.running_var.clone())


class FrozenBatchNorm(InPlaceNorm):
    """As torchvision's and detectron2's: constants."""


def make_network(norm: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), norm(6), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), norm(5)
    )


def measure_slowly(model: nn.Module) -> dict[str, Any]:
    """Each norm in turn, all images at once, in float64."""
    x = torch.cat(DATA).double()
    found: dict[str, Any] = {}
    for name, layer in copy.deepcopy(model).double().eval().named_children():
        if hasattr(layer, "running_mean"):
            found[name] = references.merge([x])
            layer.get_buffer("running_mean").copy_(found[name].mean)
            layer.get_buffer("running_var").copy_(found[name].var)
        x = layer(x).detach()
    return found


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}], ids=str)
def test_norms_of_other_classes_are_measured(options: dict[str, Any]) -> None:
    model = make_network(InPlaceNorm)
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = population_statistics(model, DATA, **options)

    expected = measure_slowly(model)
    assert list(exact) == ["1", "3", "5"]
    for name, moments in expected.items():
        assert_moments(exact[name], moments)
    assert torch.equal(exact.weights["1"], model.get_submodule("1").weight.detach().double())  # type: ignore[union-attr, operator]


def test_they_are_measured_under_batches() -> None:
    """One batch, of which each layer then normalizes with the statistics of all images."""
    model = make_network(InPlaceNorm)
    one = population_statistics(model, [torch.cat(DATA)], statistic="precise")

    for name, moments in measure_slowly(model).items():
        assert_moments(one[name], moments)


def test_they_are_compared_diagnosed_and_repaired() -> None:
    model = make_network(InPlaceNorm)
    exact = population_statistics(model, DATA)
    assert gap(exact, running_statistics(model))["mean_gap"].min() > 0.01
    layers = diagnose(model, DATA).layers
    assert layers is not None and [*layers["layer"]] == ["1", "3", "5"]

    repair = recalibrate(model, DATA, force=True)
    assert gap(exact, running_statistics(model))["mean_gap"].max() < 1e-5
    repair.undo()
    assert not running_statistics(model)["1"].mean.any()


def test_they_are_recorded_before_they_write_into_their_input() -> None:
    model = nn.Sequential(InPlaceNorm(3))
    data = images(8, 8)
    with warnings.catch_warnings(), record(model) as trace:
        warnings.simplefilter("error")
        for batch in data:
            model(batch.clone())
            trace.step()

    means = torch.stack([batch.double().mean((0, 2, 3)) for batch in data])
    torch.testing.assert_close(replay(trace, Cumulative(), [2])[2]["0"].mean, means.mean(0), rtol=0, atol=1e-6)


def test_those_without_an_operation_of_their_own_averages_are_left_out_by_name() -> None:
    model = make_network(Untouched)
    with (
        unchanged(model),
        pytest.warns(RuntimeWarning, match="in the forward of '1', '5' no batch-norm oper") as caught,
    ):
        exact = population_statistics(model, DATA)

    assert len(caught) == 1
    assert list(exact) == ["3"]
    assert exact.unseen == ("1", "5")
    assert list(gap(exact, running_statistics(model))["layer"]) == ["3"]
    with pytest.raises(ValueError, match="none that can be measured"):
        population_statistics(model, DATA, layers=["1"])


def test_what_they_normalize_is_measured() -> None:
    exact = population_statistics(nn.Sequential(Filtered(3)), DATA)

    assert_moments(exact["0"], references.merge([F.avg_pool2d(x.double(), 3, 1, 1) for x in DATA]))


def test_constants_and_instance_norms_stay_out() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3), FrozenBatchNorm(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(population_statistics(model, DATA)) == ["0", "3"]
    assert list(running_statistics(model)) == ["0", "3"]
