"""Trainings that end in the middle, and runs that are compared bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from pandas.testing import assert_frame_equal

from bnlab.harness.artifacts import producing
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.runs import Run
from tests.helpers import same_traces


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """A training in the block, which saves its state after each update, is interrupted after this one."""
    end_at_freezing = producing.Recorder.end_at_freezing

    def interrupt(recorder: producing.Recorder, progress: Progress) -> None:
        end_at_freezing(recorder, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    saves = patch.object(producing, "STATE_SECONDS", 0.0)
    with saves, patch.object(producing.Recorder, "end_at_freezing", interrupt), pytest.raises(KeyboardInterrupt):
        yield


def assert_same(found: Run, expected: Run) -> None:
    """Weights and buffers, log and trace are bit for bit the same."""
    assert found.status is not None
    assert found.wanted == expected.wanted
    for step in expected.wanted:
        a = found.load_checkpoint(step)
        b = expected.load_checkpoint(step)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert_frame_equal(found.read_log(), expected.read_log())
    assert not expected.has_trace or same_traces(found.trace, expected.trace)
