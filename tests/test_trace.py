"""Recorded moments in memory and in files, and replaying what torch's own running statistics would have been."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab import (
    MomentTrace,
    gap,
    record,
    replay,
    running_statistics,
)
from bnlab import trace as trace_module
from bnlab.estimators import EMA, Cumulative, DebiasedEMA, LastBatch
from bnlab.layer_trace import LayerTrace
from bnlab.storage import load_tensors, save_tensors
from bnlab.trace import replay_bank
from tests.helpers import (
    assert_equal_statistics,
    images,
    plain,
    same_traces,
    train,
    without_dropout,
)


@pytest.fixture
def recorded() -> MomentTrace:
    model = without_dropout(plain())
    with record(model) as trace:
        train(model, images(*[4] * 11), lr=0.01)
    return trace


@pytest.mark.parametrize("limit", [0, 500, 10**9])
def test_spilling_to_disk(limit: int, recorded: MomentTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "_CHUNK", 3)
    monkeypatch.setattr(trace_module, "SPILL_BYTES", limit)
    model = without_dropout(plain())
    with record(model) as spilled:
        train(model, images(*[4] * 11), lr=0.01)
        assert same_traces(spilled, recorded)
    files = list(Path(spilled._folder.name).iterdir()) if spilled._folder else []
    assert len(files) == {0: 6, 500: 4, 10**9: 0}[limit]
    for a, b in zip(replay(spilled, EMA(0.1)).values(), replay(recorded, EMA(0.1)).values(), strict=True):
        assert_equal_statistics(a, b, tolerance=0)


@pytest.mark.parametrize("kept", [0, 2, 3, 7, 9, 11])
def test_truncating_while_recording(kept: int, recorded: MomentTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "_CHUNK", 3)
    model, batches = without_dropout(plain()), images(*[4] * 11)
    with record(model) as trace:
        train(model, batches[:kept], lr=0.01)
        state = copy.deepcopy(model.state_dict())
        train(model, batches[kept:], lr=0.01)
        trace.truncate(kept)
        assert trace.last_step == kept and len(trace.layers["1"].moments) == kept
        model.load_state_dict(state)
        train(model, batches[kept:], lr=0.01)
    assert same_traces(trace, recorded)


def test_save_load_join(recorded: MomentTrace, tmp_path: Path) -> None:
    model, batches = without_dropout(plain()), images(*[4] * 11)
    parts = []
    for begin, end in ((0, 5), (5, 6), (6, 6), (6, 11)):
        with record(model, step=begin) as part:
            train(model, batches[begin:end], lr=0.01)
        part.save(tmp_path / f"{begin}.safetensors")
        parts.append(MomentTrace.load(tmp_path / f"{begin}.safetensors"))
        assert same_traces(parts[-1], part)
    joined = MomentTrace.join(parts)
    assert same_traces(joined, recorded)
    joined.save(tmp_path / "joined.safetensors")
    assert same_traces(MomentTrace.load(tmp_path / "joined.safetensors"), recorded)
    assert same_traces(MomentTrace.join(parts[:1]), parts[0])


def test_traces_that_do_not_join(recorded: MomentTrace) -> None:
    with pytest.raises(ValueError, match=r"MomentTrace.join: no parts"):
        MomentTrace.join([])
    with pytest.raises(ValueError, match=r"steps 0 to 11\) does not continue MomentTrace\(2 layers, steps 0 to 11"):
        MomentTrace.join([recorded, recorded])
    with record(plain(width=5), step=11) as other:
        pass
    with pytest.raises(ValueError, match="does not continue"):
        MomentTrace.join([recorded, other])


def test_files_that_are_no_traces(recorded: MomentTrace, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match=r"t\.safetensors"):
        MomentTrace.load(path)
    running_statistics(plain()).save(path)
    with pytest.raises(ValueError, match=r"t\.safetensors: expected format 'bnlab.MomentTrace/1', found 'bnlab.Stat"):
        MomentTrace.load(path)
    recorded.save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-3] + b"abc", json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.safetensors: damaged"):
            MomentTrace.load(path)


def test_files_that_say_what_they_are_of(recorded: MomentTrace, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    recorded.save(path, {"run": "a"})
    assert same_traces(MomentTrace.load(path, {"run": "a"}), recorded)
    with pytest.raises(ValueError, match=r"t.safetensors: is of run a, expected b"):
        MomentTrace.load(path, {"run": "b"})
    with pytest.raises(ValueError, match="about: the file has restarts by itself"):
        recorded.save(path, {"restarts": "{}"})


def test_files_whose_restarts_have_no_steps(tmp_path: Path) -> None:
    """As earlier versions wrote them: each was at the step of the call before it."""
    model, path = plain(), tmp_path / "t.safetensors"
    with record(model) as trace:
        train(model, images(4, 4))
        model[1].reset_running_stats()
        train(model, images(4, 4, 4))
    trace.save(path)
    tensors, metadata = load_tensors(path, "bnlab.MomentTrace/3")
    assert metadata.pop("format") == "bnlab.MomentTrace/3" and metadata["restarts"] == '{"1": [[2, 0, 2]]}'
    save_tensors(path, tensors, "bnlab.MomentTrace/2", metadata | {"restarts": '{"1": [[2, 0]]}'})
    assert same_traces(MomentTrace.load(path), trace)


def test_replay_bank(recorded: MomentTrace) -> None:
    bank = [EMA(0.1), LastBatch(), Cumulative()]
    values = replay_bank(recorded, bank, [0, 3, 11])
    assert values.shape == (3, 3, 2, 18) and values.dtype == torch.float64
    for estimator, found in zip(bank, values, strict=True):
        expected = replay(recorded, estimator, [3])[3]
        torch.testing.assert_close(found[1], recorded.layout.flatten(expected))


def test_replays_that_are_refused(recorded: MomentTrace) -> None:
    for steps in ([12], [-1], [0, 99]):
        with pytest.raises(ValueError, match=r"replay: step -?\d+ is not one of the trace \(0 to 11\)"):
            replay(recorded, EMA(), steps)
    with pytest.raises(ValueError, match="replay: steps is empty"):
        replay(recorded, EMA(), [])
    with pytest.raises(TypeError, match=r"is no estimator; pass an instance such as EMA\(momentum=0.1\)"):
        replay(recorded, EMA)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="replay: trace is a dict; pass a MomentTrace"):
        replay({}, EMA())  # type: ignore[arg-type]


def test_steps_of_numpy_can_be_saved(tmp_path: Path) -> None:
    model = plain()
    with record(model, step=np.int64(3)) as trace:
        train(model, images(4, 4, 4))
    trace.truncate(np.int64(5))
    trace.save(tmp_path / "trace.safetensors")
    assert (trace.first_step, MomentTrace.load(tmp_path / "trace.safetensors").last_step) == (3, 5)


def test_another_default_device() -> None:
    model = plain()
    with record(model) as trace:
        train(model, images(4, 4, 4))
    expected = replay(trace, EMA(0.1), [3])[3]
    with torch.device("meta"):
        found = [replay(trace, e, [3])[3] for e in (EMA(0.1), Cumulative(), DebiasedEMA(0.1), LastBatch())]
        measured = gap(expected, found[0])
    assert (measured["mean_gap"] == 0).all()


def test_a_part_that_follows_other_buffers() -> None:
    model, parts = plain(), []
    for step in (0, 2, 4):
        with record(model, step=step) as part:
            train(model, images(4, 4), lr=0.01)
        parts.append(part)
        if step == 0:
            model[1].reset_running_stats()
    joined = MomentTrace.join(parts)
    assert [start.entries for start in joined.layers["1"].restarts] == [2] and not joined.layers["4"].restarts
    assert_equal_statistics(replay(joined, EMA(0.1))[6], running_statistics(model))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))], ids=["deep", "pickled"]
)
def test_a_copy_of_a_trace_is_not_being_recorded(how: Callable[[MomentTrace], MomentTrace]) -> None:
    model = without_dropout(plain())
    with record(model) as trace:
        train(model, images(4, 4))
        model[1].reset_running_stats()
        so_far, expected = how(trace), replay(trace, EMA(0.1))
        train(model, images(4, 4))
    assert so_far.recording is None and so_far.last_step == 2
    for step, statistics in replay(so_far, EMA(0.1)).items():
        assert_equal_statistics(statistics, expected[step])
    with pytest.raises(ValueError, match="nothing is recorded now"):
        so_far.step()
    assert same_traces(how(trace), trace)


@pytest.mark.parametrize("momentum", [0.0005, 0.3])
def test_the_average_of_a_long_trace(momentum: float) -> None:
    """As a loop over its calls has it, to float64 rounding at each: of few large ones, or one after the other."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(3000, 2, 3, generator=generator)
    start = torch.randn(2, 3, generator=generator)
    entries = LayerTrace(start, 0, 1e-5, steps=range(3000), counts=[8] * 3000, chunks=[moments[:700], moments[700:]])
    expected = start.double()
    for moment in moments.double():
        expected = (1 - momentum) * expected + momentum * moment
    average, memory = entries.average([momentum] * 3000)
    torch.testing.assert_close(average, expected, rtol=0, atol=3000 * 4 * torch.finfo(torch.float64).eps)
    assert memory == pytest.approx((1 - (1 - momentum) ** 3000) / momentum)
