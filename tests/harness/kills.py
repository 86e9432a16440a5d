"""Trainings that end in the middle, and networks that are compared bit for bit."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from torch import nn

from bnlab import MomentTrace
from bnlab.harness import load, load_model
from bnlab.harness.artifacts import training_runner
from tests.helpers import same_traces

TRAIN = training_runner.train


@contextlib.contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """A training in the block, which saves its state after each update, is interrupted after this one."""

    def interrupt(*arguments: Any, **others: Any) -> Iterator[int]:
        for done in TRAIN(*arguments, **others):
            if done == step:
                raise KeyboardInterrupt
            yield done

    saves = patch.object(training_runner, "STATE_SECONDS", 0.0)
    with saves, patch.object(training_runner, "train", interrupt):
        yield


def signals_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each training send its process a signal after so many updates."""

    def send(*arguments: Any, **others: Any) -> Iterator[int]:
        for done in TRAIN(*arguments, **others):
            if done == step:
                signal.raise_signal(number)
            yield done

    monkeypatch.setattr(training_runner, "train", send)


def assert_same(found: Any, expected: Any) -> None:
    """Weights and buffers, log and trace of two networks, or of their folders, are bit for bit the same."""
    folder = Path(getattr(found, "folder", found))
    other = Path(getattr(expected, "folder", expected))
    assert (folder / "status.json").exists()
    for path in [*(other / "checkpoints").iterdir(), *(other / "averages").glob("*/*")]:
        assert (folder / path.relative_to(other)).read_bytes() == path.read_bytes(), path.name
    assert_frame_equal(pd.read_parquet(folder / "log.parquet"), pd.read_parquet(other / "log.parquet"))
    assert (folder / "trace").exists() == (other / "trace").exists()
    if (folder / "trace").exists():
        assert same_traces(read_trace(folder), read_trace(other))


def read_trace(folder: Path) -> MomentTrace:
    """The trace of a network's whole training."""
    return MomentTrace.join([MomentTrace.load(path) for path in sorted(folder.glob("trace/*.safetensors"))])


def load_at(results: Path, step: int, statistics: str = "running") -> nn.Module:
    """The only network in a folder of results, after so many updates."""
    (run,) = load("adhoc", results)["runs"]["run"]
    return load_model("adhoc", run, step=step, statistics=statistics, results=results)
