import contextlib
import importlib
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from bnlab.harness.artifacts.data.own_data import forget_own
from bnlab.harness.lab import sweep
from tests.experiments.commands import SWEEP, Call, Called, Write


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small sweep, one for all that test. Not to be changed."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    results = shared / "swept"
    with FileLock(shared / "swept.lock"):
        if not results.exists():
            with contextlib.redirect_stdout(io.StringIO()):
                assert sweep.main([*SWEEP, "hydra/launcher=basic", f"results={results}"]) == 0
    return results


@pytest.fixture
def results(swept: Path, tmp_path: Path) -> Path:
    """A copy of the small sweep's results folder."""
    return Path(shutil.copytree(swept, tmp_path / "results"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports draw nothing: pictures take longest."""
    monkeypatch.setattr("bnlab.harness.reporting.drawing.write", lambda name, figure, *arguments, **settings: figure)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls a command in this process: `call("runs list", "results=...")`."""

    def called(line: str, *words: str) -> Called:
        command, *others = line.split(" ")
        code = importlib.import_module(f"bnlab.harness.lab.{command}").main([*others, *words])
        return Called(code, *capsys.readouterr())

    return called


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module, `mine` by default, which is imported, and its data read, again as a new process would.

    Hydra knows the arguments of a module's functions for the whole process: a test file with others has another name.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(text: str, name: str = "mine") -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name.replace("/", "."), raising=False)
        importlib.invalidate_caches()
        forget_own()

    return written
