"""`bnlab new FOLDER`: what it writes runs as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnlab.harness import load
from tests.experiments.commands import Call


@pytest.fixture
def folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the command writes, as the current one."""
    path = tmp_path / "own"
    assert call("new", str(path)).code == 0
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(path)
    forget_mine()  # of other tests
    yield path
    forget_mine()


def forget_mine() -> None:
    """Let the package be imported again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_pictures")
def test_its_experiment_runs(folder: Path, call: Call) -> None:
    words = ["experiment=first", "steps=4", "evaluate_at=[0,4]", "data.count=200", "seed=0", "hydra/launcher=basic"]
    done = call("sweep", *words)
    assert (done.code, done.err) == (0, "")

    tables = load("first")
    assert {*tables} == {"runs", "gaps", "evaluations", "largest_weight"}
    assert len(tables["runs"]) == 2
    assert {*tables["gaps"]["step"]} == {0, 4}
    assert "decaying(power=0.7)" in {*tables["evaluations"]["estimator"]}
    assert call("report", "name=first").code == 0
    assert "radius error (pixels)" in (folder / "results" / "first" / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_is_there_is_left_alone(folder: Path, call: Call) -> None:
    code, _, err = call("new", str(folder))
    assert code == 2
    assert str(folder) in err
