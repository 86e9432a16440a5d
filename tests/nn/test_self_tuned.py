"""Self-tuned layers against replays of what a plain twin was trained on; whatever else happens in a training."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from bnlab import (
    population_statistics,
    record,
    record_frozen,
    replay,
    running_statistics,
    self_consistency,
    using,
)
from bnlab.estimators import Predictive
from bnlab.inference import TestBatch, applied
from bnlab.nn import SelfTuned, momenta
from bnlab.nn.upkeep import Upkeep
from bnlab.trace import MomentTrace
from tests.helpers import FrozenNorm, OwnNorm, checkpoint_but, plain, run_two_ranks, same_traces, with_momentum

BN = ("1", "4")
FLOAT32 = 1e-6  # a few roundings, of buffers and of sums


def network(self_tuned: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return SelfTuned.convert(model) if self_tuned else model


def train(
    model: nn.Module,
    steps: int,
    seed: int = 0,
    *,
    call: Callable[[Tensor], Tensor] | None = None,
    looks: Collection[int] = (),
) -> None:
    """SGD on noise; after the steps in `looks` the model is evaluated."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        model.train()
        nn.functional.cross_entropy((call or model)(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in looks:
            model.eval()
            model(x)


def record_twin(steps: int, seed: int = 0) -> tuple[nn.Module, MomentTrace]:
    twin = network(self_tuned=False)
    with record(twin) as trace:
        train(twin, steps, seed)
    return twin, trace


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Parameters and buffers, bit for bit."""
    for (name, value), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name


def assert_replayed(model: nn.Module, trace: MomentTrace, **tolerance: float) -> None:
    """The buffers are what the estimator gives out after the trace."""
    expected = replay(trace, Predictive())[trace.last_step]
    found = running_statistics(model)
    for name, layer in expected.items():
        scale = layer.var.sqrt()
        torch.testing.assert_close(found[name].mean / scale, layer.mean / scale, rtol=0, atol=FLOAT32)
        torch.testing.assert_close(found[name].var, layer.var, rtol=FLOAT32, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 64, 65, 150])
def test_it_holds_what_a_replay_gives_and_trains_as_before(steps: int) -> None:
    twin, trace = record_twin(steps)
    model = network()
    train(model, steps, looks=(0, 5, 70, 71))
    assert_replayed(model, trace)
    for value, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert [int(model.get_submodule(name).num_batches_tracked) for name in BN] == [steps] * 2  # type: ignore[arg-type]


def test_looking_changes_nothing() -> None:
    one, other = network(), network()
    train(one, 100)
    train(other, 100, looks=range(100))
    assert_equal(one, other)


LOOKS: dict[str, Callable[[nn.BatchNorm2d, nn.Module], Tensor]] = {
    "attribute": lambda layer, model: layer.running_mean,  # type: ignore[dict-item,return-value]
    "getattr": lambda layer, model: getattr(layer, "running_mean"),  # noqa: B009
    "state_dict": lambda layer, model: model.state_dict()["1.running_mean"],
    "buffers": lambda layer, model: dict(model.named_buffers())["1.running_mean"],
    "own buffers": lambda layer, model: next(layer.buffers()),
    "copy": lambda layer, model: copy.deepcopy(model)[1].running_mean,  # type: ignore[index]
    "held": lambda layer, model: vars(model.eval() and layer)["_buffers"]["running_mean"],
    "statistics": lambda layer, model: running_statistics(model)["1"].mean,
    "half": lambda layer, model: copy.deepcopy(model).half()[1].running_mean,  # type: ignore[index]
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_whoever_looks_sees_the_latest(look: Callable[..., Tensor]) -> None:
    _, trace = record_twin(20)
    model = network()
    train(model, 20)
    found = look(model[1], model)  # type: ignore[index]
    tolerance = 1e-3 if found.dtype == torch.float16 else FLOAT32
    torch.testing.assert_close(
        found.double(), replay(trace, Predictive())[20]["1"].mean, rtol=tolerance, atol=tolerance
    )


def test_evaluation_is_under_the_latest() -> None:
    _, trace = record_twin(20)
    model, expected, x = network(), network(self_tuned=False), torch.randn(4, 3, 8, 8)
    train(model, 20)
    expected.load_state_dict(model.state_dict())
    replay(trace, Predictive())[20].write_to(expected)
    torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-4, atol=1e-5)
    model.train()
    for layer in model:
        layer.training = False  # past train()
    torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-5)


def test_what_a_channel_takes() -> None:
    """Three averages of 50 momenta, unit and eps in float64; two moments of 64 batches in float32: 1.7 kB."""
    layer = SelfTuned.convert(nn.BatchNorm2d(1000))
    assert isinstance(layer, SelfTuned)
    kept = [*vars(layer.upkeep.collector).values(), *vars(layer.upkeep.collector.bank).values()]
    taken = sum(value.numel() * value.element_size() for value in kept if isinstance(value, Tensor))
    assert taken / 1000 == pytest.approx(3 * 50 * 8 + 2 * 8 + 2 * 64 * 4, rel=0.01)  # scores are of the layer


def test_what_is_no_module_is_refused() -> None:
    for call in (SelfTuned.convert, SelfTuned.revert, momenta):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, found dict"):
            call({})  # type: ignore[operator]


# -- checkpoints and copies


def save_and_load(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("steps", [0, 1, 40, 64, 100])
def test_a_checkpoint_brings_the_averages_back(steps: int) -> None:
    model, other = network(), network()
    train(model, steps)
    other.load_state_dict(save_and_load(model.state_dict()))
    for each in (model, other):
        train(each, 80, seed=1)
    assert_equal(model, other)


def test_checkpoints_have_torchs_keys_and_go_both_ways() -> None:
    model, twin = network(), network(self_tuned=False)
    train(model, 10)
    assert list(model.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(save_and_load(model.state_dict()), strict=True)
    assert_equal(twin, model)
    train(twin, 10)
    model.load_state_dict(twin.state_dict(), strict=True)
    assert_equal(model, twin)


def begins_from(model: nn.Module, start: Any) -> bool:
    """Whether the averages begin from these buffers: a batch has a thousandth of the weight then."""
    model = copy.deepcopy(model)
    train(model, 1, seed=7)
    layer = model[1]  # type: ignore[index]
    return bool((layer.running_mean - start["1.running_mean"]).abs().max() < 4e-3)


def test_a_plain_checkpoint_is_what_the_averages_begin_from() -> None:
    twin, _ = record_twin(50)
    model = network()
    train(model, 5)
    model.load_state_dict(twin.state_dict())
    assert begins_from(model, twin.state_dict())
    assert begins_from(SelfTuned.convert(twin), twin.state_dict())


@pytest.mark.parametrize("how", ["without metadata", "changed", "other type"])
def test_a_checkpoint_that_was_changed_is_what_the_averages_begin_from(how: str) -> None:
    model, other = network(), network()
    train(model, 50)
    state = copy.deepcopy(model.state_dict())
    if how == "without metadata":
        state = dict(state)
    elif how == "changed":
        state["1.running_mean"] += 0.1
    else:
        state = type(state)((key, value.half().float()) for key, value in state.items())
    other.load_state_dict(state)
    assert begins_from(other, state)


def test_a_look_from_another_thread_is_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of one that saves checkpoints: it writes the buffers, and the one that trains finds them written."""
    model = network()
    train(model, 20)
    has_written, take_note = threading.Event(), Upkeep.look

    def pause_and_look(*args: Any) -> None:
        if threading.current_thread() is other:
            has_written.set()
            time.sleep(0.2)
        take_note(*args)

    other = threading.Thread(target=model.state_dict)
    monkeypatch.setattr(Upkeep, "look", pause_and_look)
    other.start()
    has_written.wait()
    model(torch.randn(8, 3, 8, 8))
    other.join()
    assert (momenta(model)["batches"] == 21).all()


@pytest.mark.parametrize("make", [copy.deepcopy, partial(save_and_load, weights_only=False)])
@pytest.mark.parametrize("steps", [0, 30, 64])
def test_copies_go_on_by_themselves(make: Callable[[nn.Module], nn.Module], steps: int) -> None:
    model, expected = network(), network()
    for each in (model, expected):
        train(each, steps)
    other = make(model)
    train(other, 40, seed=1)
    assert_equal(model, expected)
    train(model, 40, seed=1)
    assert_equal(other, model)


@pytest.mark.parametrize("make", [copy.deepcopy, partial(save_and_load, weights_only=False)])
def test_copies_of_a_borrowed_model_choose_their_momentum(make: Callable[[nn.Module], nn.Module]) -> None:
    model, images = network(), torch.randn(8, 3, 8, 8)
    train(model, 20)
    exact = population_statistics(model, [images])
    with using(model, exact):
        other = make(model)
    exact.write_to(model)
    assert begins_from(other.train(), model.state_dict())
    assert self_consistency(model, exact, [images], by_layer=True).notna().all(axis=None)  # has a copy in float64


def test_a_shallow_copy_has_its_own_mode() -> None:
    model, x = network(), torch.randn(8, 6, 4, 4)
    train(model, 20)
    layer = model[1]  # type: ignore[index]
    other, state = copy.copy(layer).eval(), copy.deepcopy(model.state_dict())
    layer.train()
    before = nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    assert torch.equal(other(x), before)
    assert torch.equal(layer.running_mean, state["1.running_mean"])


# -- what else happens in a training


def fill(layer: nn.BatchNorm2d, model: nn.Module) -> None:
    with torch.no_grad():
        layer.running_mean.fill_(3.0)  # type: ignore[union-attr]


WRITES: dict[str, Callable[..., object]] = {
    "in place": fill,
    "replaced": lambda layer, model: setattr(layer, "running_mean", torch.full((6,), 3.0)),
    "through data": lambda layer, model: layer.running_mean.data.fill_(3.0),
    "load_state_dict": lambda layer, model: layer.load_state_dict(
        layer.state_dict() | {"running_mean": torch.full((6,), 3.0)}
    ),
}


def test_layers_that_share_running_buffers_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean, model[1].running_var = model[0].running_mean, model[0].running_var
    with pytest.raises(ValueError, match="'0' and '1' share running buffers"):
        SelfTuned.convert(model)
    assert type(model[0]) is type(model[1]) is nn.BatchNorm1d
    twice = nn.BatchNorm1d(3)
    SelfTuned.convert(nn.Sequential(twice, twice))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("steps", [3, 64])
def test_averages_begin_from_what_something_else_writes(write: Callable[..., object], steps: int) -> None:
    model = network()
    train(model, steps)
    write(model[1], model)  # type: ignore[index]
    assert torch.equal(model.state_dict()["1.running_mean"], torch.full((6,), 3.0))
    assert begins_from(model, {"1.running_mean": torch.full((6,), 3.0)})


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("move", [nn.Module.cpu, lambda model: model.double().float()], ids=["device", "type"])
def test_averages_begin_from_what_was_written_before_the_model_is_moved(
    write: Callable[..., object], move: Callable[..., object]
) -> None:
    model = network()
    train(model, 3)
    model.eval()
    write(model[1], model)  # type: ignore[index]
    move(model)
    assert momenta(model)["batches"].tolist() == [0, 0, 3, 3]
    assert begins_from(model, {"1.running_mean": torch.full((6,), 3.0)})


@pytest.mark.parametrize(
    "touch",
    [nn.Module.cpu, lambda model: model.double().float(), lambda model: model.load_state_dict(model.state_dict())],
    ids=["device", "type", "load"],
)
@pytest.mark.filterwarnings("ignore:using")
def test_what_moves_a_lent_model_leaves_its_averages_alone(touch: Callable[..., object]) -> None:
    """As a function that evaluates and moves the model to its device: the averages forgot all batches."""
    model, expected = network(), network()
    for each in (model, expected):
        train(each, 20)
    with using(model, population_statistics(model, [torch.randn(4, 3, 8, 8)])):
        touch(model)
    assert momenta(model)["batches"].tolist() == [20] * 4
    for each in (model, expected):
        train(each, 20, seed=1)
    assert_equal(model, expected)


@pytest.mark.parametrize(("batches", "told"), [(1, True), (3, True), (4, False)])
def test_buffers_that_are_written_after_every_few_batches_are_told(batches: int, told: bool) -> None:
    """As around the forward of an attack: the averages begin again, and nothing is ever chosen."""
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
            train(model, 1, step)
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
            train(model, batches, step)
    assert [str(w.message)[:50] for w in caught] == ["SelfTuned: something writes a layer's running buff"] * 2 * told


def test_a_checkpoint_of_other_layers_leaves_the_averages_alone() -> None:
    model, expected = network(), network()
    for each in (model, expected):
        train(each, 70)
    model.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("8.")}, strict=False)
    for each in (model, expected):
        train(each, 10, seed=1)
    assert_equal(model, expected)


@pytest.mark.parametrize("tracks", [False, True])
def test_layers_may_lose_their_buffers(tracks: bool) -> None:
    """As where they shall normalize with each batch's own moments from now on."""
    model, twin = network(), network(self_tuned=False)
    for each in (model, twin):
        train(each, 5)
        for layer in (each[1], each[4]):  # type: ignore[index]
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = tracks
    x = torch.randn(8, 3, 8, 8)
    assert torch.equal(model(x), twin(x)) and torch.equal(model.eval()(x), twin.eval()(x))
    assert_equal(copy.deepcopy(model).double(), twin.double())
    model.load_state_dict(twin.state_dict())
    SelfTuned.revert(model)


def test_on_the_meta_device_and_back() -> None:
    model, expected = network(), network()
    for each in (model, expected):
        train(each, 30)
    state = copy.deepcopy(model.state_dict())
    model.to("meta")(torch.empty(2, 3, 8, 8, device="meta"))
    model.to_empty(device="cpu").load_state_dict(state)
    for each in (model, expected):
        train(each, 10, seed=1)
    assert torch.equal(model[1].running_mean, expected[1].running_mean)  # type: ignore[index]


def test_inference_mode() -> None:
    model, expected, x = network(), network(), torch.randn(70, 8, 3, 8, 8)
    with torch.inference_mode():
        for batch in x:
            model(batch)
    for batch in x:
        expected(batch)
    assert_equal(model, expected)
    with torch.inference_mode():
        made = network()
        for batch in x:
            made(batch)
    assert_equal(made, expected)


def test_a_reset_makes_it_new() -> None:
    model, x = network(), torch.randn(8, 3, 8, 8)
    train(model, 70)
    layer = model[1]  # type: ignore[index]
    layer.reset_running_stats()
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all()
    model.train()
    inputs = model[0](x)  # type: ignore[index]
    layer(inputs)
    torch.testing.assert_close(layer.running_mean, inputs.mean((0, 2, 3)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("when", [0, 1, 7, 63, 64])
def test_a_batch_that_is_not_finite_is_left_out(bad: float, when: int) -> None:
    layer, expected = (SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(3)))[0] for _ in range(2))  # type: ignore[index]
    for number, x in enumerate(torch.randn(90, 16, 3)):
        if number == when:
            layer(x * torch.tensor([1.0, bad, 1.0]))
        else:
            layer(x)
            expected(x)
    assert torch.equal(layer.running_mean, expected.running_mean)
    assert torch.equal(layer.running_var, expected.running_var) and layer.running_var.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_repeats_is_no_new_batch(reentrant: bool) -> None:
    _, trace = record_twin(70)
    model = network()
    train(model, 70, call=lambda x: checkpoint(model, x.requires_grad_(reentrant), use_reentrant=reentrant))  # type: ignore[no-any-return]
    assert_replayed(model, trace)


@pytest.mark.parametrize(("flag", "off"), [("track_running_stats", False), ("momentum", 0.0)])
def test_a_first_forward_that_is_left_out_is_taken_when_it_is_repeated(flag: str, off: Any) -> None:
    """As fairscale's checkpoints have it, whose batches were all left out, and nothing was said."""
    _, trace = record_twin(70)
    model, on = network(), {"track_running_stats": True, "momentum": 0.1}[flag]
    for layer in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        layer.register_forward_pre_hook(lambda layer, _: setattr(layer, flag, on if torch.is_grad_enabled() else off))
        layer.register_forward_hook(lambda layer, *_: setattr(layer, flag, on))
    train(model, 70, call=lambda x: checkpoint(model, x.requires_grad_(True), use_reentrant=True))  # type: ignore[no-any-return]
    assert_replayed(model, trace)


def test_a_forward_that_is_left_out_stays_so_when_it_is_repeated_with_its_momentum() -> None:
    """As sharpness-aware minimization has it whose backward pass comes after its flags are put back."""

    def repeat(model: nn.Module, x: Tensor) -> None:
        out = checkpoint(with_momentum(model, 0.0), x, use_reentrant=False)
        with_momentum(model, 0.1)
        out.sum().backward()
        model.zero_grad()

    assert_left_out(repeat)


@pytest.mark.parametrize("kept", ["mm", "batch_norm"])
def test_selective_checkpointing_sees_the_models_operations_only(kept: str) -> None:
    _, trace = record_twin(70)
    model = network()
    train(model, 70, call=lambda x: checkpoint_but(kept, model, x))
    assert_replayed(model, trace)


def test_a_batch_with_momentum_0_is_left_out() -> None:
    """As sharpness-aware minimization has it, for its second forward."""

    def call(model: nn.Module, x: Tensor) -> None:
        with record(with_momentum(model, 0.0)) as trace:
            model(x)
        assert not any(layer.steps for layer in trace.layers.values())
        with_momentum(model, 0.1)

    assert_left_out(call)


def assert_left_out(call: Callable[[nn.Module, Tensor], None]) -> None:
    """Train, and in between call the model on other images: its averages are those of training alone."""
    model, expected = network(), network()
    for seed in range(3):
        for each in (model, expected):
            train(each, 30, seed)
        call(model, torch.randn(8, 3, 8, 8) + 5)
    for name in BN:
        assert torch.equal(model.get_buffer(f"{name}.running_mean"), expected.get_buffer(f"{name}.running_mean"))


def test_update_bn_gives_the_average_of_all_batches() -> None:
    model, twin = network(), network(self_tuned=False)
    train(model, 30)
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        update_bn(torch.randn(40, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3)), each)
    assert_equal(model, twin)
    assert begins_from(model.train(), twin.state_dict())


def average_batches(model: nn.Module, batches: Iterable[Tensor], choose_momentum: Callable[[int], float]) -> None:
    """As tools for precise batch norm do, which read the running buffers after every batch."""
    layers = [model[1], model[4]]  # type: ignore[index]
    sums, before = [torch.zeros(2, layer.num_features) for layer in layers], layers[0].momentum
    for number, batch in enumerate(batches, start=1):
        for layer in layers:
            layer.momentum = choose_momentum(number)
        model.train()(batch)
        for total, layer in zip(sums, layers, strict=True):
            total += torch.stack((layer.running_mean, layer.running_var))
    for total, layer in zip(sums, layers, strict=True):
        layer.momentum = before
        layer.running_mean.copy_(total[0] / number)
        layer.running_var.copy_(total[1] / number)


def test_momentum_1_shows_the_last_batch() -> None:
    """As fvcore's `update_bn_stats` sets it."""
    model, twin = network(), network(self_tuned=False)
    train(model, 30)
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        average_batches(each, torch.randn(10, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3)), lambda _: 1.0)
    assert_equal(model, twin)
    assert begins_from(model.train(), twin.state_dict())


def test_another_momentum_has_no_effect_and_that_is_said() -> None:
    model, twin = network(), network()
    batches = torch.randn(10, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with pytest.warns(UserWarning, match="momentum of a layer has been changed, which has no effect") as found:
        average_batches(model, batches, lambda number: 1 / (number + 1))
    average_batches(twin, batches, lambda _: 0.1)
    assert_equal(model, twin)
    assert len(found) == 2


def test_update_bn_is_a_new_beginning_in_a_trace() -> None:
    model = network()
    with record(model) as trace:
        train(model, 30)
        update_bn(torch.randn(40, 8, 3, 8, 8), model)
        train(model, 30, seed=1)
    layer = trace.layers["1"]
    assert {start.entries for start in layer.restarts} == {30} and len(layer.steps) == 60
    assert [start.step for start in layer.restarts] == list(range(30, 71))  # it holds other averages after each
    assert_replayed(model, trace)


def test_layers_that_averaged_all_batches_choose_now() -> None:
    model = SelfTuned.convert(with_momentum(network(self_tuned=False), None))
    train(model, 20)
    assert_replayed(model, record_twin(20)[1])


def test_buffers_in_shared_memory() -> None:
    """As for processes that train one model without locks: nobody sees all batches."""
    model = network()
    with pytest.warns(UserWarning, match="running buffers are in shared memory; each process that trains") as found:
        train(model.share_memory(), 3)
    assert len(found) == len(BN)
    assert_replayed(model, record_twin(3)[1])


def test_a_process_that_is_given_a_model_has_places_of_its_own() -> None:
    buffer = io.BytesIO()
    model = network()
    ForkingPickler(buffer).dump(model)
    given = pickle.loads(buffer.getvalue())
    assert given[0].weight.is_shared() and not given[1].upkeep.collector._places.is_shared()


def test_several_forwards_before_a_backward() -> None:
    """As of a GAN's two networks, with looks in between: gradients are those of plain layers."""
    models = network(), network(self_tuned=False)
    x = torch.randn(2, 8, 3, 8, 8)
    for model in models:
        outputs = model(x[0]).square().sum()
        model.state_dict()
        (outputs + model(x[1]).sum()).backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_layers_in_eval_mode_or_without_tracking_stay() -> None:
    model = network()
    train(model, 10)
    state = copy.deepcopy(model.state_dict())
    model.train()
    model[1].eval()  # type: ignore[index]
    model[4].track_running_stats = False  # type: ignore[index]
    model(torch.randn(8, 3, 8, 8))
    assert all(torch.equal(state[f"{name}.running_mean"], model.state_dict()[f"{name}.running_mean"]) for name in BN)


def test_a_call_that_raises_leaves_no_batch() -> None:
    layer = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(3)))[0]  # type: ignore[index]
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        layer(torch.randn(1, 3))
    x = torch.randn(8, 3)
    layer(torch.empty(0, 3))
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    torch.testing.assert_close(layer.running_var, x.var(0))
    assert layer.momentum == 0.1


def test_who_looks_within_a_call_sees_the_layer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a thread that saves checkpoints beside training."""
    model, expected = network(), network()
    for each in (model, expected):
        train(each, 10)
    layer, seen = model[1], []  # type: ignore[index]
    own = nn.functional.batch_norm

    def look(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((copy.deepcopy(model.state_dict()), copy.deepcopy(model), layer.momentum))
        return own(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(nn.functional, "batch_norm", look)
        train(model, 1, seed=1)
    state, other, momentum = seen[0]
    assert torch.equal(state["1.running_mean"], expected.state_dict()["1.running_mean"]) and momentum == 0.1
    assert torch.equal(other[1].running_var, expected[1].running_var)  # type: ignore[index]
    train(expected, 1, seed=1)
    assert_equal(model, expected)


def test_measuring_a_model_leaves_its_averages_alone() -> None:
    model, expected = network(), network()
    batches = list(torch.randn(3, 8, 3, 8, 8))
    for each in (model, expected):
        train(each, 30)
    for upstream in ("population", "batch"):
        exact = population_statistics(model, batches, upstream=upstream)
    with using(model, exact):
        model(batches[0])
    record_frozen(model, batches)
    for each in (model, expected):
        train(each, 30, seed=1)
    assert_equal(model, expected)


def test_a_frozen_record_is_that_of_plain_layers() -> None:
    """Of a model that has been trained, and of one that has not."""
    model, twin = network(), network(self_tuned=False)
    batches = list(torch.randn(3, 8, 3, 8, 8))
    for steps in (0, 30):
        train(model, steps)
        twin.load_state_dict(model.state_dict())
        assert same_traces(record_frozen(model, batches), record_frozen(twin, batches))


def test_an_averaged_model_gets_the_latest_buffers() -> None:
    model = network()
    averaged = AveragedModel(model)
    for seed in range(3):
        train(model, 10, seed)
        averaged.update_parameters(model)
        assert torch.equal(averaged.module[1].running_mean, model[1].running_mean)  # type: ignore[index]
    x = torch.randn(8, 3, 8, 8)
    averaged.eval()(x)
    assert (momenta(averaged)["batches"] == 0).all() and momenta(averaged)["momentum"].isna().all()
    assert (momenta(model)["batches"] == 30).all()
    assert torch.equal(averaged.module[1].running_mean, model[1].running_mean)  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_may_change(dtype: torch.dtype) -> None:
    model = network()
    train(model, 20)
    before = model.state_dict()["4.running_var"]
    model.to(dtype).train()
    torch.testing.assert_close(model.state_dict()["4.running_var"], before.to(dtype))
    for _ in range(70):
        model(torch.randn(8, 3, 8, 8, dtype=dtype))
    found = model.state_dict()["1.running_mean"]
    assert found.dtype == dtype and found.isfinite().all() and model[1].num_batches_tracked == 90  # type: ignore[index]


def test_autocast() -> None:
    models = network(), network(self_tuned=False)
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(8, 3, 8, 8) * torch.arange(8.0)[:, None, None, None])
    twin = models[1]
    one = models[0][1].running_mean  # type: ignore[index]
    torch.testing.assert_close(0.1 * one, twin[1].running_mean)  # type: ignore[index]


@pytest.mark.parametrize(("kind", "dimensions"), [(nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)])
def test_each_of_torchs_classes(kind: type[nn.Module], dimensions: int) -> None:
    layer, x = kind(4), torch.randn(8, 4, *[3] * dimensions) + 2  # type: ignore[call-arg]
    model = SelfTuned.convert(nn.Sequential(layer))
    model(x)
    assert isinstance(layer, SelfTuned) and isinstance(layer, kind)
    torch.testing.assert_close(layer.running_mean, x.mean([0, *range(2, x.dim())]))
    with pytest.raises(ValueError, match="expected"):
        model(torch.randn(8))


# -- compiled, exported


@pytest.mark.parametrize("looks", [(), (5, 6)])
def test_compiled(looks: tuple[int, ...]) -> None:
    _, trace = record_twin(10)
    model = network()
    train(model, 10, call=torch.compile(model, backend="eager"), looks=looks)
    assert_replayed(model, trace)


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.first(x)))  # type: ignore[no-any-return]


def test_a_layer_breaks_the_graph_once_in_training_and_never_in_evaluation() -> None:
    model, x = SelfTuned.convert(Unrolled()), torch.randn(2, 3, 4, 4)
    assert torch._dynamo.explain(model.train())(x).graph_break_count == 1
    torch._dynamo.reset()
    assert torch._dynamo.explain(model.eval())(x).graph_break_count == 0


def test_exports_hold_the_latest() -> None:
    model, x = network(), torch.randn(4, 3, 8, 8)
    train(model, 20)
    model.eval()
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)


@pytest.mark.parametrize("trace", [torch.jit.trace, lambda model, x: make_fx(model)(x)])
def test_what_would_keep_one_place_for_all_batches_is_refused(trace: Callable[..., object]) -> None:
    model, x = network(), torch.randn(4, 3, 8, 8)
    with pytest.raises(ValueError, match="in train mode"):
        trace(model, x)
    with pytest.raises(ValueError, match="in train mode"):
        torch.export.export(model, (x,), strict=False)
    model(x)
    expected = network()
    expected(x)
    assert torch.equal(model[1].running_mean, expected[1].running_mean)  # type: ignore[index]


def test_torchscript_is_refused_by_name() -> None:
    model, x = network().eval(), torch.randn(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"TorchScript cannot run .* SelfTuned\.revert"):
        torch.jit.script(model)
    scripted = torch.jit.script(SelfTuned.revert(copy.deepcopy(model)))
    torch.testing.assert_close(scripted(x), model(x))


def test_buffers_in_a_transform_are_refused() -> None:
    model, x = network(), torch.randn(4, 3, 8, 8)
    state = dict(model.named_parameters()), dict(model.named_buffers())
    with pytest.raises(ValueError, match=r"arguments of a .* transform such as grad"):
        torch.func.grad(lambda *own: torch.func.functional_call(model, own, (x,)).sum())(*state)
    assert (momenta(model)["batches"] == 0).all()


@pytest.mark.parametrize("mode", [False, True])
def test_torch_fx_calls_the_layers_as_torchs(mode: bool) -> None:
    model = network()
    train(model, 10)
    graph = torch.fx.symbolic_trace(copy.deepcopy(model).train(mode))
    assert [node.op for node in graph.graph.nodes].count("call_module") == 9
    for each in (model, graph):
        train(each, 10, seed=1)
    assert_equal(model, graph)


def test_torch_fx_with_input_by_its_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Any:
            return self.norm(input=x)

    graph = torch.fx.symbolic_trace(SelfTuned.convert(Named()))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]


# -- recorded


def test_a_recorded_model_has_the_entries_of_a_plain_one() -> None:
    twin, trace = record_twin(100)
    model = network()
    with record(model) as found:
        train(model, 100, looks=(3, 64))
    for name, layer in trace.layers.items():
        assert torch.equal(found.layers[name].moments, layer.moments) and not found.layers[name].restarts
        assert found.layers[name].steps == layer.steps and found.layers[name].counts == layer.counts
    assert_replayed(model, found)
    for value, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_a_replay_begins_again_where_the_averages_do() -> None:
    model = network()
    state = copy.deepcopy(model.state_dict())
    with record(model) as trace:
        train(model, 40)
        model[1].reset_running_stats()  # type: ignore[index]
        train(model, 40, seed=1)
        model.load_state_dict(state)
        train(model, 40, seed=2)
    assert [start.entries for start in trace.layers["1"].restarts] == [40, 80]
    assert [start.entries for start in trace.layers["4"].restarts] == [80]
    assert_replayed(model, trace)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_replay_begins_again_from_what_something_else_writes(write: Callable[..., object]) -> None:
    model = network()
    with record(model) as trace:
        train(model, 3)
        write(model[1], model)  # type: ignore[index]
        train(model, 3, seed=1)
    assert [start.entries for start in trace.layers["1"].restarts] == [3]
    assert_replayed(model, trace)


def test_a_checkpoint_of_the_same_training_goes_on_in_the_trace() -> None:
    """As after a crash: the trace is cut where the checkpoint was."""
    model, expected = network(), network()
    with record(expected) as whole:
        train(expected, 30)
        train(expected, 50, seed=2)
    with record(model) as trace:
        train(model, 30)
        state = copy.deepcopy(model.state_dict())
        train(model, 30, seed=1)
        model.load_state_dict(state)
        trace.truncate(30)
        train(model, 50, seed=2)
    assert all(not layer.restarts for layer in trace.layers.values())
    assert torch.equal(trace.layers["4"].moments, whole.layers["4"].moments)
    assert_replayed(model, trace)


def test_averages_of_an_earlier_batch_in_a_trace_that_is_not_cut_are_told() -> None:
    model = network()
    with pytest.warns(UserWarning, match=r"'1', '4' are not the average .*call trace\.truncate"), record(model):
        train(model, 30)
        state = copy.deepcopy(model.state_dict())
        train(model, 30, seed=1)
        model.load_state_dict(state)
        train(model, 30, seed=2)


# -- conversion


def test_revert_gives_torchs_layers_with_the_buffers_as_they_are() -> None:
    model = network()
    train(model, 30)
    state, layer = copy.deepcopy(model.state_dict()), model[1]  # type: ignore[index]
    assert SelfTuned.revert(model) is model and model[1] is layer and type(layer) is nn.BatchNorm2d  # type: ignore[index]
    assert "forward" not in vars(layer) and layer.momentum == 0.1
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    save_and_load(model, weights_only=False)
    twin = network(self_tuned=False)
    twin.load_state_dict(state)
    for each in (model, twin):
        train(each, 10)
    assert_equal(model, twin)


def test_revert_wants_the_classes_that_convert_has_given() -> None:
    model = network()
    parametrize.register_parametrization(model[1], "weight", nn.Identity())  # type: ignore[index]
    train(model, 3)
    with pytest.raises(ValueError, match="'1' have got another class since"):
        SelfTuned.revert(model)
    assert isinstance(model[4], SelfTuned)  # type: ignore[index]
    parametrize.remove_parametrizations(model[1], "weight")  # type: ignore[index,arg-type]
    assert type(SelfTuned.revert(model)[1]) is nn.BatchNorm2d  # type: ignore[index]


BLOCKS: dict[str, Callable[[nn.Module], Any]] = {
    "record": record,
    "using": lambda model: using(model, running_statistics(model)),
    "applied": lambda model: applied(model, TestBatch()),
}


@pytest.mark.parametrize("change", [SelfTuned.convert, SelfTuned.revert])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_model_that_is_in_use_keeps_its_layers(block: str, change: Callable[[nn.Module], nn.Module]) -> None:
    model = network(self_tuned=change == SelfTuned.revert)
    kinds = [type(module) for module in model.modules()]
    with BLOCKS[block](model):
        with pytest.raises(ValueError, match=r"SelfTuned.*: '1', '4' are in use by a block of bnlab"):
            change(model)
        if block != "applied":  # where a copy has the rule
            change(copy.deepcopy(model))
        model(torch.randn(8, 3, 8, 8))
    assert [type(module) for module in model.modules()] == kinds
    train(change(model), 2)


def test_converting_twice_changes_nothing() -> None:
    model = network()
    train(model, 10)
    upkeep = model[1].upkeep  # type: ignore[index]
    assert SelfTuned.convert(model) is model and model[1].upkeep is upkeep  # type: ignore[index]


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def test_what_cannot_be_converted_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Own(3), OwnNorm(3), FrozenNorm(3))
    with pytest.warns(UserWarning, match="'2', '1' are not of torch's own classes, or have their own forward"):
        SelfTuned.convert(model)
    assert isinstance(model[0], SelfTuned) and type(model[1]) is Own
    with pytest.raises(ValueError, match="no BatchNorm layer with running statistics"):
        SelfTuned.convert(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"expected a torch\.nn.Module, found str"):
        SelfTuned.convert("model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"SelfTuned.convert"):
        SelfTuned(64, eps=1e-3)
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        model[0]._replicate_for_data_parallel()


# -- the reader


def test_momenta() -> None:
    model = network()
    with pytest.raises(ValueError, match="no self-tuned layer"):
        momenta(plain())
    train(model, 30)
    found, every = momenta(model), momenta(model, errors=True)
    assert found[["layer", "depth", "statistic"]].values.tolist() == [
        ["1", 1, "mean"],
        ["1", 1, "var"],
        ["4", 2, "mean"],
        ["4", 2, "var"],
    ]
    assert (found["batches"] == 30).all() and (found["memory"] == 1 / found["momentum"]).all()
    best = every.loc[every.groupby(["depth", "statistic"])["error"].idxmin()]
    assert best["momentum"].tolist() == found["momentum"].tolist() and best["chosen"].all()
    assert len(every) == 4 * 50


def test_momenta_know_of_a_write_that_layers_have_not_seen_yet() -> None:
    model = network()
    held = model[1].running_mean  # type: ignore[index]
    train(model, 30)
    held.add_(1)
    assert momenta(model)["batches"].tolist() == [0, 0, 30, 30]


def test_the_error_of_a_forecast_is_a_mean_of_squares() -> None:
    """A mean that is as far off each time: its square, in variances, and 0 for the logarithm."""
    layer = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(1)))  # type: ignore[index]
    x = torch.tensor([[-1.0], [1.0]]) / 2**0.5  # variance 1
    for step in range(40):
        layer(x + (step % 2))
    errors = momenta(layer, errors=True).set_index(["statistic", "momentum"])["error"]
    assert errors["mean", 1.0] == pytest.approx(1, rel=1e-3)  # eps in the variance
    assert errors["mean", 0.001] == pytest.approx(0.25, rel=0.05)
    assert errors["var"].max() < 1e-10


@pytest.mark.parametrize("momentum", [None, 1.0])
def test_a_momentum_by_which_others_average_all_batches_is_told(momentum: float | None) -> None:
    with pytest.warns(UserWarning, match="'1', '4' have momentum None or 1"):
        SelfTuned.convert(with_momentum(plain(), momentum))


# -- two processes

RANKS = """
import warnings
from tests.nn.test_self_tuned import network, train

model = network()
ddp = torch.nn.parallel.DistributedDataParallel(model)
warnings.simplefilter("error")  # of buffers that are written before each forward
train(model, 70, seed=rank, call=ddp, looks=(3, 40))
x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
ddp.eval()
with torch.no_grad():
    output = ddp(x)
both = [None, None]
dist.all_gather_object(both, output)
assert torch.equal(*both), "evaluated under other statistics"
assert rank or model[1].upkeep.beginnings == 0  # the first one's averages are its own
"""


def test_two_processes_evaluate_alike(tmp_path: Path) -> None:
    run_two_ranks(RANKS, tmp_path)
