"""Recording layers with a forward of their own, or with hooks that came later than the block."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import record, replay, running_statistics
from bnlab.estimators import EMA, PooledCumulative
from tests.helpers import assert_equal_statistics, images


class Averaging(nn.BatchNorm2d):
    """Averages by code of its own."""

    def __init__(self, how: str) -> None:
        super().__init__(3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3))
        weight = 0.3 if self.how == "another weight" else 0.1
        if self.how == "new buffers":
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
            self.running_var = 0.9 * self.running_var + 0.1 * var
        else:
            self.running_mean += weight * (mean - self.running_mean)
            self.running_var += weight * (var - self.running_var)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class Renorm(nn.BatchNorm2d):
    """Batch renormalization (Ioffe 2017): reads the running average in training."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        std, run = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r, d = (std.detach() / run).clamp(1 / 3, 3), ((mean.detach() - self.running_mean) / run).clamp(-5, 5)
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        place = (1, -1, 1, 1)
        return (x - mean.view(place)) / std.view(place) * r.view(place) + d.view(place)


class Mixed(nn.BatchNorm2d):
    """Every other batch is normalized by another layer (AdvProp, Xie et al. 2020)."""

    def __init__(self) -> None:
        super().__init__(3)
        self.other, self.calls = nn.BatchNorm2d(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) if self.calls % 2 else self.other(x)


class Warming(nn.BatchNorm2d):
    """Sets its momentum before it averages, or after it."""

    def __init__(self, late: bool) -> None:
        super().__init__(3, momentum=0.5)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        if not self.late:
            self.momentum *= 0.8
        y = super().forward(x)
        if self.late:
            self.momentum *= 0.8
        return y


class Plain(nn.BatchNorm2d):
    """As timm's, copies torch's forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, weight, self.eps)


class Skipping(nn.BatchNorm2d):
    """Takes the statistics of a part of its input, in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__(3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "half":
            return torch.cat([super().forward(x[::2]), x[1::2]])
        if self.how == "channels":
            parts = self.running_mean[:2], self.running_var[:2], self.weight[:2], self.bias[:2]
            return F.batch_norm(x[:, :2], *parts, True, self.momentum)
        if self.how == "clamped":
            return super().forward(x.clamp(-1, 1))
        self.running_mean.fill_(7.0)
        return super().forward(x)


def run(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    return [model(x).detach() for x in batches]


RECORDED: dict[str, Callable[[], nn.Module]] = {
    "its momentum": lambda: Averaging("its momentum"),
    "new buffers": lambda: Averaging("new buffers"),
    "renorm": lambda: Renorm(3),
    "mixed": Mixed,
    "momentum before": lambda: Warming(late=False),
    "momentum after": lambda: Warming(late=True),
    "copied": lambda: Plain(3),
    "cumulative": lambda: Plain(3, momentum=None),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_a_layer_with_a_forward_of_its_own_is_trained_as_without(kind: str) -> None:
    model = nn.Sequential(RECORDED[kind]())
    plainly, batches = copy.deepcopy(model), images(4, 6, 5, 4, 3)
    with record(model) as outer, record(model) as trace:
        outputs = run(model, batches)
    assert all(map(torch.equal, outputs, run(plainly, batches)))
    assert all(map(torch.equal, model[0].buffers(recurse=False), plainly[0].buffers(recurse=False)))
    assert model[0].momentum == plainly[0].momentum
    seen = batches[::2] if kind == "mixed" else batches
    assert trace.layers["0"].counts == outer.layers["0"].counts == [64 * len(x) for x in seen]
    for entry, x in zip(trace.layers["0"].moments, seen, strict=True):
        var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0 if kind == "renorm" else 1)
        torch.testing.assert_close(entry.double(), torch.stack((mean, var)), rtol=1e-5, atol=1e-6)
    if kind in {"its momentum", "new buffers", "renorm", "mixed", "copied"}:
        assert_equal_statistics(replay(trace, EMA(0.1))[trace.layers["0"].steps[-1]], running_statistics(model))
    assert not trace.layers["0"].restarts


@pytest.mark.parametrize("how", ["half", "channels", "clamped", "written"])
def test_what_else_a_forward_averages_is_refused(how: str) -> None:
    model = nn.Sequential(Skipping(how))
    plainly, (x,) = copy.deepcopy(model), images(6)
    with record(model), pytest.raises(ValueError, match="record: layer '0' averages in a way of its own, or something"):
        model(x)
    plainly(x)
    assert all(map(torch.equal, model.buffers(), plainly.buffers())) and model[0].momentum == 0.1


def test_another_weight_than_the_momentum_is_refused() -> None:
    model = nn.Sequential(Averaging("another weight"))
    with pytest.raises(ValueError, match="layer '0' averages in a way of its own"), record(model):
        model(*images(4))


def test_a_call_that_raises_and_non_finite_values() -> None:
    model, (good, bad) = nn.Sequential(Plain(3)), images(4, 4)
    bad[0, 0] = torch.nan
    with record(model) as trace:
        model(good)
        with pytest.raises(ValueError, match="more than 1 value"):
            model(torch.zeros(1, 3, 1, 1))
        model(bad), model(good)
    assert len(trace.layers["0"]) == 3 and trace.layers["0"].moments[[0, 2]].isfinite().all()


HOOKS: dict[str, Callable[..., Any]] = {
    "momentum": lambda layer, args: setattr(layer, "momentum", 1 / (1 + int(layer.num_batches_tracked))),
    "cut": lambda layer, args: (args[0][:2],),
    "nothing": lambda layer, args: None,
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_that_came_later_sees_the_layers_own(kind: str) -> None:
    layer, batches = nn.BatchNorm2d(3), images(4, 6, 5)
    plainly, seen = copy.deepcopy(layer), list[float | None]()
    with record(layer) as trace, record(layer) as inner:
        handle = layer.register_forward_pre_hook(HOOKS[kind])
        look = layer.register_forward_hook(lambda layer, *_: seen.append(layer.momentum), prepend=True)
        outputs = run(layer, batches)
        handle.remove(), look.remove()
        layer(batches[0])
    plainly.register_forward_pre_hook(HOOKS[kind])
    assert all(map(torch.equal, outputs, run(plainly, batches)))
    plainly._forward_pre_hooks.clear()
    plainly(batches[0])
    assert layer.momentum == plainly.momentum and 1.0 not in seen[1:]
    for mine, buffer in zip(layer.buffers(), plainly.buffers(), strict=True):
        torch.testing.assert_close(mine, buffer)
    sizes = [2, 2, 2, 4] if kind == "cut" else [4, 6, 5, 4]
    assert trace.layers[""].counts == inner.layers[""].counts == [64 * size for size in sizes]
    mean = torch.stack([x[:size].mean((0, 2, 3)) for x, size in zip([*batches, batches[0]], sizes, strict=True)])
    torch.testing.assert_close(trace.layers[""].moments[:, 0], mean)


def test_a_hook_that_writes_the_buffers_within_the_call_is_refused() -> None:
    layer, (x,) = nn.BatchNorm2d(3), images(4)
    layer.running_mean.fill_(3.0)
    with record(layer), pytest.raises(ValueError, match="a hook has written its buffers within the call"):
        layer.register_forward_pre_hook(lambda layer, args: layer.running_mean.mul_(0.5).new_empty(0).tolist() or None)
        layer(x)


def test_a_global_hook_sees_the_layers_own() -> None:
    layer, seen = nn.BatchNorm2d(3), list[float | None]()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module.momentum))
    try:
        with record(layer) as trace:
            run(layer, images(4, 4))
    finally:
        handle.remove()
    assert seen == [0.1, 0.1] and len(trace.layers[""]) == 2


class Wrapped(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm_after_one_call_in_channels_last(seed: int) -> None:
    """The moments are computed a second time, in another order of summation."""
    layer, generator = Wrapped(8), torch.Generator().manual_seed(seed)
    x = torch.randn(16, 8, 32, 32, generator=generator) + 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(layer), torch.no_grad():
            layer(x.contiguous(memory_format=torch.channels_last))


class Uncorrected(nn.BatchNorm2d):
    """Averages variances with ddof 0, as Keras and flax do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self.running_mean += 0.1 * (mean - self.running_mean)
            self.running_var += 0.1 * (var - self.running_var)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


@pytest.mark.parametrize("kind", [Uncorrected, Averaging])
def test_variances_that_some_estimators_take_for_unbiased_are_told(kind: type) -> None:
    layer = kind(3) if kind is Uncorrected else kind("in place")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record(nn.Sequential(layer)) as trace:
            layer(x := torch.randn(2, 3, 1, 2))
    told = ["'0' average variances with ddof 0" in str(w.message) for w in caught]
    assert told == [True] * (kind is Uncorrected)
    ratio = replay(trace, PooledCumulative())[1]["0"].var / x.double().var((0, 2, 3), correction=0)
    assert torch.allclose(ratio, torch.full_like(ratio, 0.75 if told else 1.0), atol=1e-5)
