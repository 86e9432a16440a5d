"""Trainings that end in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from bnlab.harness.artifacts import producing
from bnlab.harness.artifacts.training import Progress


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """A training in the block, which saves its state after each update, is interrupted after this one."""
    log = producing.Recorder.log

    def interrupt(recorder: producing.Recorder, progress: Progress) -> None:
        log(recorder, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    saves = patch.object(producing, "STATE_SECONDS", 0.0)
    with saves, patch.object(producing.Recorder, "log", interrupt), pytest.raises(KeyboardInterrupt):
        yield
