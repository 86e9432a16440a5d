"""Averages of weights, against sums over checkpoints in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.averaging_windows import averaged
from tests.helpers import measure
from tests.references import batch_norms, float64_copy, full_batch_population, gap

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
    image = 1.5 / len(test.labels)  # one image may lie on the border
    order = torch.randperm(360, generator=seed_by(f"{run.id} recomputed"))[:100]
    for window, updates in ((0.0, 1), (0.001, 1), (WINDOW, 8)):
        model = run.model_at(40)
        state = average_slowly(run, 40, updates)
        model.load_state_dict(state)
        wide = float64_copy(model).eval()
        wide.load_state_dict(state)
        exact = full_batch_population(wide, run.dataset.train.images[order])
        kept = batch_norms(run.model_at(40))
        accuracies = {}
        gaps = {}
        for statistics in ("recomputed", "averaged", "kept"):
            network = float64_copy(wide).eval()
            for name, layer in batch_norms(network).items():
                if statistics == "recomputed":
                    layer.running_mean = exact[name].mean
                    layer.running_var = exact[name].var
                elif statistics == "kept":
                    layer.running_mean = kept[name].get_buffer("running_mean").double()
                    layer.running_var = kept[name].get_buffer("running_var").double()
                pair = (layer.get_buffer("running_mean"), layer.get_buffer("running_var"))
                gaps[statistics] = gap(exact[name][1:], pair, layer.eps)  # the last layer's stays
            with torch.no_grad():
                is_right = network(test.images.double()).argmax(1) == test.labels
            accuracies[statistics] = is_right.double().mean().item()

        for statistics, accuracy in accuracies.items():
            row = select(frame, step=40, window=window, statistics=statistics).iloc[0]
            assert row["accuracy"] == pytest.approx(accuracy, abs=image)
            assert row["accuracy_lost"] == pytest.approx(accuracies["recomputed"] - accuracy, abs=2 * image)
            assert row["mean_gap"] == pytest.approx(gaps[statistics]["mean_gap"], rel=1e-3, abs=1e-5)
            assert row["var_gap"] == pytest.approx(gaps[statistics]["var_gap"], rel=1e-3, abs=1e-5)


def test_averages_grow_over_all_updates(copied: Config) -> None:
    measure(copied, TABLE)  # which keeps all checkpoints
    run = Run(copied)

    for step, averages in averaged.average_checkpoints(run, (WINDOW,), [20, 40]):
        expected = average_slowly(run, step, 8)
        newest = run.load_checkpoint(step)
        for name, values in averages[WINDOW].items():
            assert torch.equal(averages[0.0][name], newest[name])
            if values.is_floating_point():
                torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=1e-6)
