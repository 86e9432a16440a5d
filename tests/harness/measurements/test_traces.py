"""Two channels of each layer: single batches as recorded, averages as replayed, exact statistics where evaluated."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from bnlab import running_statistics
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.estimates import EXACT, flat_statistics, frozen_statistics
from bnlab.harness.measurements.subjects import parse_subjects


def test_traces(trained: Run) -> None:
    measurement = find_measurement("traces")
    sources = parse_subjects(["last_batch", "exact", "test_batch"], [], "train")
    chosen = measurement.scope(trained, sources)
    frames = [measurement.measure(trained, [source], steps) for source, steps in chosen.items()]
    found = pd.concat(frames).set_index(["estimator", "step", "layer", "channel"])

    assert set(found.index.unique("estimator")) == {"last_batch", "exact"}

    steps = found.loc["last_batch"].index.unique("step")
    assert set(found.loc["exact"].index.unique("step")) == {*trained.wanted} <= set(steps)
    assert max(steps) == 40

    for name, layer in trained.trace.layers.items():
        exact = frozen_statistics(trained, 20, EXACT)[name]
        for channel in (0, len(exact.mean) // 2):
            row = found.xs(("exact", 20, name, channel))
            assert row["mean"] == exact.mean[channel]
            assert row["var"] == exact.var[channel]
            for step in steps:
                row = found.xs(("last_batch", step, name, channel))
                assert [row["mean"], row["var"]] == pytest.approx(layer.moments[step - 1, :, channel].tolist())


def test_running_averages_stay_where_exact_statistics_were_frozen(trained: Run) -> None:
    """Between checkpoints too."""
    frozen = Run(replace(trained.config, freeze_at=0.5, freeze_with="exact"))
    frozen.folder = trained.folder
    sources = parse_subjects(["ema"], [0.1], "train")
    ((before, *later),) = flat_statistics(frozen, sources, [19, 20, 33])
    held = trained.trace.layout.flatten(running_statistics(trained.model_at(40)))

    assert all(torch.equal(values, held) for values in later)
    assert not torch.equal(before, held)
