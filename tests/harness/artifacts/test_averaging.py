"""Averages of weights and buffers: by hand in float64, killed and continued, predicting under each statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bnlab
from bnlab.harness import load
from bnlab.harness.artifacts.models import Cnn
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import execute
from tests.harness.kills import assert_same, killed_at

STEPS = 12
SWA_FIRST = 9  # 75%
ESTIMATORS = ["stale", "averaged", "precise", "exact", "ema"]


def config(results: Path, averaging: str, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "model": Cnn(depth=2, width=8),
        "batch_size": 256,
        "steps": STEPS,
        "averaging": averaging,
        "evaluate_at": [*range(1, STEPS + 1)],
        "accuracy_at": [5, 12],
        "estimator": ESTIMATORS,
        "population": ["train", "val"],
        "threads": 1,
        "device": "cpu",
        "results": str(results),
    }
    return Config(**{**settings, **changes})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The network as it is after each update."""
    run = Run(config(tmp_path_factory.mktemp("plain"), "none"))
    ensure_trained(run)
    return run


@pytest.fixture(scope="module", params=["swa", "ema"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(config(tmp_path_factory.mktemp("whole"), request.param))
    execute(run.config)
    return run


def average_by_hand(kind: str, checkpoints: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """In float64, what is measured after each update."""
    for step, last in enumerate(checkpoints, start=1):
        found = {}
        for name, newest in last.items():
            values = [checkpoint[name].double() for checkpoint in checkpoints[:step]]
            if kind == "swa":
                found[name] = newest if step < SWA_FIRST else torch.stack(values[SWA_FIRST - 1 :]).mean(0)
            else:
                weights = [0.99 ** (step - 1), *(0.01 * 0.99 ** (step - k) for k in range(2, step + 1))]
                weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
                found[name] = torch.stack(weighted).sum(0)
        yield found


def test_the_average_of_the_weights_and_buffers(whole: Run, plain: Run) -> None:
    checkpoints = [plain.load_checkpoint(step) for step in range(1, STEPS + 1)]
    for step, expected in enumerate(average_by_hand(whole.config.averaging, checkpoints), start=1):
        for name, value in whole.load_checkpoint(step).items():
            if name.endswith("num_batches_tracked"):
                assert value == step
            else:
                torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    last = whole.load_checkpoint(STEPS)

    assert not all(torch.allclose(value, checkpoints[-1][name]) for name, value in last.items())


def test_training_goes_on_as_without(whole: Run, plain: Run) -> None:
    assert whole.training == plain.training
    assert whole.id != plain.id
    for name, layer in plain.trace.layers.items():
        assert torch.equal(layer.moments, whole.trace.layers[name].moments)


def test_the_average_under_each_statistics(whole: Run, plain: Run) -> None:
    """The table's rows are the averaged network's, each under the statistics of its name."""
    frame = load("adhoc", whole.config.results)["evaluations"]

    assert not frame.duplicated(["step", "estimator", "momentum", "statistics_split"]).any()

    frame = frame[frame["statistics_split"] == "train"].set_index(["estimator", "step"])
    model = whole.model_at(STEPS)
    train = whole.dataset.train.images
    statistics = {
        "stale": bnlab.running_statistics(plain.model_at(STEPS)),
        "averaged": bnlab.running_statistics(model),
        "exact": bnlab.population_statistics(model, train.split(256)),
    }
    for name, found in statistics.items():
        with bnlab.using(model, found), torch.no_grad():
            logits = model(whole.dataset.test.images)
        loss = torch.nn.functional.cross_entropy(logits, whole.dataset.test.labels).item()
        row = frame.xs((name, STEPS))
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert row["disagreement"] >= 0

    last = frame.xs(STEPS, level="step")
    assert last["loss"]["stale"] == last["loss"]["ema"]
    assert last["loss"].nunique() == len(ESTIMATORS) - 1
    assert last["stat_images"]["averaged"] == last["stat_images"]["stale"] == 2 * 1295

    gaps = load("adhoc", whole.config.results)["gaps"]
    exact = gaps[(gaps["estimator"] == "exact") & (gaps["statistics_split"] == "train")]
    assert (exact["mean_gap"] == 0).all()
    assert {"stale", "averaged"} <= set(gaps["estimator"])
    assert (gaps["mean_gap"] >= 0).all()

    (run,) = load("adhoc", whole.config.results)["runs"].to_dict("records")
    assert run["averaging"] == whole.config.averaging
    assert run["freeze_at"] == 1.0
    assert run["freeze_with"] == "none"


@pytest.mark.parametrize("kills", [(8,), (1, 9, 11)])
def test_killed_and_continued_is_bit_for_bit_the_same(whole: Run, kills: tuple[int, ...], tmp_path: Path) -> None:
    run = Run(replace(whole.config, results=str(tmp_path)))
    for kill in kills:
        with killed_at(kill):
            ensure_trained(run)
    ensure_trained(run)
    assert_same(run, whole)
