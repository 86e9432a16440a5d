"""Gaps to statistics of the augmented images, of networks whose training augments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnlab import gap, population_statistics, replay
from bnlab.estimators import EMA
from bnlab.harness import load
from bnlab.harness.artifacts.dataset import augment
from bnlab.harness.reporting.frames import select
from tests.conftest import small_config
from tests.helpers import Config, Run, measure, run_job, train_network

TABLE = "experiments.questions.cifar10_augmented.measurement.AugmentedGaps"


def test_gaps_are_to_statistics_of_the_images_as_they_are_augmented(tmp_path: Path) -> None:
    config = small_config(tmp_path, "data.shift=2", steps=12, evaluate_at=[12])
    run = train_network(Run(config))
    generator = torch.Generator().manual_seed(0)
    seen = augment(run.dataset.train.images, generator, shift=2, flip=False)
    model = run.model_at(12)
    reference = population_statistics(model, [seen])

    settings = {"estimator": ["ema", "exact"], "momentum": 0.3, "population": ["train", "train_augmented"]}
    found = measure(config, TABLE, **settings)

    expected = {
        ("ema", "train"): replay(run.trace, EMA(momentum=0.3), [12])[12],
        ("exact", "train"): population_statistics(model, [run.dataset.train.images]),
        ("exact", "train_augmented"): reference,
    }
    columns = ["mean_gap", "var_gap", "kl"]
    for (estimator, split), statistics in expected.items():
        rows = select(found, estimator=estimator, statistics_split=split)
        gaps = gap(reference, statistics)
        # Float32 activations in batches of other sizes differ in their last bits.
        assert rows[columns].to_numpy() == pytest.approx(gaps[columns].to_numpy(), rel=1e-4, abs=2e-6)
    assert select(found, estimator="exact", statistics_split="train")["mean_gap"].min() > 0.01


def test_networks_that_are_trained_on_the_images_as_they_are_have_no_rows(copied: Config) -> None:
    run_job(copied, measurements=["gaps", TABLE])

    assert {*load("adhoc", copied.results)} == {"runs", "gaps"}
