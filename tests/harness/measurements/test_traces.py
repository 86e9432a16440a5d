"""Two channels of each layer: single batches as recorded, averages as replayed, exact statistics where evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import execute
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, trace_of


def test_traces(tmp_path: Path) -> None:
    config = Config(batch_size=64, epochs=2, results=str(tmp_path), evaluate_at=[7, 20], threads=1,
                    estimator=["last_batch", "ema", "exact", "test_batch"], measurements=["traces"])  # fmt: skip
    execute(config)
    run = Run(config)
    found = load("adhoc", tmp_path)["traces"].set_index(["estimator", "step", "layer", "channel"])
    assert set(found.index.unique("estimator")) == {"last_batch", "ema", "exact"}
    steps = found.loc["last_batch"].index.unique("step")
    assert set(found.loc["exact"].index.unique("step")) == {7, 20} <= set(steps) and max(steps) == 20
    for name, layer in trace_of(run).layers.items():
        exact = frozen_statistics(run, 20, EXACT)[name]
        for channel in (0, len(exact.mean) // 2):
            row = found.loc["exact", 20, name, channel]
            assert (row["mean"], row["var"]) == (exact.mean[channel], exact.var[channel])
            for step in steps:
                batch = layer.moments[step - 1, :, channel]
                row = found.loc["last_batch", step, name, channel]
                assert [row["mean"], row["var"]] == pytest.approx(batch.tolist(), rel=1e-6)
    execute(config)  # nothing is missing
    kept = list((run.folder / "measurements" / "traces").glob("*.parquet"))
    assert len(kept) == 2, "running averages at all steps, exact statistics at those of evaluate_at"
