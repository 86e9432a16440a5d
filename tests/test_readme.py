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
from tests.exact.test_own_forwards import Masked, Slim, make_sequences
from tests.helpers import images, plain

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = [block.partition("\n")[2] for block in TEXT.split("```")[1::2]]


def test_the_calls_on_a_model_run() -> None:
    model = plain()
    loader = images(8, 8, 4)

    def train(network: nn.Module) -> None:
        network.train()
        for batch in loader:
            network(batch)

    names: dict[str, Any] = {"model": model, "loader": loader, "train": train, "test": lambda network: network.eval()}
    (lines,) = [block for block in BLOCKS if "population_statistics(model, loader)" in block]
    exec(lines, names)

    assert names["trace"].last_step == len(loader)
    assert set(names["replayed"]) == {0, 1, 2, 3}


def test_the_diagnosis_is_the_one_of_the_how_to_which_is_run() -> None:
    (printed,) = [block for block in BLOCKS if "BN101" in block]

    assert printed in (ROOT / "docs" / "howto" / "doctor.md").read_text()


def test_the_lines_on_self_tuned_layers_run() -> None:
    model = plain()

    def train(network: nn.Module) -> None:
        for batch in images(8, 8, 4):
            network(batch)

    names: dict[str, Any] = {"model": model, "train": train}
    (lines,) = [block for block in BLOCKS if "SelfTuned" in block]
    exec(lines.replace("momenta(model)", "chosen = momenta(model)"), names)

    assert names["model"] is model
    assert (names["chosen"]["batches"] == 3).all()


def test_the_lines_on_layers_with_forwards_of_their_own_run() -> None:
    (lines,) = [block for block in BLOCKS if "take_unmasked" in block]
    model = nn.ModuleList([Masked(2), Slim(8)])

    def forward(model: nn.ModuleList, batch: Any) -> None:
        model[0](*batch)
        model[1](batch[0][:, :, :, None])

    names: dict[str, Any] = {
        "bnlab": bnlab,
        "model": model,
        "forward": forward,
        "batches": make_sequences(),
        "MaskedNorm": Masked,
        "SlimNorm": Slim,
    }
    exec(lines, names)

    assert names["exact"]["0"].mean.tolist() == pytest.approx([5, 5], abs=0.1)
    assert names["exact"]["1"].mean[:2].max() < 4
    assert not names["exact"]["1"].mean[2:].any()


def test_the_names_in_the_text_are_found() -> None:
    """By a program that imports what they begin with alone; `bnlab.memory` was there after a measurement only."""
    names = set(re.findall(r"`(?:help\()?(bnlab(?:\.\w+)+)", TEXT))

    assert "bnlab.memory.keep_freed_memory" in names

    subprocess.run([sys.executable, "-c", f"import bnlab; {'; '.join(sorted(names))}"], cwd=ROOT, check=True)
