"""Recording layers whose buffers, or which themselves, are replaced inside of the block."""

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bnlab import (
    MomentTrace,
    population_statistics,
    record,
    record_frozen,
    replay,
    running_statistics,
    using,
)
from bnlab.estimators import EMA, Cumulative, Predictive
from bnlab.nn import SelfTuned
from bnlab.trace import replay_bank
from tests.helpers import (
    assert_equal_statistics,
    images,
    plain,
    randomized,
    same_traces,
    train,
    with_momentum,
    without_dropout,
)


class _Activated(nn.BatchNorm2d):
    """With an activation inside."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).tanh().clone()


def own_forward() -> nn.Module:
    model = plain()
    model[1] = _Activated(6)
    return model


def saved(model: nn.Module) -> Callable[[nn.Module], None]:
    state = copy.deepcopy(model.state_dict())
    return lambda m: m.load_state_dict(state) and None


def replaced(model: nn.Module) -> None:
    model[1].running_mean = torch.full((6,), 2.0)


WRITERS: dict[str, Callable[[nn.Module], object]] = {
    "load_state_dict": saved(randomized(plain(), seed=5)),
    "reset": lambda m: [layer.reset_running_stats() for layer in (m[1], m[4])],
    "write_to": lambda m: running_statistics(randomized(plain(), seed=6)).write_to(m),
    "copy": lambda m: m[1].running_var.copy_(torch.full((6,), 3.0)),
    "replaced": replaced,
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("before", [0, 2, 5])
def test_the_replay_begins_again_where_buffers_are_written(
    before: int, writer: str, momentum: float | None, nested: bool, tmp_path: Path
) -> None:
    """Before the first call, between two, and after the last one; saved, joined and loaded as well."""
    model = with_momentum(without_dropout(plain()), momentum)
    estimator, batches = EMA(0.1) if momentum else Cumulative(), images(4, 4, 4, 4, 4)
    with record(model) as outer, record(model) as inner:
        train(model, batches[:before], lr=0.01)
        WRITERS[writer](model)
        written = running_statistics(model)
        assert_equal_statistics(replay(inner if nested else outer, estimator)[before], written)
        train(model, batches[before:], lr=0.01)
    trace = inner if nested else outer
    assert_equal_statistics(replay(trace, estimator)[5], running_statistics(model))
    assert_equal_statistics(replay(trace, estimator, [before])[before], written)
    trace.save(tmp_path / "trace.safetensors")
    loaded = MomentTrace.load(tmp_path / "trace.safetensors")
    assert same_traces(loaded, trace)
    with record(model, step=5) as more:
        train(model, batches, lr=0.01)
    joined = MomentTrace.join([loaded, more])
    assert_equal_statistics(replay(joined, estimator, [10])[10], running_statistics(model))
    assert_equal_statistics(replay(joined, estimator, [before])[before], written)
    joined.truncate(before)
    assert_equal_statistics(replay(joined, estimator)[before], written)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_in_a_layer_that_rests_counts_from_its_step(writer: str, counted: bool, tmp_path: Path) -> None:
    """Batch norm is frozen for two steps, then written, then frozen for another."""
    model, batches = without_dropout(plain()), images(4, 4, 4, 4, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    held = []

    def train_one(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        held.append(running_statistics(model))

    with record(model, optimizer=optimizer if counted else None) as trace:
        model.train()
        train_one(batches[0]), train_one(batches[1])
        model[1].eval(), model[4].eval()
        train_one(batches[2]), train_one(batches[3])
        WRITERS[writer](model)
        held[-1] = running_statistics(model)
        train_one(batches[4])
        model.train()
        train_one(batches[5])
    trace.save(tmp_path / "trace.safetensors")
    for found in (trace, MomentTrace.load(tmp_path / "trace.safetensors"), copy.deepcopy(trace)):
        for step, expected in enumerate(held, start=1):
            assert_equal_statistics(replay(found, EMA(0.1))[step], expected)
    assert trace.last_start == 4
    trace.truncate(3)
    assert trace.last_start == 0
    assert_equal_statistics(replay(trace, EMA(0.1))[3], held[2])


@pytest.mark.parametrize("forward", ["in eval mode", "by layers"])
def test_a_write_in_a_layer_that_rests_where_no_forward_of_the_model_is_seen(forward: str) -> None:
    model, batches = without_dropout(plain()), images(4, 4, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    held = []
    with record(model, optimizer=optimizer) if forward == "in eval mode" else record(model) as trace:
        for step, x in enumerate(batches, start=1):
            model.train(not (forward == "in eval mode" and step in (2, 3)))
            model[4].eval()
            for layer in model if forward == "by layers" else [model]:
                x = layer(x)
            optimizer.step()
            if step == 2:
                model[4].running_mean.fill_(3.0)
            held.append(running_statistics(model))
    for step, expected in enumerate(held, start=1):
        assert_equal_statistics(replay(trace, EMA(0.1))[step], expected)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("rests", [False, True])
def test_a_write_between_parts_that_are_joined(inside: bool, rests: bool, tmp_path: Path) -> None:
    """It leaves `num_batches_tracked` as it was; the later part's replay went on from before it."""
    model, batches = without_dropout(plain()), images(4, 4)
    model[1].train(not rests)
    with record(model) as earlier:
        train(model, batches, lr=0.01)
    earlier.save(tmp_path / "trace.safetensors")
    if not inside:
        WRITERS["write_to"](model)
    with record(model, step=2) as later:
        if inside:
            WRITERS["write_to"](model)
        train(model, batches, lr=0.01)
    for part in (earlier, MomentTrace.load(tmp_path / "trace.safetensors")):
        joined = MomentTrace.join([part, later])
        assert joined.last_start == 2
        assert_equal_statistics(replay(joined, EMA(0.1))[4], running_statistics(model))
    with record(model, step=4) as last:
        train(model, batches, lr=0.01)
    assert MomentTrace.join([joined, last]).last_start == 2


def test_a_teacher_that_is_averaged_after_each_update() -> None:
    """Its layers are in eval mode, and each of their restarts has a step of its own."""
    student = plain()
    teacher = copy.deepcopy(student)
    model, held = nn.ModuleDict({"student": student, "teacher": teacher}), []
    model.train(), teacher.eval()
    with record(model) as trace:
        for batch in images(4, 4, 4):
            train(student, [batch])
            for mine, own in zip(teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(mine.lerp(own, 0.5) if mine.is_floating_point() else mine)
            held.append(running_statistics(model))
    for step, expected in enumerate(held, start=1):
        assert_equal_statistics(replay(trace, EMA(0.1))[step], expected)


@pytest.mark.parametrize("momentum", [0.001, None])
def test_small_writes_in_a_layer_that_has_not_been_called(momentum: float | None) -> None:
    """Nothing has been rounded in it, whatever its momentum and the batches that it has seen before."""
    student = with_momentum(plain(), momentum)
    student[1].num_batches_tracked.fill_(10_000)
    teacher = copy.deepcopy(student)
    model, held = nn.ModuleDict({"student": student, "teacher": teacher}), []
    model.train(), teacher.eval()
    with record(model) as trace:
        for batch in images(4, 4, 4):
            train(student, [batch])
            teacher[1].running_mean.add_(1e-4)
            held.append(running_statistics(teacher)["1"].mean)
    for step, expected in enumerate(held, start=1):
        assert torch.equal(replay(trace, EMA(0.001))[step]["teacher.1"].mean, expected)


def test_two_writes_at_one_place_are_one_restart() -> None:
    model = plain()
    with record(model) as trace:
        train(model, images(4))
        WRITERS["load_state_dict"](model)
        model.eval()(images(4)[0])
        model[1].reset_running_stats()
        train(model.train(), images(4))
    assert [(s.entries, s.updates, s.values[1].tolist()) for s in trace.layers["1"].restarts] == [(1, 0, [1.0] * 6)]
    assert_equal_statistics(replay(trace, EMA(0.1))[2], running_statistics(model))


def test_writes_that_change_nothing_are_no_restart() -> None:
    """Measurements inside of the block, loading what is there, other tensors with the same values."""
    model, batches = plain(), images(4, 4, 4)
    with record(model) as trace:
        for batch in batches:
            train(model, [batch])
            population_statistics(model, batches)
            record_frozen(model, batches)
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            model[1].running_mean = model[1].running_mean.clone()
    assert not any(layer.restarts for layer in trace.layers.values()) and len(trace.layers["1"]) == 3


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
def test_a_trace_is_read_while_the_model_is_lent(convert: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """What the model has been lent was taken for its own: the gap to it was 0, and later replays began from there."""
    model, batches, estimator = convert(plain()), images(4, 4, 4), EMA(0.01)
    with record(model) as trace:
        train(model, batches)
        expected = replay(trace, estimator)[3]
        with using(model, population_statistics(model, batches)):
            inside = replay(trace, estimator)[3]
            trace.save(tmp_path / "trace.safetensors")
        train(model, batches)
    assert_equal_statistics(inside, expected)
    assert_equal_statistics(replay(MomentTrace.load(tmp_path / "trace.safetensors"), estimator)[3], expected)
    assert not any(layer.restarts for layer in trace.layers.values()) and trace.last_step == 6


@pytest.mark.parametrize("looks", [False, True])
def test_what_is_put_back_without_its_averages_is_a_beginning(looks: bool) -> None:
    """As from a plain dictionary, which has no metadata: the layers have forgotten their batches."""
    model, batches = SelfTuned.convert(without_dropout(plain())), images(4, 4, 4)
    with record(model) as trace:
        train(model, batches)
        own = {name: value.clone() for name, value in model.state_dict().items()}
        WRITERS["load_state_dict"](model)
        if looks:
            replay(trace, EMA(0.1))
        model.load_state_dict(own)
        train(model, batches)
    assert_equal_statistics(replay(trace, Predictive())[6], running_statistics(model))


def test_a_trace_that_begins_in_a_block_of_using_is_of_what_runs_there() -> None:
    model, batches = plain(), images(4)
    with using(model, population_statistics(model, batches)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `using`, for what is written in the block
        with record(model) as trace:
            train(model.train(), batches)
            model[1].running_mean.fill_(3.0)
            assert (replay(trace, EMA(0.1))[1]["1"].mean == 3).all()


def test_a_part_that_was_truncated_says_nothing_of_its_end() -> None:
    model, batches = plain(), images(4, 4)
    with record(model) as earlier:
        train(model, batches[:1])
        state = copy.deepcopy(model.state_dict())
        train(model, batches[1:])
    earlier.truncate(1)
    model.load_state_dict(state)
    with record(model, step=1) as later:
        train(model, batches)
    joined = MomentTrace.join([earlier, later])
    assert not any(layer.restarts for layer in joined.layers.values())
    assert_equal_statistics(replay(joined, EMA(0.1))[3], running_statistics(model))


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
def test_hooks_that_something_takes_away(convert: Callable[[nn.Module], nn.Module]) -> None:
    """The end of an evaluation in a generator that began before the block: nothing was recorded after it."""

    def evaluate() -> Iterator[None]:
        with using(model, running_statistics(model)):
            yield

    model = convert(plain())
    with pytest.warns(UserWarning, match="taken the hooks of '1', '4' away"):
        evaluation = evaluate()
        next(evaluation)
        with record(model) as trace:
            assert next(evaluation, None) is None
            train(model.train(), images(4, 4))
    assert trace.last_step == 0


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
def test_what_is_put_back_is_no_write(convert: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """A checkpoint is made under averaged weights; replays of other momenta began again there."""
    model, batches = convert(plain()), images(4, 4, 4)
    with record(model) as trace:
        train(model, batches)
        own = copy.deepcopy(model.state_dict())
        WRITERS["load_state_dict"](model)
        written = running_statistics(model)
        trace.save(tmp_path / "trace.safetensors")
        model.load_state_dict(own)
        train(model, batches)
    assert_equal_statistics(replay(MomentTrace.load(tmp_path / "trace.safetensors"), EMA(0.1))[3], written)
    assert not any(layer.restarts for layer in trace.layers.values())


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
@pytest.mark.parametrize("comes_back", [False, True])
def test_layers_may_lose_their_running_buffers(convert: Callable[[nn.Module], nn.Module], comes_back: bool) -> None:
    """As test-time adaptation takes them away; calls without them are no entries."""
    model, (a, b, c) = convert(plain()), images(4, 4, 4)
    layer = model[1]
    with record(model) as trace:
        train(model, [a])
        own = layer.running_mean, layer.running_var
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        train(model, [b])
        replay(trace, EMA(0.1))
        if comes_back:
            layer.track_running_stats, (layer.running_mean, layer.running_var) = True, own
            train(model, [c])
    assert trace.layers["1"].steps == ([1, 3] if comes_back else [1])
    assert trace.layers["4"].steps == list(range(1, 3 + comes_back)) and not trace.layers["1"].restarts


def _change_momentum(model: nn.Module, step: int) -> None:
    if not isinstance(model[1], SelfTuned):  # which chooses its own
        with_momentum(model, 0.5 if step < 10 else 0.9)


def _kill_a_channel(model: nn.Module, step: int) -> None:
    """Its variance is exactly 0 from now on, and the average of it tends to 0."""
    _change_momentum(model, 10)
    with torch.no_grad():
        for key in ("weight", "bias"):
            model[0].get_parameter(key)[0] = 0.0


def _count_an_empty_batch(model: nn.Module, step: int) -> None:
    """It is counted, but has no entry."""
    model[1](torch.empty(0, 6, 8, 8))


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
@pytest.mark.parametrize("disturb", [_change_momentum, _kill_a_channel, _count_an_empty_batch])
def test_what_is_put_back_was_not_written(
    disturb: Callable[[nn.Module, int], None], convert: Callable[[nn.Module], nn.Module]
) -> None:
    """As averaged weights with their buffers are, for an evaluation in every fifth step."""
    traces = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for swaps in (False, True):
            torch.manual_seed(0)
            model = convert(plain())
            with record(model, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.0))) as trace:
                for step, batch in enumerate(images(*[4] * 60)):
                    disturb(model, step)
                    model(batch)
                    optimizer.step()
                    if swaps and step % 5 == 4:
                        own = copy.deepcopy(model.state_dict())
                        WRITERS["load_state_dict"](model)
                        model.eval()(batch)
                        model.train().load_state_dict(own)
            traces.append(trace)
    assert not any(layer.restarts for trace in traces for layer in trace.layers.values())
    for estimator in (EMA(0.003), Cumulative()):
        kept, disturbed = (replay_bank(trace, [estimator], [60]) for trace in traces)
        assert torch.equal(disturbed, kept)


@pytest.mark.parametrize("look", [lambda trace: replay(trace, EMA(0.1)), copy.deepcopy, lambda trace: None])
@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
def test_a_trace_may_be_looked_at_between_truncating_and_loading(
    convert: Callable[[nn.Module], nn.Module], look: Callable[[MomentTrace], object]
) -> None:
    """As early stopping does, which saves the trace before it takes the best weights."""
    model, batches = convert(plain()), images(4, 4, 4, 4)
    with record(model) as trace:
        train(model, batches[:2])
        best = copy.deepcopy(model.state_dict())
        train(model, batches[2:])
        trace.truncate(2)
        look(trace)
        model.load_state_dict(best)
        wanted = running_statistics(model)
    assert not any(layer.restarts for layer in trace.layers.values())
    own = Predictive() if isinstance(model[1], SelfTuned) else EMA(0.1)
    assert_equal_statistics(replay(trace, own)[2], wanted)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
def test_a_model_may_be_converted_at_the_end_of_the_block(convert: Callable[[nn.Module], object]) -> None:
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model) as trace:
            train(model, images(4, 4))
            convert(model.eval())
    assert not any(layer.restarts for layer in trace.layers.values())


def test_blocks_are_joined_where_a_batch_was_counted_without_an_entry() -> None:
    model, parts = plain(), []
    for step in range(2):
        with record(model, step=step) as trace:
            train(model, images(4))
            _count_an_empty_batch(model, 0)
        parts.append(trace)
    joined = MomentTrace.join(parts)
    assert len(joined.layers["1"]) == 2 and not joined.layers["1"].restarts


def test_writing_without_a_trace_is_found_where_the_momentum_changes() -> None:
    model = plain()
    with (
        pytest.warns(UserWarning, match="the running buffers of '1' are not the average of what was recorded"),
        record(model),
    ):
        train(model, images(4))
        train(with_momentum(model, 0.5), images(4))
        model[1].running_var.data.fill_(7.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("calls", [3, 40])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_truncating_leaves_what_is_recorded_as_it_was(dtype: torch.dtype, calls: int, momentum: float | None) -> None:
    model, other = (with_momentum(plain().to(dtype), momentum) for _ in range(2))
    batch = [images(4)[0].to(dtype)]
    with record(model) as trace:
        for _ in range(calls):
            train(model, batch)
        state = copy.deepcopy(model.state_dict())
        train(model, batch)
        model.load_state_dict(state)
        trace.truncate(calls)
        train(model, batch)
    with record(other) as expected:
        for _ in range(calls + 1):
            train(other, batch)
    ours, theirs = trace.layers["1"], expected.layers["1"]
    assert not ours.restarts
    torch.testing.assert_close(ours.start, theirs.start, rtol=0, atol=0)
    assert len(ours) == calls + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("calls", [3, 200])
def test_truncating_without_loading_begins_again_with_what_the_buffers_hold(dtype: torch.dtype, calls: int) -> None:
    model, batch = plain().to(dtype), [images(4)[0].to(dtype)]
    with record(model) as trace:
        for _ in range(calls):
            train(model, batch)
        trace.truncate(calls - 1)
        held = torch.stack((model[1].running_mean, model[1].running_var)).clone()
        train(model, batch)
    ((entries, values, updates, step),) = trace.layers["1"].restarts
    assert (entries, updates, step) == (calls - 1, calls, calls - 1)
    torch.testing.assert_close(values, held, rtol=0, atol=0)


def test_truncating_where_a_channel_has_died() -> None:
    """Of a variance that has decayed for long nothing is too small to count."""
    layer, x = nn.Sequential(nn.BatchNorm1d(2, momentum=0.5)), torch.randn(8, 2)
    with record(layer) as trace:
        for call in range(160):
            layer(x if call < 20 else x * torch.tensor([1.0, 0.0]))
            if call == 149:
                state = copy.deepcopy(layer.state_dict())
        layer.load_state_dict(state)
        trace.truncate(150)
        layer(x)
    assert not trace.layers["0"].restarts


def test_truncating_what_inference_mode_has_trained() -> None:
    with torch.inference_mode():
        model = plain()
        with record(model) as trace:
            for _ in range(3):
                model(images(4)[0])
            state = copy.deepcopy(model.state_dict())
            model(images(4)[0])
            model.load_state_dict(state)
            trace.truncate(3)
            model(images(4)[0])
    assert not trace.layers["1"].restarts


class _Whitening(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(3)
        self.running_var = torch.eye(3)


class _Scheduled(nn.BatchNorm1d):
    """Keeps its momentum in checkpoints."""

    def __init__(self) -> None:
        super().__init__(3)
        del self.momentum
        self.register_buffer("momentum", torch.tensor(0.1))


@pytest.mark.parametrize(
    ("make", "found"),
    [(_Whitening, "running variance of (3, 3)"), (_Scheduled, "momentum of layer '0' is a buffer, a property")],
)
def test_layers_that_cannot_be_recorded_are_refused(make: Callable[[], nn.Module], found: str) -> None:
    model = nn.Sequential(make())
    with pytest.raises(ValueError, match=re.escape(found)), record(model):
        pass


@pytest.mark.parametrize("write", ["traced", "forgotten", "lasting"])
@pytest.mark.parametrize("make", [plain, own_forward])
def test_writing_without_a_trace_is_found_although_it_may_not_last(make: Callable[[], nn.Module], write: str) -> None:
    model = make()
    state = copy.deepcopy(model.state_dict())
    with (
        pytest.warns(UserWarning, match="the running buffers of '1' are not the average of what was recorded"),
        record(model),
    ):
        train(model, images(4))
        model[1].running_var.data.fill_(7.0)
        train(model, images(4))
        if write == "traced":
            model.load_state_dict(state)
        for _ in range(0 if write == "lasting" else 400):
            train(model, images(4))


def test_counted_batches_without_entries_weigh_in_the_average_of_all() -> None:
    model = with_momentum(plain(), None)
    with (
        pytest.warns(UserWarning, match="'1', with momentum None, have counted batches that are no entries"),
        record(model),
    ):
        _count_an_empty_batch(model, 0)
        train(model, images(4))


def test_a_write_is_seen_by_all_layers_that_no_module_surrounds() -> None:
    layers = nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3)})
    with record(layers) as trace:
        for step in range(3):
            if step == 2:
                layers.load_state_dict(nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3)}).state_dict())
            layers["b"](layers["a"](images(4)[0]))
            trace.step()
    assert [entries.restarts[0].step for entries in trace.layers.values()] == [2, 2]


def test_another_momentum_is_no_write_without_a_trace() -> None:
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for later in ([], images(4)):
            with record(model):
                train(model, images(4))
                with_momentum(model, 0.5 + len(later) / 4)  # a trace keeps none: replays have one of their own
                train(model, later)


def test_loading_what_has_one_batch_more_is_no_batch_past_the_hooks() -> None:
    """As of copies that are trained on a batch each, and averaged."""
    model, (a, b) = plain(), images(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model) as trace:
            train(model, [a])
            other = copy.deepcopy(model)
            train(other, [b])
            model.load_state_dict(other.state_dict())
            train(model, [a])
    assert [start.updates for start in trace.layers["1"].restarts] == [2]


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize("counts", ["forwards", "updates"])
def test_buffers_that_the_training_has_given(
    convert: Callable[[nn.Module], nn.Module], loads: bool, counts: str
) -> None:
    """At the end the model has its own again, into which nothing was averaged; unless they are loaded."""
    model = convert(plain())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    told = warnings.catch_warnings() if loads else pytest.warns(UserWarning, match="'1', '4' were trained with other")
    with told, record(model) as trace:
        warnings.simplefilter("error" if loads else "always")
        for batch in images(4, 4, 4):
            functional_call(model, (dict(model.named_parameters()), buffers), (batch,))
            if counts == "updates":
                trace.step()
        if loads:
            model.load_state_dict(buffers, strict=False)
    own = running_statistics(model)
    estimator = EMA(0.1) if not isinstance(model[1], SelfTuned) else Predictive()
    assert_equal_statistics(replay(trace, estimator)[3], own)
    assert torch.allclose(own["1"].mean.float(), buffers["1.running_mean"]) == loads


@pytest.mark.parametrize("counts", ["forwards", "updates"])
@pytest.mark.parametrize("values", ["other", "equal", "eval"])
def test_a_teacher_with_buffers_of_its_own(values: str, counts: str) -> None:
    """Its calls come between those of the model, and what replays give at the end of a step may be its."""
    model = plain()
    buffers = {name: buffer.clone() + (values != "equal") for name, buffer in model.named_buffers()}
    is_told = values != "eval"
    told = pytest.warns(UserWarning, match="'1', '4' were called with other") if is_told else warnings.catch_warnings()
    with told, record(model) as trace:
        warnings.simplefilter("always" if is_told else "error")
        for batch in images(4, 4, 4):
            model.train(values != "eval")
            if values == "equal":
                buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            functional_call(model, (dict(model.named_parameters()), buffers), (batch,))
            model.train()(batch)
            if counts == "updates":
                trace.step()
    assert_equal_statistics(replay(trace, EMA(0.1))[trace.last_step], running_statistics(model))


@pytest.mark.parametrize("momentum", [0.001, 0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_false_alarm(momentum: float | None, dtype: torch.dtype) -> None:
    """Over many calls, whose rounding adds up, with an empty batch and one that is refused."""
    layer = nn.BatchNorm1d(3, momentum=momentum).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(layer) as trace, torch.no_grad():
            for step in range(600):
                layer((torch.randn(8, 3, generator=generator) + step / 100).to(dtype))
            layer.load_state_dict(copy.deepcopy(layer.state_dict()))
            layer(torch.ones(4, 3, dtype=dtype))
            if momentum is not None:  # which torch counts
                layer(torch.zeros(0, 3, dtype=dtype))
                with pytest.raises(ValueError, match="more than 1 value"):
                    layer(torch.zeros(1, 3, dtype=dtype))
    assert len(trace.layers[""]) == 601 and not trace.layers[""].restarts


def test_layers_that_come_into_the_model_inside_of_the_block() -> None:
    model = plain()
    with pytest.warns(UserWarning, match=r"'1', '10' came into the model inside of the block"), record(model) as trace:
        train(model, images(4))
        model[1] = randomized(nn.BatchNorm2d(6))
        model.append(nn.BatchNorm1d(4))
        train(model, images(4, 3))
    assert [len(layer) for layer in trace.layers.values()] == [1, 3]
    with warnings.catch_warnings(), record(model):
        warnings.simplefilter("error")
        model.append(nn.InstanceNorm1d(4)).append(nn.BatchNorm1d(4, track_running_stats=False))


def test_layers_that_were_out_of_the_model_while_it_was_trained() -> None:
    """A replacement that is not trained loses nothing, and a wrapper calls the layer."""
    for taken_out, message in ((("1",), "'1' was taken"), (("1", "4"), "'1', '4' were taken")):
        model, other = plain(), plain()
        with pytest.warns(UserWarning, match=f"record: {message} out and put back"), record(model) as trace:
            train(model, images(4))
            kept = {name: model[int(name)] for name in taken_out}
            for name in kept:
                model[int(name)] = other[int(name)]
            train(model, images(4, 3))
            for name, layer in kept.items():
                model[int(name)] = layer
            train(model, images(3))
        assert trace.layers["1"].steps == [1, 4]
    with warnings.catch_warnings(), record(model) as trace:
        warnings.simplefilter("error")
        train(model, images(4))
        model.eval()
        layer, model[1] = model[1], nn.Identity()
        model(images(4)[0])
        model[1] = nn.Sequential(layer)
        train(model.train(), images(4))
        model[1] = layer
    assert trace.layers["1"].steps == [1, 2]


def test_a_part_that_was_out_of_the_model_while_it_was_trained() -> None:
    model = nn.Sequential(plain()[:3], plain()[3:])
    with pytest.warns(UserWarning, match=r"record: '0.1' was taken out and put back"), record(model):
        part, model[0] = model[0], plain()[:3]
        train(model, images(4))
        model[0] = part


def test_a_layer_that_was_deleted_while_the_model_was_trained() -> None:
    model = plain()
    with pytest.warns(UserWarning, match=r"record: '1' was taken out and put back"), record(model):
        train(model, images(4))
        layer = model[1]
        delattr(model, "1")
        train(model, images(4))
        model.add_module("1", layer)


@pytest.mark.parametrize("assigned", [False, True])
def test_other_memory_below_a_buffer(assigned: bool) -> None:
    """Training goes on from there as without a recording; which the trace cannot know, and says."""
    plainly, recorded = without_dropout(plain()), without_dropout(plain())
    with pytest.warns(UserWarning, match="the running buffers of '1' are not the average"), record(recorded):
        for model in (plainly, recorded):
            train(model, images(4))
            if assigned:
                model[1].running_mean.data = torch.full((6,), 7.0)
            else:
                model[1].running_mean.data.fill_(7.0)
            train(model, images(4))
    assert_equal_statistics(running_statistics(recorded), running_statistics(plainly))


def test_a_change_of_precision_inside_of_the_block_is_refused() -> None:
    model, batches = plain().train(), images(4, 4)
    with record(model):
        model(batches[0])
        with pytest.raises(ValueError, match=r"'1' is torch.float64 on cpu now, was torch.float32 on cpu"):
            model.double()(batches[1].double())
        model.float()(batches[1])


@pytest.mark.parametrize("convert", [lambda model: model, SelfTuned.convert])
@pytest.mark.parametrize("trains", [True, False])
def test_other_channels_inside_of_the_block_are_refused(
    convert: Callable[[nn.Module], nn.Module], trains: bool
) -> None:
    """As pruning leaves them."""
    model, batches = convert(plain()), images(4, 4)
    with (
        pytest.raises(ValueError, match=r"layer '1' has 4 channels now, had 6; prune or widen"),
        record(model) as trace,
    ):
        train(model, batches)
        model[0], model[3].weight = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(model[3].weight.data[:, :4])
        for name in ("running_mean", "running_var", "weight", "bias"):
            own = getattr(model[1], name)
            setattr(model[1], name, type(own)(own.data[:4]))
        model[1].num_features = 4
        if trains:
            train(model, batches)
    assert trace.layers["1"].steps == [1, 2] and not any(module._forward_hooks for module in model.modules())
    model(batches[0])
