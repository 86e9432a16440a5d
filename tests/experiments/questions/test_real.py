"""Tables and scores of `real`, `rates` and `forecast`: against the library's public calls, and on planted numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import bnlab
from bnlab.estimators import EMA
from bnlab.harness.artifacts.dataset import augment
from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.frames import select
from experiments.questions.forecast.measurement import compare_scatter, read_first_layer
from experiments.questions.real.measurement import SHARES
from tests.conftest import small_config
from tests.helpers import Config, Run, measure

FOLDER = "experiments.questions.real.measurement"
STEPS = [1, 6, 10, 12]  # at 10%, 50%, 80% and the end of 12 updates


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twelve updates on augmented images, with averages of the weights beside."""
    folder = tmp_path_factory.mktemp("real")
    settings = {"steps": 12, "evaluate_at": [1, 3, *STEPS[1:]], "weight_averages": [0.5, 0.9]}
    return small_config(folder, "data.shift=2", **settings)


def score(run: Run, model: nn.Module, statistics: bnlab.Statistics) -> tuple[float, float]:
    """Loss and accuracy on all test images."""
    test = run.dataset.test
    with bnlab.using(model.eval(), statistics), torch.no_grad():
        logits = model(test.images)
    loss = nn.functional.cross_entropy(logits, test.labels).item()
    return loss, (logits.argmax(1) == test.labels).double().mean().item()


def assert_scores(row: Any, expected: tuple[float, float], images: int) -> None:
    loss, accuracy = expected
    assert row["loss"] == pytest.approx(loss, rel=1e-4)  # float32 in batches of other sizes
    assert abs(row["accuracy"] - accuracy) <= 1.5 / images  # of two logits that are nearly equal


def test_other_momenta_at_four_steps(config: Config) -> None:
    frame = measure(config, f"{FOLDER}.OtherMomenta")
    run = Run(config)

    assert sorted(frame["step"].unique()) == STEPS
    assert len(frame) == len(SHARES) * 5
    for step in STEPS:
        row = select(frame, step=step, estimator="ema", momentum=0.19).squeeze()
        statistics = bnlab.replay(run.trace, EMA(momentum=0.19), [step])[step]
        assert_scores(row, score(run, run.model_at(step), statistics), len(run.dataset.test.labels))


def test_a_batch_that_is_counted_twice_has_the_momentum_that_is_measured() -> None:
    layer = nn.BatchNorm1d(1)  # momentum 0.1
    once = nn.BatchNorm1d(1, momentum=0.19)
    for batch in torch.randn(3, 8, 1):
        layer(batch)
        layer(batch)
        once(batch)
    for name, values in once.state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(layer.state_dict()[name], values)


def test_averages_of_the_weights_by_what_became_of_the_buffers(config: Config) -> None:
    frame = measure(config, f"{FOLDER}.KeptAverages")
    run = Run(config)

    data = run.dataset.train.images
    shown = augment(data, torch.Generator().manual_seed(0), shift=2, flip=False)
    for step in STEPS:
        model = run.average_at(0.9, step)
        expected = {
            "left": bnlab.running_statistics(run.new_model()),
            "copied": bnlab.running_statistics(run.model_at(step)),
            "averaged": bnlab.running_statistics(model),
            "exact": bnlab.population_statistics(model, [shown]),
        }
        rows = select(frame, step=step, decay=0.9).set_index("buffers")
        assert {*rows.index} == {*expected}
        for buffers, statistics in expected.items():
            assert_scores(rows.loc[buffers], score(run, model, statistics), len(run.dataset.test.labels))


def test_networks_without_averages_have_no_rows_of_them(tmp_path: Path) -> None:
    plain = small_config(tmp_path, steps=12, evaluate_at=[12])
    assert measure(plain, f"{FOLDER}.OtherMomenta").size
    with pytest.raises(NoRows):
        measure(plain, f"{FOLDER}.KeptAverages")


def test_the_first_layer_of_validation_images(config: Config) -> None:
    measure(config, "experiments.questions.forecast.measurement.BatchScatter")
    run = Run(config)
    layer, *_ = run.trace.layers.items()
    found = read_first_layer(run, 12)

    model = run.model_at(12).train()
    with torch.no_grad(), bnlab.record(model) as trace:
        model(run.dataset.val.images)
    recorded = trace.layers[layer[0]].moments[0, 0].double()
    torch.testing.assert_close(found.mean(0), recorded, rtol=1e-4, atol=1e-5)


def test_independent_batches_scatter_by_chance_and_classes_by_more() -> None:
    """Batches of 64 values of variance 1, of means that are independent or move from block to block."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2000, 40, generator=generator, dtype=torch.float64) / 8
    chance = torch.full((40,), 1 / 64, dtype=torch.float64)
    assert compare_scatter(means, chance) == pytest.approx(1, abs=0.1)  # 400 blocks: 7% for each of 40 channels

    classes = torch.randn(400, 40, generator=generator, dtype=torch.float64) / 8
    sorted_means = means + classes.repeat_interleave(5, 0)  # each class for five batches
    assert compare_scatter(sorted_means, chance) > 3
    assert pd.isna(compare_scatter(means[:9], chance))
