"""Averages of weights, against sums over checkpoints in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bnlab import running_statistics
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.averaging_windows import averaged
from tests.conftest import small_config
from tests.helpers import measure, train_network
from tests.references import accuracy_under, full_batch_population

TABLE = "experiments.questions.averaging_windows.averaged.AveragedWeights"
WINDOW = 0.2  # 8 of 40 updates


def average_slowly(run: Run, step: int, updates: float) -> dict[str, Tensor]:
    """Weigh every checkpoint by decay^(its age) times (1 - decay), the first one without that factor."""
    decay = 1 - 1 / updates
    total: dict[str, Tensor] = {}
    for k in range(1, step + 1):
        weight = decay ** (step - k) * (1.0 if k == 1 else 1 - decay)
        for name, values in run.load_checkpoint(k).items():
            total[name] = total.get(name, 0) + weight * values.double()
    return total


def test_rows(copied: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average of 40 steps of float32: 40 roundings of 6e-8 at most, relative to its largest values."""
    monkeypatch.setattr(averaged, "WINDOWS", (0.001, WINDOW))
    monkeypatch.setattr(averaged, "IMAGES", 100)

    frame = measure(copied, TABLE)

    run = Run(copied)
    test = run.dataset.test
    order = torch.randperm(360, generator=seed_by(f"{run.id} recomputed"))[:100]
    for window, updates in ((0.0, 1), (0.001, 1), (WINDOW, 8)):
        model = run.model_at(40)
        kept = running_statistics(model)
        model.load_state_dict(average_slowly(run, 40, updates))
        recomputed = full_batch_population(model, run.dataset.train.images[order])
        statistics = {"kept": kept, "averaged": running_statistics(model), "recomputed": recomputed}
        for name, each in statistics.items():
            row = select(frame, step=40, window=window, statistics=name).iloc[0]
            accuracy = accuracy_under(model, each, test.images, test.labels)
            assert row["accuracy"] == pytest.approx(accuracy, abs=1.5 / len(test.labels)), "one may be on the border"


def test_averages_grow_over_all_updates(tmp_path: Path) -> None:
    run = train_network(Run(small_config(tmp_path, evaluate_at=[*range(1, 41)])))

    for step, averages in averaged.average_checkpoints(run, (WINDOW,), [20, 40]):
        expected = average_slowly(run, step, 8)
        newest = run.load_checkpoint(step)
        for name, values in averages[WINDOW].items():
            assert torch.equal(averages[0.0][name], newest[name])
            if values.is_floating_point():
                torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=1e-6)
