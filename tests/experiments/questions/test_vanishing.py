"""Variances of outputs in merged and pruned networks, against float64 networks and a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnlab
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.reporting.frames import select
from experiments.questions.changed_weights.vanishing import Vanishing, measure_variances
from tests.helpers import measure
from tests.references import batch_norms, float64_copy, full_batch_population

TABLE = "experiments.questions.changed_weights.vanishing.Vanishing"


def test_a_norm_with_its_own_statistics_puts_out_the_square_of_its_weight() -> None:
    """With eps = 0 the variance of channel c is weight[c]^2 times var(x) / var. Float32: 1e-7 an operation."""
    generator = torch.Generator().manual_seed(0)
    images = 2 + 3 * torch.randn(50, 2, 4, 4, generator=generator)
    model = nn.Sequential(nn.BatchNorm2d(2, eps=0.0))
    model[0].weight.data = torch.tensor([1.0, 2.0])

    exact = bnlab.population_statistics(model, [images])
    found = measure_variances(model, exact, images)
    assert found["0"] == pytest.approx((1 + 4) / 2, rel=1e-5)

    mean, var = exact["0"].mean, exact["0"].var
    twice = bnlab.Statistics({"0": bnlab.Moments(1, mean, 2 * var)}, eps={"0": 0.0})
    found = measure_variances(model, twice, images)
    assert found["0"] == pytest.approx((1 + 4) / 4, rel=1e-5)


def test_rows(copied: Config) -> None:
    run = Run(copied)
    test = run.dataset.test
    image = 1.5 / len(test.labels)  # one image may lie on the border

    frame = measure(copied, TABLE)

    models = dict(Vanishing().build_models(run, run.steps))
    assert len(frame) == len(models) * 2 * 2  # kinds of statistics, layers
    variances = {}
    accuracies = {}
    for change, network in models.items():
        for statistics in ("exact", "stale"):
            model = float64_copy(network).eval()
            if statistics == "exact":
                for name, moments in full_batch_population(model, run.dataset.train.images).items():
                    batch_norms(model)[name].running_mean = moments.mean
                    batch_norms(model)[name].running_var = moments.var
            with torch.no_grad():
                is_right = model(test.images.double()).argmax(1) == test.labels
                accuracies[change, statistics] = is_right.double().mean().item()
                outputs = run.dataset.train.images[:512].double()
                for name, layer in model.named_children():
                    outputs = layer(outputs.clone())  # the ReLU works in place
                    if name in batch_norms(model):
                        variances[change, statistics, name] = outputs.var((0, 2, 3), correction=0).mean().item()

    for (change, statistics, name), variance in variances.items():
        row = select(frame, change=change, statistics=statistics, layer=name).iloc[0]
        lost = accuracies["none", "exact"] - accuracies[change, statistics]
        assert row["variance_ratio"] == pytest.approx(variance / variances["none", "exact", name], rel=1e-3)
        assert row["accuracy"] == pytest.approx(accuracies[change, statistics], abs=image)
        assert row["accuracy_lost"] == pytest.approx(lost, abs=2 * image)
        assert row["layers"] == 2


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_share_of_the_weights_is_pruned(share: float, trained: Run) -> None:
    model = dict(Vanishing().build_models(trained, trained.steps))[f"pruned:{share}"]
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    zeros = sum(int((weight == 0).sum()) for weight in weights)

    assert zeros == round(share * sum(weight.numel() for weight in weights))
