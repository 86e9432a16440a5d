"""Progress on stderr."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from bnlab.commands.progress import Progress


class Clock:
    """A clock that moves on by so many seconds whenever it is read."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def read(self) -> float:
        self.now += self.step
        return self.now


def run(progress: Progress, batches: int) -> None:
    model = nn.BatchNorm1d(1)
    read = progress.count_read([torch.zeros(2, 1)] * batches)
    assert read is not None
    with progress.counting_runs(model):
        for batch in list(read):
            model(batch)


def test_a_log_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(time, "monotonic", Clock(20.0).read)
    run(Progress(in_terminal=False, started=0.0, told=0.0), batches=4)

    captured = capsys.readouterr()
    # Read after 20, 40, 60 and 80 seconds, run after 100, 120, 140, 160.
    assert captured.err == "3 batches read, 0 run, 60 s\n4 batches read, 2 run, 120 s\n"
    assert captured.out == ""


def test_short_work_leaves_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    run(Progress(in_terminal=False), batches=3)

    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line_that_is_empty_afterwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "monotonic", Clock(1.0).read)
    run(Progress(in_terminal=True, started=0.0, told=0.0), batches=1)

    assert capsys.readouterr().err == "\r\033[K1 batches read, 0 run, 1 s\r\033[K1 batches read, 1 run, 2 s\r\033[K"


def test_the_model_comes_back_without_the_counter() -> None:
    progress = Progress(in_terminal=False)
    model = nn.BatchNorm1d(1)

    with pytest.raises(ZeroDivisionError), progress.counting_runs(model):
        model(torch.zeros(2, 1))
        raise ZeroDivisionError
    model(torch.zeros(2, 1))

    assert progress.run == 1


def test_without_batches_there_is_nothing_to_read() -> None:
    assert Progress().count_read(None) is None
