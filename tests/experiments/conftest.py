import shutil
from pathlib import Path

import pytest

from experiments import compose, explain
from tests.experiments.commands import SWEEP, Done, run


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The results folder of a small sweep, and what the command said. Not to be changed."""
    results = tmp_path_factory.mktemp("swept")
    words = (*SWEEP, "momentum=[0.01,0.1]", "estimator=ema,cumulative,exact", f"results={results}")
    return results, run("sweep", *words)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ that the commands use."""
    folder = tmp_path / "conf"
    shutil.copytree(explain.CONF, folder)
    monkeypatch.setattr(explain, "CONF", folder)
    monkeypatch.setattr(compose, "CONF", folder)
    return folder
