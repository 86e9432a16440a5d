"""Tables of other folders that are added to the committed ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness import load
from bnlab.harness.errors import UserError
from experiments import reference
from tests.experiments.commands import Call

KEYS = ("run", "step", "estimator", "momentum", "statistics_split", "layer", "split", "shift")


def test_parts_of_a_sweep_that_were_made_elsewhere_are_added(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "committed")
    small = ["data=digits", "data.images=100", "model.width=4", "steps=4", "batch_size=16", "evaluate_at=final"]
    words = ["experiment=gap", *small, "hydra/launcher=basic"]
    for seed in ("0", "1"):
        call("sweep", *words, f"seed={seed}", f"results={tmp_path / seed}")

    for folder in ("0", "1", "1"):
        reference._update([str(tmp_path / folder)])

    found = load("gap", tmp_path / "committed")
    parts = [load("gap", tmp_path / folder) for folder in ("0", "1")]
    assert {*found} == {"runs", "gaps", "evaluations"}
    assert list(found["runs"]["seed"]) == [0, 1]
    for name in ("gaps", "evaluations"):
        columns = list(found[name])
        both = pd.concat([part[name][columns] for part in parts])
        keys = [column for column in columns if column in KEYS]
        expected = both.sort_values(keys).reset_index(drop=True)
        pd.testing.assert_frame_equal(found[name], expected, rtol=1e-6)


def test_a_folder_without_tables_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "committed")

    with pytest.raises(UserError, match="mistyped: "):
        reference._update([str(tmp_path / "mistyped")])
