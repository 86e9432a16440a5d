import importlib
import shutil
import sys
from pathlib import Path

import pytest

from tests.experiments.commands import SWEEP, Call, Called, Done, run


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The results folder of a small sweep, and what the command said. Not to be changed."""
    results = tmp_path_factory.mktemp("swept")
    words = (*SWEEP, "momentum=[0.01,0.1]", "estimator=[ema,cumulative,exact]")
    return results, run("sweep", *words, f"results={results}")


@pytest.fixture
def results(swept: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the small sweep's results folder."""
    return Path(shutil.copytree(swept[0], tmp_path / "results"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls a command in this process: `call("runs list", "results=...")`."""

    def called(line: str, *words: str) -> Called:
        command, *others = line.split(" ")
        monkeypatch.setattr(sys, "argv", [command, *others, *words])
        code = importlib.import_module(f"experiments.{command}").main()
        return Called(code, *capsys.readouterr())

    return called
