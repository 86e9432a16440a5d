"""Variances of outputs in merged and pruned networks, against float64 networks."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import bnlab
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.reporting.frames import select
from experiments.questions.changed_weights.vanishing import Vanishing
from tests.helpers import measure
from tests.references import accuracy_under, float64_copy, full_batch_population

TABLE = "experiments.questions.changed_weights.vanishing.Vanishing"


def test_rows(copied: Config) -> None:
    run = Run(copied)
    test = run.dataset.test
    image = 1.5 / len(test.labels)  # one image may lie on the border

    frame = measure(copied, TABLE)

    models = dict(Vanishing().build_models(run, run.steps))
    assert len(frame) == len(models) * 2 * 2  # kinds of statistics, layers
    images = run.dataset.train.images[:512].double()
    variances = {}
    accuracies = {}
    for change, model in models.items():
        exact = full_batch_population(model, run.dataset.train.images)
        candidates: dict[str, Any] = {"exact": exact, "stale": bnlab.running_statistics(model)}
        for statistics, values in candidates.items():
            accuracies[change, statistics] = accuracy_under(model, values, test.images, test.labels)
            outputs = images.clone()  # the ReLU works in place
            for name, layer in float64_copy(model).named_children():
                if name in values:
                    layer.running_mean, layer.running_var = values[name].mean, values[name].var
                outputs = layer(outputs)
                if name in values:
                    variances[change, statistics, name] = outputs.var((0, 2, 3), correction=0).mean().item()

    for (change, statistics, name), variance in variances.items():
        row = select(frame, change=change, statistics=statistics, layer=name).iloc[0]
        lost = accuracies["none", "exact"] - accuracies[change, statistics]
        assert row["variance_ratio"] == pytest.approx(variance / variances["none", "exact", name], rel=1e-3)
        assert row["accuracy"] == pytest.approx(accuracies[change, statistics], abs=image)
        assert row["accuracy_lost"] == pytest.approx(lost, abs=2 * image)
        assert row["layers"] == 2


def test_a_share_of_the_weights_is_pruned(trained: Run) -> None:
    model = dict(Vanishing().build_models(trained, trained.steps))["pruned:0.9"]
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    zeros = sum(int((weight == 0).sum()) for weight in weights)

    assert zeros == round(0.9 * sum(weight.numel() for weight in weights))
