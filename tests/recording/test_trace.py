"""Traces in memory and in files, cut and joined, and what replays of them are refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from bnlab import MomentTrace, record, replay, running_statistics
from bnlab.estimators import EMA
from tests.helpers import assert_equal_statistics, images, plain, same_traces, train, without_dropout

DATA = images(*[4] * 11)


@pytest.fixture
def recorded() -> MomentTrace:
    model = without_dropout(plain())
    with record(model) as trace:
        train(model, DATA)
    return trace


def test_replays_at_each_step(recorded: MomentTrace) -> None:
    model = without_dropout(plain())
    replayed = replay(recorded, EMA(0.1))
    for step in range(12):
        train(model, DATA[step - 1 : step] if step else [])
        assert_equal_statistics(replayed[step], running_statistics(model), tolerance=1e-6)

    assert list(replayed) == list(range(12))
    assert math.isnan(replayed[3]["1"].count)

    some = replay(recorded, EMA(0.1), steps=[7, 3])
    assert list(some) == [7, 3]
    assert_equal_statistics(some[7], replayed[7], tolerance=1e-12)


@pytest.mark.parametrize("kept", [0, 2, 3, 7, 11])
def test_a_training_that_goes_back_to_a_checkpoint(
    kept: int, recorded: MomentTrace, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("bnlab.recording.trace._CHUNK", 3)
    model = without_dropout(plain())
    with record(model) as trace:
        train(model, DATA[:kept])
        state = copy.deepcopy(model.state_dict())
        train(model, DATA[kept:])
        trace.truncate(kept)
        assert trace.last_step == kept
        assert len(trace.layers["1"].moments) == kept
        model.load_state_dict(state)
        train(model, DATA[kept:])

    assert same_traces(trace, recorded)
    assert not recwarn


def test_a_run_in_parts(recorded: MomentTrace, tmp_path: Path) -> None:
    model = without_dropout(plain())
    parts = []
    for begin, end in ((0, 5), (5, 6), (6, 6), (6, 11)):
        with record(model, step=begin) as part:
            train(model, DATA[begin:end])
        part.save(tmp_path / f"{begin}.safetensors")
        parts.append(MomentTrace.load(tmp_path / f"{begin}.safetensors"))
        assert same_traces(parts[-1], part)
    joined = MomentTrace.join(parts)
    joined.save(tmp_path / "joined.safetensors")

    values = joined.layers["1"].end
    expected = parts[-1].layers["1"].end
    assert values is not None and expected is not None and torch.equal(values, expected)
    assert same_traces(joined, recorded)
    assert same_traces(MomentTrace.load(tmp_path / "joined.safetensors"), recorded)


def test_parts_that_do_not_join(recorded: MomentTrace) -> None:
    with record(plain(width=5), step=11) as other:
        pass
    for parts in ([recorded, recorded], [recorded, other]):
        with pytest.raises(ValueError, match=r"does not continue MomentTrace\(2 layers, steps 0 to 11\)"):
            MomentTrace.join(parts)
    with record(plain(), step=11) as new:
        pass
    with pytest.raises(ValueError, match=r"MomentTrace\.join: buffers of '1' were written between"):
        MomentTrace.join([recorded, new])
    with pytest.raises(ValueError, match=r"MomentTrace\.join: no parts"):
        MomentTrace.join([])


def test_replays_that_are_refused(recorded: MomentTrace) -> None:
    for steps in ([12], [-1], [0, 99]):
        with pytest.raises(ValueError, match=r"replay: step -?\d+ is not one of the trace \(0 to 11\)"):
            replay(recorded, EMA(), steps)
    for arguments, error, message in (
        ((recorded, EMA(), []), ValueError, "replay: steps is empty"),
        ((recorded, EMA(), 3), TypeError, "replay: steps is a int; pass a list"),
        ((recorded, EMA(), [1.5]), TypeError, r"replay: step 1\.5 is not one"),
        ((recorded, EMA), TypeError, r"is no estimator; pass an instance such as EMA\(momentum=0.1\)"),
        (({}, EMA()), TypeError, "replay: trace is a dict; pass a MomentTrace"),
    ):
        with pytest.raises(error, match=message):
            replay(*arguments)
