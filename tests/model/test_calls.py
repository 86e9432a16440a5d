"""Batch norm's operations as they are seen: named, read and changed, whatever calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.model.calls import NormCall, NormCallMode

CHANNELS = 3


class Masked(nn.BatchNorm2d):
    """Normalizes every second image alone."""

    def forward(self, x: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        output[::2] = super().forward(x[::2])
        return output


class Scaled(nn.BatchNorm2d):
    """Normalizes 2·x + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x + 1)


class InParts(nn.BatchNorm2d):
    """Normalizes halves of a batch one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(InParts, self).forward(part) for part in x.chunk(2)])


class ByHand(nn.Module):
    """Normalizes by a layer's averages without calling it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm = make_layer(nn.BatchNorm2d)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "forward":
            return self.norm.forward(x)
        with torch.inference_mode(self.how == "inference"):
            mean, var = self.norm.running_mean, self.norm.running_var
            return F.batch_norm(x, mean, var, self.norm.weight, self.norm.bias, eps=self.norm.eps)


def make_layer(kind: Callable[[int], nn.Module]) -> Any:
    """Make a layer in eval mode whose averages are those of no batch."""
    torch.manual_seed(1)
    layer: Any = kind(CHANNELS)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer.eval()


def images() -> Tensor:
    return torch.randn(4, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(0))


def wrap(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), layer).eval()


def trace(model: nn.Module) -> Any:
    return torch.jit.trace(model, images())


def script(model: nn.Module) -> Any:
    return torch.jit.script(model)


def export(model: nn.Module) -> Any:
    return torch.export.export(model, (images(),), strict=False).module()


def compile_eagerly(model: nn.Module) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="eager")


PLAIN = lambda x: [x]  # noqa: E731
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], list[Tensor]]]] = {
    "torch's own": (lambda: wrap(make_layer(nn.BatchNorm2d)), PLAIN),
    "synchronized": (lambda: wrap(make_layer(nn.SyncBatchNorm)), PLAIN),
    "masked": (lambda: wrap(make_layer(Masked)), lambda x: [x[::2]]),
    "scaled": (lambda: wrap(make_layer(Scaled)), lambda x: [2 * x + 1]),
    "in parts": (lambda: wrap(make_layer(InParts)), lambda x: [*x.chunk(2)]),
    "forward called": (lambda: ByHand("forward"), PLAIN),
    "by hand": (lambda: ByHand("function"), PLAIN),
    "by hand in inference mode": (lambda: ByHand("inference"), PLAIN),
    "scripted": (lambda: script(wrap(make_layer(nn.BatchNorm2d))), PLAIN),
    "traced": (lambda: trace(wrap(make_layer(nn.BatchNorm2d))), PLAIN),
    "exported": (lambda: export(wrap(make_layer(nn.BatchNorm2d))), PLAIN),
    "compiled": (lambda: compile_eagerly(wrap(make_layer(nn.BatchNorm2d))), PLAIN),
    "symbolically traced": (lambda: torch.fx.symbolic_trace(wrap(make_layer(nn.BatchNorm2d))), PLAIN),
}


def name_buffers(model: nn.Module) -> dict[str, Any]:
    """Name what keeps running averages, also in graphs, where it is a plain module with buffers."""
    return {name: module for name, module in model.named_modules() if getattr(module, "running_mean", None) is not None}


def list_calls(model: nn.Module, x: Tensor, answer: Any = None) -> tuple[list[NormCall], Tensor]:
    """List the operations that a forward runs, and its output."""
    calls: list[NormCall] = []

    def note(call: NormCall) -> Any:
        calls.append(call)
        return answer(call) if answer is not None else None

    with torch.no_grad(), NormCallMode(name_buffers(model), note):
        output: Tensor = model(x)
    return calls, output


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_is_named_and_read(kind: str) -> None:
    """In whatever way it is reached, by what it normalizes and not by what its layer is given."""
    make, expected = KINDS[kind]
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = images()

    calls, output = list_calls(model, x)

    (name,) = name_buffers(model)
    assert [call.name for call in calls] == [name] * len(expected(x))
    assert all(torch.equal(call.x, values) for call, values in zip(calls, expected(x), strict=True))
    assert not any(call.uses_batch for call in calls)
    with torch.no_grad():
        assert torch.equal(output, model(x))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_is_changed_and_nothing_written(kind: str) -> None:
    """It normalizes by the answer, as it does where that is in its buffers."""
    make, _ = KINDS[kind]
    model = make()
    (layer,) = name_buffers(model).values()
    mean, var = torch.full((CHANNELS,), 0.25), torch.full((CHANNELS,), 4.0)
    before = layer.running_mean.clone()

    _, output = list_calls(model, images(), lambda call: call.normalize_by(mean, var))

    assert torch.equal(layer.running_mean, before)
    with torch.no_grad():
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        assert torch.equal(output, model(images()))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_an_operation_in_train_mode_says_so(grad: Any) -> None:
    """And normalizes by the answer all the same, in place of its batch."""
    layer = make_layer(nn.BatchNorm2d)
    x = images()
    with torch.no_grad():
        expected = layer(x)
    averages = layer.running_mean.clone(), layer.running_var.clone()
    layer.train()
    calls: list[NormCall] = []

    def answer(call: NormCall) -> NormCall:
        calls.append(call)
        return call.normalize_by(*averages)

    with grad(), NormCallMode({"norm": layer}, answer):
        output = layer(x)

    (call,) = calls
    assert call.uses_batch
    torch.testing.assert_close(output.detach(), expected)
    assert torch.equal(layer.running_mean, averages[0])


def test_an_operation_gets_another_weight_bias_and_input() -> None:
    layer = make_layer(nn.BatchNorm2d)
    weight, bias = torch.rand(2, CHANNELS)
    _, output = list_calls(layer, images(), lambda call: replace(call, x=2 * call.x, weight=weight, bias=bias))

    with torch.no_grad():
        expected = F.batch_norm(2 * images(), layer.running_mean, layer.running_var, weight, bias, eps=layer.eps)
    assert torch.equal(output, expected)


def test_an_operation_of_no_layer_has_no_name() -> None:
    layer = make_layer(nn.BatchNorm2d)
    calls: list[NormCall] = []
    with NormCallMode({"norm": layer}, calls.append):
        F.batch_norm(images(), torch.zeros(CHANNELS), torch.ones(CHANNELS))
        F.batch_norm(images(), None, None, training=True)
        # A copy of the averages is another place in memory.
        F.batch_norm(images(), layer.running_mean.clone(), layer.running_var.clone())

    assert [call.name for call in calls] == [None] * 3


def test_own_arithmetic_is_not_seen() -> None:
    layer = make_layer(nn.BatchNorm2d)
    calls: list[NormCall] = []
    with NormCallMode({"norm": layer}, calls.append):
        (images() - layer.running_mean[:, None, None]) / (layer.running_var[:, None, None] + layer.eps).sqrt()
    assert not calls
