"""What README.md shows: its code runs, and its names are found. `test_questions` has its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bnlab
from tests.helpers import images, plain

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
HOWTOS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "howto").glob("*.md")))
BLOCKS = [block.partition("\n")[2] for block in TEXT.split("```")[1::2]]


def test_the_calls_on_a_model_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a checkpoint is saved
    model = plain()
    loader = images(8, 8, 4)

    def train(network: nn.Module) -> None:
        network.train()
        for batch in loader:
            network(batch)

    def test(network: nn.Module) -> float:
        return float(network.eval()(loader[0]).detach().mean())

    names: dict[str, Any] = {"model": model, "loader": loader, "train": train, "test": test}
    (watched,) = [block for block in BLOCKS if "bnlab.watch" in block]
    (lines,) = [block for block in BLOCKS if "population_statistics(model, loader)" in block]
    exec(watched, names)
    exec(lines, names)

    assert names["watch"].history["exact"].notna().all()
    written = bnlab.gap(names["exact"], bnlab.running_statistics(model))
    assert written["mean_gap"].max() < 1e-6, "but for float32"


def test_the_lines_on_tables_print_what_stands_below_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    lines, printed = [block for block in BLOCKS if "mean_gap" in block]

    exec(lines, {})

    assert capsys.readouterr().out == printed


def test_the_names_in_the_text_are_found() -> None:
    """By a program that imports what they begin with alone; `bnlab.memory` was there after a measurement only."""
    found = set(re.findall(r"`(?:help\()?(bnlab(?:\.\w+)+)", TEXT + HOWTOS))
    names = {name for name in found if not name.startswith("bnlab.harness")}  # which is imported by itself

    assert "bnlab.memory.keep_freed_memory" in names

    subprocess.run([sys.executable, "-c", f"import bnlab; {'; '.join(sorted(names))}"], cwd=ROOT, check=True)
