"""Contributions against the library's terms and the gap, with weights that a second training gives."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab import decompose, gap
from bnlab.estimators import EMA
from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.reproducing import past_weights
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.errors import JobError
from bnlab.harness.measurements import find_measurement, find_scope
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, population, trace_of
from bnlab.harness.measurements.sources import parse_sources
from bnlab.recording.trace import replay
from tests.experiments.commands import files

STEPS = 12


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of which every checkpoint is there."""
    found = Run(Config(batch_size=32, steps=STEPS, results=str(tmp_path), evaluate_at=[*range(STEPS + 1)], threads=1,
                       data=DataConfig(images=150)))  # fmt: skip
    ensure_trained(found)
    return found


def test_past_weights_are_those_of_the_training(run: Run) -> None:
    before = files(run.folder)
    for steps in (range(0, 3), range(5, STEPS), [STEPS]):
        found = past_weights(run, steps)
        assert list(found) == list(steps)
        for step, tensors in found.items():
            kept = run.load_checkpoint(step)
            assert tensors.keys() == kept.keys() and all(torch.equal(tensors[name], kept[name]) for name in kept)
    assert files(run.folder) == before


def test_weights_of_another_training_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.config.optimizer, "weight_decay", 0.1)
    with pytest.raises(JobError, match="cannot be trained again as it was: the loss of step 2 was "):
        past_weights(run, [0, 4])


def test_contributions(run: Run) -> None:
    """With every fourth of the past weights, as the library gives them for all that a second training gives."""
    (source, other), steps = (
        find_scope("decomposition")(run, parse_sources(["ema", "exact"], [0.3, 0.5], "train")),
        [6, STEPS],
    )
    found = find_measurement("decomposition")(run, [source, other], steps)
    assert set(found["momentum"]) == {0.3, 0.5} and set(found["step"]) == set(steps)
    of_means = found[(found["statistic"] == "mean") & (found["momentum"] == 0.3)]
    total = of_means.groupby(["step", "layer"], sort=False)["contribution"].sum()
    for step in steps:
        exact, trace = frozen_statistics(run, step, EXACT), copy.deepcopy(trace_of(run))
        trace.truncate(step)
        expected = gap(exact, replay(trace, EMA(0.3), [step])[step]).set_index("layer")["mean_gap"]
        np.testing.assert_allclose(total[step], expected**2, rtol=1e-4)
        batches = [images for images, _ in population(run, step, EXACT, 32)]
        table = decompose(run.model_at(step), trace, run.load_checkpoint, batches, momentum=0.3, every=4)
        for name, moments in exact.items():
            var = (moments.var + exact.eps[name]).numpy()
            for statistic, unit in (("mean", var), ("var", var**2)):
                part = table[(table["layer"] == name) & (table["statistic"] == statistic)]
                rows = found[(found["layer"] == name) & (found["statistic"] == statistic) & (found["step"] == step)
                             & (found["momentum"] == 0.3)].set_index("term")  # fmt: skip
                for term in ("start", "noise", "lag", "data", "weighting", "upstream"):
                    value = float((part[term] * part["gap"] / unit).mean())
                    assert rows.loc[term, "contribution"] == pytest.approx(value, rel=1e-6, abs=1e-12)
                    assert rows.loc[term, "square"] == pytest.approx(float((part[term] ** 2 / unit).mean()), rel=1e-6)
