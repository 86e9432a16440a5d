"""Recording models that are compiled, traced or called past their hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import (
    record,
    replay,
    running_statistics,
)
from bnlab.estimators import EMA
from tests.helpers import assert_equal_statistics, images, plain, unchanged, without_dropout


def compiled_whole(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=backend)


def compiled_part(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    model[1] = torch.compile(model[1], backend=backend)
    return model


def compiled_forward(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def compiled_in_place(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    model.compile(backend=backend)
    return model


def compiled_function(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: model(x), backend=backend)


COMPILERS = [compiled_whole, compiled_part, compiled_forward, compiled_in_place, compiled_function]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_inside_of_the_block(compiler: Callable[..., Any], backend: str) -> None:
    """Entries, steps and buffers are those of uncompiled training, through evaluations and after the block as well."""
    torch._dynamo.reset()
    plainly, recorded = without_dropout(plain()), without_dropout(plain())
    batches = images(6, 6, 5)
    with record(plainly) as expected, record(recorded) as trace:
        call = compiler(recorded, backend)
        for x in batches:
            train_once(plainly, plainly, x), train_once(recorded, call, x)
            plainly.eval(), recorded.eval()
            with torch.no_grad():
                torch.testing.assert_close(call(x), plainly(x))
            plainly.train(), recorded.train()
    assert trace.last_step == 3 and list(trace.layers) == list(expected.layers)
    for name, entries in expected.layers.items():
        assert trace.layers[name].steps == entries.steps == [1, 2, 3] and trace.layers[name].counts == entries.counts
        torch.testing.assert_close(trace.layers[name].moments, entries.moments)
    assert not any(layer.restarts for layer in trace.layers.values())
    train_once(plainly, plainly, batches[0]), train_once(recorded, call, batches[0])
    assert trace.last_step == 3 and all(len(layer) == 3 for layer in trace.layers.values())
    for found, buffer in zip(recorded.buffers(), plainly.buffers(), strict=True):
        torch.testing.assert_close(found, buffer)


def train_once(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    call(x).square().mean().backward()
    optimizer.step()


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    plainly, recorded = without_dropout(plain()), without_dropout(plain())
    with record(plainly) as expected, record(recorded) as trace:
        call = torch.compile(recorded)
        for x in images(4, 4, 3):
            train_once(plainly, plainly, x), train_once(recorded, call, x)
    for name, entries in expected.layers.items():
        torch.testing.assert_close(trace.layers[name].moments, entries.moments, rtol=1e-4, atol=1e-5)
    for found, buffer in zip(recorded.buffers(), plainly.buffers(), strict=True):
        torch.testing.assert_close(found, buffer, rtol=1e-5, atol=1e-5)


class CompiledForward(nn.Sequential):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_compiled_before_the_block() -> None:
    by_instance = plain()
    by_instance.forward = torch.compile(by_instance.forward, backend="eager")  # type: ignore[method-assign]
    part = plain()
    part[1].compile(backend="eager")
    for model in (by_instance, part, CompiledForward(nn.BatchNorm2d(3))):
        with unchanged(model), pytest.raises(ValueError, match="record: the model is compiled"), record(model):
            pass
    uncompiled = plain()
    uncompiled.forward = torch.compiler.disable(uncompiled.forward)  # type: ignore[method-assign]
    with record(uncompiled) as trace:
        uncompiled(images(4)[0])
    assert trace.last_step == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_function_that_was_compiled_before_the_block(backend: str) -> None:
    """Its graph has no hooks, and nothing on the model shows it."""
    torch._dynamo.reset()
    model, plainly, (x,) = without_dropout(plain()), without_dropout(plain()), images(4)
    call = torch.compile(lambda x: model(x), backend=backend)
    call(x), plainly(x)
    with (
        pytest.warns(UserWarning, match="record: '1', '4' were trained on 2 batches past their hooks") as found,
        record(model) as trace,
    ):
        call(x), call(x), plainly(x), plainly(x)
    assert len(found) == 1 and not trace.layers["1"].steps
    for mine, buffer in zip(model.buffers(), plainly.buffers(), strict=True):
        torch.testing.assert_close(mine, buffer)


def test_a_direct_forward_is_noticed() -> None:
    """The replay goes on from what it has left, and a warning names the layer."""
    model, (x,) = plain(), images(4)
    with (
        pytest.warns(UserWarning, match="record: '1' were trained on 1 batch past their hooks"),
        record(model) as trace,
    ):
        model(x)
        model[1].forward(torch.randn(5, 6, 4, 4))
        model(x)
    assert_equal_statistics(replay(trace, EMA(0.1))[2], running_statistics(model))
    assert [start.entries for start in trace.layers["1"].restarts] == [1] and not trace.layers["4"].restarts


@pytest.mark.parametrize(
    "graph",
    [
        lambda model, x: torch.jit.trace(model, x),
        lambda model, x: torch.export.export(model, (x,)),
        lambda model, x: torch.fx.experimental.proxy_tensor.make_fx(model)(x),
    ],
)
def test_graphs_are_not_made_in_train_mode_inside_of_the_block(graph: Callable[..., Any]) -> None:
    model, (x,) = plain(), images(4)
    with record(model) as trace:
        with unchanged(model[1]), pytest.raises(ValueError, match="record: layer '1' is traced or exported in train"):
            graph(model, x)
        model(x)
    assert len(trace.layers["1"]) == 1
    with record(model.eval()) as trace:
        graph(model, x)
    assert trace.last_step == 0


class Chunked(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super(Chunked, self).forward(part) for part in input.chunk(2)])


def test_a_layer_that_takes_its_statistics_in_parts() -> None:
    model = nn.Sequential(Chunked(3))
    with record(model), pytest.raises(ValueError, match=r"layer '0' takes its statistics 2 times in one call"):
        model(images(4)[0])
    assert model[0].momentum == 0.1
