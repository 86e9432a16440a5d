"""The first layer's statistics, against `population_statistics`, and forwards that end there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import population_statistics
from bnlab.doctor.examination import Examination
from bnlab.doctor.first_layer import FirstLayer
from bnlab.doctor.observing import observe_batches
from bnlab.layers import batch_norm_layers
from bnlab.statistics import Statistics
from tests.helpers import assert_moments, images, plain, unchanged


def find_first(model: nn.Module, data: list[Tensor], name: str, forward: Any = None) -> FirstLayer:
    examination = Examination.of(model, batch_norm_layers(model, caller="test"), forward, None, False)
    view = observe_batches(examination.make_task(data))
    return FirstLayer.of(examination, name, view)


def measure_whole(model: nn.Module, data: list[Tensor], name: str) -> Statistics:
    """Measure by whole forwards."""
    return population_statistics(model, data, layers=[name], progress=False)


def test_forwards_end_at_the_layer() -> None:
    model = plain()
    data = images(8, 8, 5)
    first = find_first(model, data, "1")
    modules: list[nn.Module] = []
    for module in model:
        module.register_forward_hook(lambda module, *_: modules.append(module))

    with unchanged(model):
        found = first.measure(data)

    assert modules == [model[0]] * 3
    assert list(found) == ["1"]
    assert_moments(found["1"], measure_whole(model, data, "1")["1"])


def test_a_forward_that_catches_exceptions_ends_too() -> None:
    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        try:
            return model(batch)
        except Exception:
            return model(batch.double())

    model = plain()
    data = images(8, 8)

    found = find_first(model, data, "1", forward).measure(data)

    assert_moments(found["1"], measure_whole(model, data, "1")["1"])


class Repeated(nn.Module):
    """A batch norm that is called twice, the second time with what depends on its own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x).relu() + 1)


def test_all_calls_of_a_layer_are_measured() -> None:
    model = Repeated().eval()
    data = images(8, 8)
    first = find_first(model, data, "norm")

    found = first.measure(data)

    assert not first.is_called_once
    assert_moments(found["norm"], measure_whole(model, data, "norm")["norm"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch * torch.nan, "the input of layer '1' has NaN or infinite values"),
        (lambda batch: batch[:1, :, :3, :3], "layer '1' got one value per channel"),
    ],
    ids=["NaN", "one value"],
)
def test_what_has_no_statistics_is_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    data = images(8)
    first = find_first(model, data, "1")

    with pytest.raises(ValueError, match=message):
        first.measure([change(batch) for batch in data])
