from pathlib import Path

import pytest

from tests.experiments.commands import SWEEP, Done, run


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The results folder of a small sweep, and what the command said. Not to be changed."""
    results = tmp_path_factory.mktemp("swept")
    words = (*SWEEP, "momentum=[0.01,0.1]", "estimator=ema,cumulative,exact", f"results={results}")
    return results, run("sweep", *words)
