"""The columns of the table `runs`: one for each setting, made from the components."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.run_table import RUNS
from tests.helpers import sweep_small


def test_a_sweep_writes_these_columns(tmp_path: Path) -> None:
    """Without those of settings that none of its networks reads."""
    sweep_small(tmp_path, "steps=1", "batch_size=16", "data.images=null", "evaluate_at=final", "measurements=[log]")

    runs = load("adhoc", tmp_path)["runs"]
    unread = {"task", "norm.batch_size", "norm.momentum", "data.classes", "data.fonts", "data.copies", "data.flip"}
    assert list(runs) == [column for column in RUNS.columns if column not in unread]
    assert runs["unseen"].isna().all()

    (row,) = runs.to_dict("records")
    assert row["data"] == "digits"
    assert row["optimizer.lr"] == 0.1
    assert row["optimizer.momentum"] == 0.9
    assert row["lr_effective"] == pytest.approx(0.1 * (16 / 128) ** 0.5)
    assert row["norm_batch_size"] == row["batch_size"] == 16
    assert row["data.images"] == 1438
