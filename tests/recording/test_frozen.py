"""Recording one pass with the weights as they are: against torch's update_bn, and the model comes back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from bnlab import record, record_frozen, replay, running_statistics
from bnlab.estimators import Cumulative
from bnlab.nn import SelfTuned
from tests.exact.zoo import conv
from tests.helpers import assert_equal_statistics, images, plain, same_traces, train, unchanged

DATA = images(6, 6, 5)


@pytest.mark.parametrize("mode", [True, False])
def test_its_average_is_what_update_bn_computes(mode: bool) -> None:
    model = plain().train(mode)
    torch.manual_seed(3)
    with unchanged(model):
        trace = record_frozen(model, DATA, training=True)
    torch.manual_seed(3)
    update_bn(DATA, twin := copy.deepcopy(model))
    assert_equal_statistics(replay(trace, Cumulative())[3], running_statistics(twin), tolerance=1e-6)


def test_all_but_the_norms_is_as_in_evaluation() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()

    trace = record_frozen(model, DATA)

    for (mean, var), x in zip(trace.layers["1"].moments, DATA, strict=True):
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(var, x.var((0, 2, 3)))
    with_dropout = record_frozen(model, DATA, training=True)
    assert not same_traces(with_dropout, trace)


def test_a_batch_is_a_step_whatever_its_forward_calls() -> None:
    model = nn.ModuleDict({"a": conv(3, 4), "b": conv(4, 4)})

    def forward(model: Any, batch: dict[str, Tensor]) -> None:
        x = batch["x"]
        once = model["a"](x)
        twice = model["a"](x + 1)
        model["b"](once + twice)

    trace = record_frozen(model, [{"x": x} for x in DATA], forward=forward)

    assert trace.layers["a.1"].steps == [1, 1, 2, 2, 3, 3]
    assert trace.layers["b.1"].steps == [1, 2, 3]


def test_batches_before_count_for_nothing_and_self_tuned_layers_are_as_plain_ones() -> None:
    train(model := plain(), DATA)
    trace = record_frozen(model, DATA)
    first = torch.cat([layer.moments[0] for layer in trace.layers.values()], dim=1).double()

    assert torch.equal(trace.layout.flatten(replay(trace, Cumulative())[1]), first)
    assert same_traces(record_frozen(model, [(x, 0) for x in DATA]), trace)  # labels are passed over
    assert same_traces(record_frozen(SelfTuned.convert(model), DATA), trace)


def test_batches_and_gradients_to_come_are_left_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *plain().train())
    (x, *_) = images(4)
    kept = x.clone()
    loss = model(x.clone()).sum()
    record_frozen(model, [x])
    loss.backward()

    assert torch.equal(x, kept)


def test_what_is_refused_and_how() -> None:
    model = plain()
    for batches, options, error, message in (
        ([], {}, ValueError, "record_frozen: batches is empty"),
        (DATA[0], {}, TypeError, "record_frozen: batches is a Tensor; pass an iterable of batches"),
        (DATA, {"forward": 3}, TypeError, "record_frozen: forward is a int"),
        ([DATA[0], DATA[1] * float("nan")], {}, ValueError, "layer '1' was given NaN or infinite values"),
    ):
        with unchanged(model), pytest.raises(error, match=message):
            record_frozen(model, batches, **options)  # type: ignore[arg-type]


class Activated(SelfTuned, nn.BatchNorm2d):
    """A self-tuned layer with a forward of its own, which does not show what it averages."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, self.training, 0.1, self.eps).relu()


def test_a_self_tuned_layer_with_a_forward_of_its_own_is_recorded_by_its_input() -> None:
    model = SelfTuned.convert(nn.Sequential(nn.BatchNorm2d(3)))
    model[0].__class__ = Activated  # type: ignore[index]

    with record(model) as trace:
        model(DATA[0])

    assert len(trace.layers["0"]) == 1
