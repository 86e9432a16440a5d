"""Recording beside training: what the model, its user and other code see, and what counts as a step."""

import contextlib
import copy
import functools
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from bnlab import (
    MomentTrace,
    population_statistics,
    record,
    record_frozen,
    replay,
    running_statistics,
)
from bnlab.estimators import EMA, Cumulative, DebiasedEMA, LastBatch
from bnlab.nn import SelfTuned
from tests.helpers import (
    FrozenNorm,
    Interrupted,
    OwnNorm,
    assert_equal_statistics,
    checkpoint_but,
    images,
    plain,
    randomized,
    residual,
    train,
    unchanged,
    with_momentum,
    without_dropout,
)

SIZES = (6, 6, 6, 5, 2)


def volumes(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 2, 3, 4, 5, generator=generator) for n in sizes]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., list[Tensor]]]] = {
    "plain": (plain, images),
    "residual": (residual, images),
    "channels_last": (
        lambda: plain().to(memory_format=torch.channels_last),
        lambda *sizes: [x.to(memory_format=torch.channels_last) for x in images(*sizes)],
    ),
    "1d": (
        lambda: randomized(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))),
        lambda *sizes: [x.mean((2, 3)) for x in images(*sizes)],
    ),
    "3d": (lambda: randomized(nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Flatten())), volumes),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


@each_network
def test_training_is_what_it_is_without(network: str) -> None:
    build, data = NETWORKS[network]
    plainly, recorded = build(), build()
    batches = data(*SIZES)
    torch.manual_seed(0)
    expected = train(plainly, batches)
    torch.manual_seed(0)
    with record(recorded):
        outputs = train(recorded, batches)
    assert all(map(torch.equal, outputs, expected))
    running = [key for key in plainly.state_dict() if "running" in key]
    for key, value in plainly.state_dict().items():
        if key in running:
            torch.testing.assert_close(recorded.state_dict()[key], value, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(recorded.state_dict()[key], value), key


@each_network
@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0, None])
def test_replay_is_what_torch_would_have(network: str, momentum: float | None) -> None:
    """From a warm start, with an uneven last batch and with evaluations in between."""
    build, data = NETWORKS[network]
    trained, recorded = without_dropout(build()), without_dropout(build())
    warmup, batches = data(4, 4, 4), data(*SIZES)
    for model in (trained, recorded):
        train(model, warmup)
    with record(recorded) as trace:
        for batch in batches:
            train(recorded, [batch])
            recorded.eval()(batch)
            recorded.train()
    replayed = replay(trace, Cumulative() if momentum is None else EMA(momentum))
    assert list(replayed) == [0, 1, 2, 3, 4, 5]
    with_momentum(trained, momentum)
    for step, batch in enumerate(batches):
        assert_equal_statistics(replayed[step], running_statistics(trained))
        train(trained, [batch])
    assert_equal_statistics(replayed[5], running_statistics(trained))


def test_entries() -> None:
    model = plain()
    start = running_statistics(model)
    with record(model, step=10) as trace:
        train(model, images(4, 3))
    assert (trace.first_step, trace.last_step) == (10, 12)
    assert repr(trace) == "MomentTrace(2 layers, steps 10 to 12)"
    first = trace.layers["1"]
    assert (first.steps, first.counts, first.updates, first.eps) == ([11, 12], [256, 192], 0, 1e-5)
    assert trace.layers["4"].counts == [64, 48] and first.moments.shape == (2, 2, 6)
    torch.testing.assert_close(first.start.double(), torch.stack((start["1"].mean, start["1"].var)))
    assert list(replay(trace, LastBatch())) == [10, 11, 12] and math.isnan(replay(trace, LastBatch())[12]["1"].count)
    sparse = replay(trace, DebiasedEMA(0.3), steps=[12, 10])
    assert list(sparse) == [12, 10]
    assert_equal_statistics(sparse[10], start)
    assert_equal_statistics(sparse[12], replay(trace, DebiasedEMA(0.3))[12])


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_whoever_looks_sees_the_models_own_average(momentum: float | None) -> None:
    plainly, recorded = (with_momentum(without_dropout(plain()), momentum) for _ in range(2))
    layer = recorded[1]
    mean, var = layer.running_mean, layer.running_var
    with record(recorded):
        for batch in images(4, 5):
            train(plainly, [batch]), train(recorded, [batch])
            assert layer.running_mean is mean and layer.running_var is var and layer.momentum == momentum
            for key, value in plainly.state_dict().items():
                torch.testing.assert_close(recorded.state_dict()[key], value, rtol=1e-5, atol=1e-6)
            clone = copy.deepcopy(recorded)
            assert_equal_statistics(running_statistics(clone), running_statistics(plainly))
            torch.testing.assert_close(recorded.eval()(batch), plainly.eval()(batch), rtol=1e-4, atol=1e-5)
            plainly.train(), recorded.train()


def test_a_copy_made_inside_is_not_recorded_and_works() -> None:
    model = without_dropout(plain())
    with record(model) as trace:
        train(model, images(4))
        clone, twin = copy.deepcopy(model), plain()
        twin.load_state_dict(model.state_dict())
        before = trace.layers["1"].moments
        own = copy.deepcopy(model.state_dict())
        for other in (clone, without_dropout(twin)):
            train(other, images(6, 3))
        assert_equal_statistics(running_statistics(clone), running_statistics(twin))
        assert trace.last_step == 1 and torch.equal(trace.layers["1"].moments, before)
        assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
        train(model, images(6))
    assert trace.layers["1"].steps == [1, 2] and trace.layers["1"].counts == [256, 384]


def test_the_model_comes_back_as_it_was() -> None:
    model = plain()
    with unchanged(model), record(model):
        pass
    with unchanged(model), pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    with record(model):
        train(model, images(4))
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in model.modules())


def test_a_bad_batch_does_not_poison_later_entries() -> None:
    model = plain()
    bad = images(4)[0] * math.nan
    with record(model) as trace, torch.no_grad():
        for batch in (images(4)[0], bad, images(5)[0]):
            model(batch)
    finite = [entry.isfinite().all().item() for entry in trace.layers["4"].moments]
    assert finite == [True, False, True]
    last = replay(trace, LastBatch())
    assert last[2]["1"].mean.isnan().all() and last[3]["4"].var.isfinite().all()
    assert replay(trace, EMA(0.1))[3]["1"].mean.isnan().all()


def test_layers_in_eval_mode_are_not_recorded() -> None:
    model = plain()
    model[1].eval()
    start = running_statistics(model)["1"]
    with record(model) as trace:
        train(model, images(4, 4))
        model.eval()(images(3)[0])
    assert len(trace.layers["1"]) == 0 and trace.layers["4"].steps == [1, 2] and trace.last_step == 2
    for statistics in replay(trace, EMA(0.5)).values():
        assert torch.equal(statistics["1"].mean, start.mean)
    model.eval()
    model[4].train()  # a layer that is trained in a model which is not
    with record(model) as trace:
        model(images(4)[0]), model(images(4)[0])
    assert trace.layers["4"].steps == [1, 2]


def test_nothing_recorded() -> None:
    model = plain()
    with record(model, step=3) as trace:
        pass
    assert_equal_statistics(replay(trace, Cumulative())[3], running_statistics(model))


class Shared(nn.Module):
    """Calls one norm twice, another in every second forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.seldom = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.twice(torch.relu(self.conv(self.twice(x))))
        return self.seldom(input=x) if self.calls % 2 == 0 else x


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, OwnForward])
def test_calls_without_momentum_are_told(kind: type[nn.BatchNorm2d]) -> None:
    """As in sharpness-aware minimization, whose second forward is not to be averaged."""
    model = nn.Sequential(kind(3))
    with pytest.warns(UserWarning, match=r"'0' had momentum 0 in 2 calls and another one in others"), record(model):
        for x in images(4, 4):
            for model[0].momentum in (0.1, 0.0):
                model(x)
    with warnings.catch_warnings(), record(model) as trace:  # always 0 from here on
        warnings.simplefilter("error")
        train(model, images(4, 4))
    assert len(trace.layers["0"]) == 2


def test_a_cumulative_average_in_between_is_told() -> None:
    model, batches = plain(), images(4, 4, 4)
    with pytest.warns(UserWarning, match=r"'1', '4' had momentum None in 2 calls and another one"), record(model):
        train(model, batches)
        update_bn(batches[:2], model)
    with warnings.catch_warnings(), record(model):
        warnings.simplefilter("error")
        train(model, batches)
        update_bn(batches[:2], copy.deepcopy(model))
    with warnings.catch_warnings(), record(model):  # no other momentum
        warnings.simplefilter("error")
        update_bn(batches, model)


def test_a_layer_that_is_trained_by_hand_is_told() -> None:
    """As fused operations do it: it counts its batches, and nothing is called that could be recorded."""
    model = plain()

    def step(x: Tensor) -> None:
        layer, seen = model[1], model[0](x)
        layer.running_mean.mul_(0.9).add_(0.1 * seen.mean((0, 2, 3)).detach())
        layer.running_var.mul_(0.9).add_(0.1 * seen.var((0, 2, 3)).detach())
        layer.num_batches_tracked.add_(1)

    with pytest.warns(UserWarning, match="record: .*'1'"), record(model) as trace:
        for x in images(4, 4, 4):
            step(x)
            trace.step()


class LazyOwnNorm(nn.Module):
    """Gets its size at the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.running_mean = x.mean((0, 2, 3)).detach()
        return x - self.running_mean.view(1, -1, 1, 1)


def test_an_own_batch_norm_that_gets_its_size_in_the_block() -> None:
    model = nn.Sequential(LazyOwnNorm(), nn.BatchNorm2d(3), OwnNorm(3))
    model[2].to("meta")
    with pytest.warns(UserWarning, match="record: running statistics of '0', no subclass"), record(model):
        model[:2](torch.randn(8, 3, 6, 6))


@pytest.mark.parametrize("how", ["functional", "by hand"])
def test_own_batch_norms_that_are_trained_are_told(how: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4, how), nn.BatchNorm2d(4), FrozenNorm(4))
    told = r"record: running statistics of '1', no subclass of torch's batch norm, have changed"
    with pytest.warns(UserWarning, match=told), record(model):
        model(torch.randn(8, 3, 6, 6))
    with warnings.catch_warnings(), record(model):
        warnings.simplefilter("error")
        model[1].eval()
        model(torch.randn(8, 3, 6, 6))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_shared_and_seldom_layers(momentum: float | None) -> None:
    """One entry for each call; the same as torch's own average of them."""
    plainly, recorded = (with_momentum(randomized(Shared()), momentum) for _ in range(2))
    recorded.conv.load_state_dict(plainly.conv.state_dict())
    train(plainly, images(4, 5, 6, 4))
    with record(recorded) as trace:
        train(recorded, images(4, 5, 6, 4))
    assert trace.layers["twice"].steps == [1, 1, 2, 2, 3, 3, 4, 4]
    assert trace.layers["seldom"].steps == [2, 4] and trace.layers["seldom"].counts == [5 * 64, 4 * 64]
    found = replay(trace, EMA(0.3) if momentum else Cumulative())
    assert_equal_statistics(found[4], running_statistics(plainly))
    assert_equal_statistics(running_statistics(recorded), running_statistics(plainly))
    assert torch.equal(found[1]["seldom"].mean, found[0]["seldom"].mean)


def test_gradients_of_several_forwards_together() -> None:
    """What a backward pass has saved of earlier entries, or of an evaluation, is not written again."""
    plainly, recorded = without_dropout(plain()), without_dropout(plain())
    batches = images(4, 6)
    sum(plainly(x).square().mean() for x in batches).backward()
    with record(recorded):
        sum(recorded(x).square().mean() for x in batches).backward()
        for a, b in zip(recorded.parameters(), plainly.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        evaluated = recorded.eval()(batches[0]).sum()
        recorded.train()(batches[1])
        evaluated.backward()


class Raises(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.first, self.second, self.error = nn.BatchNorm2d(3), nn.BatchNorm2d(3), error
        self.second.register_forward_pre_hook(self.fail)
        self.armed = False

    def fail(self, *_: object) -> None:
        if self.armed:
            raise self.error("half-way")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_that_raises(error: type[BaseException]) -> None:
    """The layer in which it happens has no entry; its buffers, momentum and hooks are its own again."""
    model = Raises(error)
    layer, mean = model.second, model.second.running_mean
    with record(model) as trace:
        model(images(4)[0])
        expected = running_statistics(model)["second"]
        # After record's own hook: what it lent has to come back.
        layer.register_forward_pre_hook(lambda *_: model.fail())
        layer._forward_pre_hooks.popitem(last=False)
        model.armed = True
        with pytest.raises(error, match="half-way"):
            model(images(4)[0])
        model.armed = error is KeyboardInterrupt
        if error is RuntimeError:
            assert len(trace.layers["second"]) == 1 and layer.running_mean is mean and layer.momentum == 0.1
            model(images(5)[0])
            assert trace.layers["second"].counts == [256, 320]
    assert layer.running_mean is mean and layer.momentum == 0.1 and not layer._forward_hooks
    if error is KeyboardInterrupt:
        assert len(trace.layers["second"]) == 1
        assert torch.equal(running_statistics(model)["second"].mean, expected.mean)


def test_a_batch_of_no_images_is_passed_over_as_torch_does() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with record(model) as trace:
        model(torch.ones(4, 3, 2, 2)), model(torch.zeros(0, 3, 2, 2))
    assert len(trace.layers["0"]) == 1 and model[0].running_mean.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("bad", [torch.zeros(4, 2, 3, 3), torch.zeros(1, 3, 1, 1), None])
def test_input_that_a_layer_refuses(bad: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with record(model) as trace:
        with pytest.raises((RuntimeError, ValueError, AttributeError)):
            model(bad)
        assert len(trace.layers["0"]) == 0 and torch.equal(model[0].running_mean, torch.zeros(3))
        model(images(4)[0])
    assert len(trace.layers["0"]) == 1


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("depth", [2, 5, 10])
def test_gradient_checkpointing(depth: int, reentrant: bool) -> None:
    """The layer runs twice in each step, and torch's own average takes both: so does the trace."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = without_dropout(plain())
            self.body, self.rest = layers[:depth], layers[depth:]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(checkpoint(self.body, x, use_reentrant=reentrant))

    plainly, recorded = Checkpointed(), Checkpointed()
    batches = [x.requires_grad_() for x in images(4, 5)]
    train(plainly, batches)
    with record(recorded) as trace:
        train(recorded, batches)
    assert trace.last_step == 2
    assert_equal_statistics(running_statistics(recorded), running_statistics(plainly))
    assert_equal_statistics(replay(trace, EMA(0.1))[2], running_statistics(plainly))
    for a, b in zip(recorded.parameters(), plainly.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kept", ["convolution", "batch_norm"])
def test_selective_checkpointing(kept: str) -> None:
    """Torch's own average takes what is repeated, but not where the first output is kept; so does the trace."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint_but(kept, self.body, x)

    plainly, batches = Checkpointed(), images(*[4] * 20)
    recorded = copy.deepcopy(plainly)
    with record(recorded) as trace:
        for model in (plainly, recorded):
            with torch.no_grad():
                model(batches[0])  # so that places for the entries are made in repetitions, too
            train(model, batches)
    assert_equal_statistics(running_statistics(recorded), running_statistics(plainly))
    assert_equal_statistics(replay(trace, EMA(0.1))[trace.last_step], running_statistics(plainly))
    for a, b in zip(recorded.parameters(), plainly.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("model", TypeError, "record: expected a torch.nn.Module, found str"),
        (nn.Linear(2, 2), ValueError, "record: no BatchNorm layer with running statistics in Linear"),
        (torch.compile(plain()), ValueError, "record: the model is compiled, .* torch.compile inside"),
        (nn.Sequential(torch.compile(plain())), ValueError, "record: the model is compiled"),
    ],
)
def test_models_that_are_refused(model: Any, error: type[Exception], message: str) -> None:
    with unchanged(model), pytest.raises(error, match=message), record(model):
        pass


def test_a_block_inside_of_a_block() -> None:
    data = images(*[4] * 5)
    model, alone = residual(), residual()
    with record(alone) as expected:
        train(alone, data)
    with record(model) as outer, record(model[3]) as inner:
        train(model, data)
    for name, entries in outer.layers.items():
        assert torch.equal(entries.moments, expected.layers[name].moments)
    for name, entries in inner.layers.items():
        assert torch.equal(entries.moments, expected.layers[f"3.{name}"].moments)
    for a, b in zip(model.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert all(layer.momentum == 0.1 for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_the_first_step_under_inference_mode() -> None:
    model, (first, second) = residual(), images(4, 4)
    with record(model) as trace:
        with torch.inference_mode():
            model(first)
        model(second)
    assert trace.last_step == 2


def test_measurements_inside_the_block_are_not_recorded() -> None:
    data = images(*[4] * 4)
    model, alone = residual(), residual()
    with record(alone) as expected:
        train(alone, data)
    with record(model) as trace:
        train(model, data[:2])
        with unchanged(model):
            population_statistics(model, data, upstream="batch")
            assert record_frozen(model, data).last_step == 4
        train(model, data[2:])
    assert trace.last_step == 4
    for name, entries in trace.layers.items():
        assert torch.equal(entries.moments, expected.layers[name].moments)


def test_an_interrupt_that_the_training_survives() -> None:
    layer, x = Interrupted(3), torch.randn(8, 3) + 5
    mean, twin = layer.running_mean, nn.BatchNorm1d(3)
    with record(layer) as trace:
        layer.armed = True
        with pytest.raises(KeyboardInterrupt):
            layer(x)
        layer.armed = False
        layer(x)
        twin(x)
        assert layer.running_mean is mean and layer.momentum == 0.1
    assert layer.running_mean is mean and layer.momentum == 0.1
    torch.testing.assert_close(layer.running_mean, twin.running_mean)
    assert len(trace.layers[""]) == 1


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While it is not empty, a KeyboardInterrupt comes after torch's batch norm has written the buffers."""
    armed, compute = list[bool](), torch.batch_norm

    def batch_norm(*args: Any) -> Tensor:
        output = compute(*args)
        if armed:
            armed.clear()
            raise KeyboardInterrupt
        return output

    monkeypatch.setattr(torch, "batch_norm", batch_norm)
    return armed


LOOKS: dict[str, Callable[[nn.Module], Tensor]] = {
    "state_dict": lambda m: m.state_dict()["1.running_mean"],
    "running_statistics": lambda m: running_statistics(m)["1"].mean.float(),
    "borrowed": lambda m: record_frozen(m, images(4)) and m[1].running_mean,
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_what_is_seen_after_an_interrupt_in_a_layer(look: str, nested: bool, interrupting: list[bool]) -> None:
    model, batches = without_dropout(plain()), images(4, 5)
    twin = copy.deepcopy(model)
    with record(model) as outer, record(model) if nested else contextlib.nullcontext(outer) as trace:
        train(model, batches[:1])
        interrupting.append(True)
        with pytest.raises(KeyboardInterrupt):
            train(model, batches[1:])
        seen = LOOKS[look](model).clone()
        assert model[1].momentum == 0.1 and trace.layers["1"].steps == outer.layers["1"].steps == [1, 2]
    train(twin, batches)
    torch.testing.assert_close(seen, twin[1].running_mean)
    assert torch.equal(model[1].running_mean, seen)


@pytest.mark.parametrize("how", ["write_to", "load_state_dict"])
def test_what_is_written_after_an_interrupt_in_a_layer(how: str, interrupting: list[bool]) -> None:
    model, (x,) = without_dropout(plain()), images(4)
    other = copy.deepcopy(model)
    other[1].running_mean.fill_(7.0)
    with record(model) as trace:
        interrupting.append(True)
        with pytest.raises(KeyboardInterrupt):
            model(x)
        if how == "write_to":
            running_statistics(other).write_to(model)
        else:
            model.load_state_dict(other.state_dict())
        assert torch.equal(model[1].running_mean, other[1].running_mean)
        model(x), other(x)
        torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
    assert trace.layers["1"].steps == [1, 2] and [start.entries for start in trace.layers["1"].restarts] == [1]


def test_an_interrupted_entry_keeps_its_step(interrupting: list[bool]) -> None:
    model, (x,) = plain(), images(4)
    for rewound in (False, True):
        with record(model) as trace:
            model(x)
            interrupting.append(True)
            with pytest.raises(KeyboardInterrupt):
                model(x)
            if rewound:
                trace.truncate(1)
            model(x)
        assert trace.layers["1"].steps == ([1, 2] if rewound else [1, 2, 3])


def test_looking_from_within_a_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal's handler may."""
    model, (x,), compute = plain(), images(4), torch.batch_norm

    def batch_norm(*args: Any) -> Tensor:
        with pytest.raises(ValueError, match="record: layer '1' is being called"):
            model.state_dict()
        monkeypatch.undo()
        return compute(*args)

    monkeypatch.setattr(torch, "batch_norm", batch_norm)
    with record(model) as trace:
        model(x)
    assert len(trace.layers["1"]) == 1


def test_a_thread_that_has_ended_within_a_layer(interrupting: list[bool]) -> None:
    model, (x,) = plain(), images(4)

    def call() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            model(x)

    with record(model) as trace:
        interrupting.append(True)
        thread = threading.Thread(target=call)
        thread.start(), thread.join()
        model(x)
    assert trace.layers["1"].steps == [1, 2] and trace.layers["4"].steps == [2]


def test_frozen_records_leave_a_backward_pass_that_is_to_come_alone() -> None:
    model, (x, *batches) = without_dropout(plain()).train(), images(4, 4, 3)
    x.requires_grad_()
    expected = torch.autograd.grad(copy.deepcopy(model)(x).square().sum(), x)[0]
    loss = model(x).square().sum()
    record_frozen(model, batches)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


def test_frozen_records_leave_the_batches_alone() -> None:
    model, (x,) = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(3)), images(4)
    kept = x.clone()
    record_frozen(model, [x])
    assert torch.equal(x, kept)


# Steps


class Container(nn.Module):
    """Two networks that are called by the training, not by a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = residual()[:4], nn.Sequential(nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(1))


def steps(trace: MomentTrace) -> list[list[int]]:
    return [trace.layers[name].steps for name in ("encoder.1", "head.0")]


def updating(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, calls: int = 1) -> None:
    for _ in range(calls):
        model.head(model.encoder(x)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_parts_that_are_called_count_as_steps() -> None:
    model = Container()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with record(model, step=4) as trace, warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in images(4, 4, 4):
            updating(model, optimizer, x)
            model.eval(), model.encoder(x), model.train()
        assert steps(trace) == [[5, 6, 7]] * 2 and trace.last_step == 7
        trace.truncate(6)
        updating(model, optimizer, x)
    assert steps(trace) == [[5, 6, 7]] * 2
    assert_equal_statistics(replay(trace, EMA(0.1))[7], running_statistics(model))


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
def test_a_symbolic_trace_counts_as_no_step(convert: Callable[[nn.Module], nn.Module]) -> None:
    model = convert(nn.Sequential(residual()[:4], nn.BatchNorm2d(12)))
    with record(model) as trace:
        graph = torch.fx.symbolic_trace(model)
        for x in images(4, 4):
            graph(x)
    assert all(layer.steps == [1, 2] for layer in trace.layers.values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_counts_once(reentrant: bool) -> None:
    model = Container()
    with record(model) as trace:
        for x in images(4, 4, 4):
            y = checkpoint(model.encoder, x.requires_grad_(), use_reentrant=reentrant)
            y.square().mean().backward()
    assert steps(trace)[0] == [1, 1, 2, 2, 3, 3] and trace.last_step == 3


def test_another_part_counts_after_an_interrupt_in_a_part() -> None:
    model, (x,) = nn.ModuleDict({"a": plain(), "b": plain(), "c": nn.BatchNorm2d(3)}), images(4)
    with record(model) as trace:
        model["a"](x)
        call_interrupted(model["a"], x)
        for _ in range(3):
            model["b"](x)
        call_interrupted(model["a"], x)
        for _ in range(2):
            model["c"](x)
    assert trace.layers["a.1"].steps == [1, 2, 4] and trace.layers["b.1"].steps == [2, 3, 4]
    assert trace.layers["c"].steps == [4, 5]


def call_interrupted(model: nn.Module, x: Tensor) -> None:
    """A call that a KeyboardInterrupt ends after the first batch norm."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()


def test_a_layer_that_is_called_alone_counts() -> None:
    model = residual()
    with record(model) as trace:
        for _ in range(2):
            model[1](torch.randn(4, 6, 3, 3)), model[3](torch.randn(4, 6, 8, 8))
    assert trace.layers["1"].steps == trace.layers["3.bn2"].steps == [1, 2]


def test_forwards_of_the_model_count_once_there_are_some() -> None:
    model = residual()
    with record(model) as trace:
        model(images(4)[0])
        model[3](torch.randn(4, 6, 8, 8))  # as gradient checkpointing does
        model[3](torch.randn(4, 6, 8, 8))
        model(images(4)[0])
    assert trace.layers["3.bn2"].steps == [1, 1, 1, 2] and trace.layers["1"].steps == [1, 2]


def test_steps_that_the_caller_marks() -> None:
    """Four forwards with accumulated gradients are one step; those before the first mark belong to the first one."""
    model = Container()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with record(model, step=2) as trace:
        for x in images(4, 4, 4):
            updating(model, optimizer, x, calls=4)
            trace.step()
        assert steps(trace) == [[3] * 4 + [4] * 4 + [5] * 4] * 2 and (trace.first_step, trace.last_step) == (2, 5)
        model.encoder(x)
        assert trace.last_step == 6
        trace.truncate(4)
        model.encoder(x)
        trace.step()
    assert trace.layers["encoder.1"].steps == [3] * 4 + [4] * 4 + [5]
    with pytest.raises(ValueError, match=r"MomentTrace.step: nothing is recorded now; call it inside of the record"):
        trace.step()


def test_steps_of_an_optimizer() -> None:
    model = Container()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hooks = len(optimizer._optimizer_step_post_hooks)
    with record(model, optimizer=optimizer) as trace:
        for x in images(4, 4):
            updating(model, optimizer, x, calls=2)
    assert steps(trace) == [[1, 1, 2, 2]] * 2 and trace.last_step == 2
    assert len(optimizer._optimizer_step_post_hooks) == hooks
    assert_equal_statistics(replay(trace, EMA(0.1))[2], running_statistics(model))
    with pytest.raises(ValueError, match="would count this one twice"), record(model, optimizer=optimizer) as trace:
        updating(model, optimizer, images(4)[0], calls=1)
        trace.step()
    with pytest.raises(TypeError, match=r"record: optimizer is a float; pass a torch.optim.Optimizer, or None"):
        record(model, optimizer=0.1).__enter__()  # type: ignore[arg-type]


class Wrapper(torch.optim.Optimizer):
    """Around another one, without calling torch's `__init__`; as timm's Lookahead if it `keeps_hooks`."""

    def __init__(self, inside: torch.optim.Optimizer, keeps_hooks: bool) -> None:
        self.inside, self.param_groups, self.defaults = inside, inside.param_groups, inside.defaults
        if keeps_hooks:
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    def step(self, closure: Any = None) -> Any:
        return self.inside.step(closure)


def test_steps_of_an_optimizer_around_another() -> None:
    model = plain()
    inside = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = Wrapper(inside, keeps_hooks=True)
    with record(model, optimizer=optimizer) as trace:
        for x in images(4, 4, 4):
            model(x).square().mean().backward()
            optimizer.step()
    assert all(layer.steps == [1, 2, 3] for layer in trace.layers.values())
    with pytest.raises(ValueError, match=r"a Wrapper that keeps no hooks .* pass the optimizer inside of it"):
        record(model, optimizer=Wrapper(inside, keeps_hooks=False)).__enter__()


def test_steps_of_an_optimizer_with_a_step_of_its_own() -> None:
    """That of its base class, inside of it, calls the same hooks."""

    class Clipped(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
            return super().step(closure)

    model = plain()
    optimizer = Clipped(model.parameters(), lr=0.01)
    with record(model, optimizer=optimizer) as trace:
        for x in images(4, 4, 4):
            model(x).square().mean().backward()
            optimizer.step()
    assert all(layer.steps == [1, 2, 3] for layer in trace.layers.values()) and trace.last_step == 3


def test_an_optimizer_that_makes_no_update_is_said() -> None:
    """A training that makes its own, or one whose `step` is never called, as of a wrapper."""
    model = plain()
    with (
        pytest.warns(UserWarning, match=r"within step 4 the weights of layer '1' have changed by other updates"),
        record(model, step=3, optimizer=torch.optim.SGD(model.parameters(), lr=0.01)) as trace,
    ):
        train(model, images(4, 4, 4))
    assert trace.last_step == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01)):
            for x in images(4, 4):
                model(x)


def test_an_optimizer_that_another_one_has_replaced_is_said() -> None:
    """As where more of a network is trained from some epoch on."""
    model = plain()
    first = torch.optim.SGD(model.parameters(), lr=0.01)
    with (
        pytest.warns(UserWarning, match=r"within 1 of 3 steps \(first 3\) the weights of layer '1' have changed"),
        record(model, optimizer=first) as trace,
    ):
        for optimizer in (first, torch.optim.SGD(model.parameters(), lr=0.01)):
            for x in images(4, 4):
                model(x).square().mean().backward()
                optimizer.step()
    assert trace.last_step == 3


@pytest.mark.parametrize("warms_up", [True, False])
def test_an_optimizer_that_trains_before_the_given_one_is_said(warms_up: bool) -> None:
    """As in a warm-up; not a critic that is trained several times in every step of the generator."""
    model = plain()
    given, other = (torch.optim.SGD(model.parameters(), lr=0.01) for _ in range(2))
    order = (other, other, other, given, given, given) if warms_up else (other, other, given) * 2 + (other, other)
    with warnings.catch_warnings(record=True) as said, record(model, optimizer=given) as trace:
        warnings.simplefilter("always")
        for optimizer, x in zip(order, images(*[4] * len(order)), strict=True):
            model(x).square().mean().backward()
            optimizer.step()
    assert trace.layers["1"].steps == ([1, 1, 1, 1, 2, 3] if warms_up else [1, 1, 1, 2, 2, 2, 3, 3])
    assert ["within 1 of 3 steps (first 1)" in str(warning.message) for warning in said] == [True] * warms_up


class Trainer(nn.Module):
    """Its forward is a whole training."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=affine))

    def forward(self, batches: list[Tensor]) -> None:
        train(self.net, batches)


@pytest.mark.parametrize("affine", [True, False])
def test_updates_within_a_step_are_said(affine: bool) -> None:
    model = Trainer(affine)
    with (
        pytest.warns(UserWarning, match="layer 'net.1' have changed within step 1, .* call trace.step") as found,
        record(model),
    ):
        model(images(4, 4, 4))
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = Shared()
        with record(shared):
            train(shared, images(4, 4))


def test_frozen_records_count_batches_whatever_forward_calls() -> None:
    model = Container()
    trace = record_frozen(model, images(4, 4), forward=lambda m, x: (m.encoder(x), m.head(m.encoder(x))))
    assert steps(trace) == [[1, 1, 2, 2], [1, 2]] and trace.last_step == 2


def evaluate_averaged(model: nn.Module, x: Tensor, how: str) -> None:
    """A forward with averaged weights and buffers."""
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    if how == "functional":
        torch.func.functional_call(model, averaged, (x,))
    if how == "loaded":
        model.load_state_dict(averaged)
        model(x)
    if how == "swapped":
        own = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(averaged)
        model(x)
        model.load_state_dict(own)
    if how == "reset":
        model[1].reset_running_stats()
        model(x)


@pytest.mark.parametrize("how", ["functional", "loaded", "swapped", "reset"])
def test_frozen_records_average_their_entries_whatever_a_forward_writes(how: str) -> None:
    """Each batch begins with the model as it is: what a forward gives its buffers is no restart."""
    model = randomized(plain())
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = record_frozen(model, images(4, 3, 5), forward=functools.partial(evaluate_averaged, how=how))
    for name, entries in trace.layers.items():
        torch.testing.assert_close(replay(trace, Cumulative())[3][name].mean, entries.moments.double().mean(0)[0])
        torch.testing.assert_close(replay(trace, EMA(1.0))[2][name].mean, entries.moments.double()[1, 0])


def test_two_threads_at_once_are_refused() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait()

    model, (x,) = plain(), images(4)
    model[3].register_forward_hook(wait)
    with record(model) as trace:
        thread = threading.Thread(target=model, args=(x,))
        thread.start()
        entered.wait()
        with pytest.raises(ValueError, match="record: the model is called by two threads at once"):
            model(x)
        leave.set()
        thread.join()
    assert trace.last_step == 1 and trace.layers["1"].steps == trace.layers["4"].steps == [1]
