"""Averages of weights and buffers: by hand in float64, predicting under each statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

import bnlab
from bnlab.harness import load, load_images
from bnlab.harness.artifacts.job_settings import read_config
from bnlab.harness.artifacts.run import Run
from tests.harness.kills import load_at
from tests.helpers import find_network, sweep_small

STEPS = 12
SWA_FIRST = 9  # 75%
ESTIMATORS = ["stale", "averaged", "exact", "ema"]
WORDS = ("batch_size=128", f"steps={STEPS}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with the network as it is after each update."""
    results = tmp_path_factory.mktemp("plain")
    sweep_small(results, *WORDS, f"evaluate_at={[*range(1, STEPS + 1)]}", "measurements=gaps")
    return results


@pytest.fixture(scope="module", params=["swa", "ema"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind of average, and results with it."""
    results = tmp_path_factory.mktemp(request.param)
    measured = ("evaluate_at=[5,10,12]", f"estimator=[{','.join(ESTIMATORS)}]")
    sweep_small(results, *WORDS, *measured, f"averaging={request.param}")
    return request.param, results


def average_by_hand(kind: str, checkpoints: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """In float64, what is measured after each update."""
    average = {name: value.double() for name, value in checkpoints[0].items()}
    for step, newest in enumerate(checkpoints, start=1):
        share = 1 / max(1, step - SWA_FIRST + 1) if kind == "swa" else 0.01
        average = {name: (1 - share) * value + share * newest[name].double() for name, value in average.items()}
        yield average


def test_the_average_of_the_weights_and_buffers(whole: tuple[str, Path], plain: Path) -> None:
    kind, results = whole
    checkpoints = [load_at(plain, step).state_dict() for step in range(1, STEPS + 1)]
    averages = [*average_by_hand(kind, checkpoints)]
    for step in (5, 10, 12):
        expected = averages[step - 1]
        for name, value in load_at(results, step).state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert value == step
            else:
                torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


def test_averages_beside_the_trained_network(plain: Path, tmp_path: Path) -> None:
    sweep_small(tmp_path, *WORDS, "evaluate_at=[5,12]", "measurements=gaps", "weight_averages=[0,0.9]")
    network = find_network(tmp_path)
    config = yaml.safe_load((network / "config.yaml").read_text(encoding="utf-8"))
    run = Run(read_config(config))

    expected = {name: value.double() for name, value in load_at(plain, 1).state_dict().items()}
    for step in range(1, STEPS + 1):
        newest = load_at(plain, step).state_dict()
        expected = {name: 0.9 * value + 0.1 * newest[name].double() for name, value in expected.items()}
        if step not in (5, 12):
            continue
        same(run.model_at(step), newest)
        same(run.average_at(0, step), newest)
        for name, value in run.average_at(0.9, step).state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def same(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Weights and buffers agree bit for bit."""
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_training_goes_on_as_without(whole: tuple[str, Path], plain: Path) -> None:
    _, results = whole
    found, expected = (pd.read_parquet(find_network(folder) / "log.parquet") for folder in (results, plain))
    pd.testing.assert_frame_equal(found, expected)
    assert find_network(results).parent.name != find_network(plain).parent.name


def test_the_average_under_each_statistics(whole: tuple[str, Path], plain: Path) -> None:
    """The table's rows are the averaged network's, each under the statistics of its name."""
    kind, results = whole
    tables = load("adhoc", results)
    run = tables["runs"].iloc[0]
    frame = tables["evaluations"].set_index(["estimator", "step"])
    images, labels = load_images("adhoc", run["run"], results=results)
    statistics = {
        "stale": bnlab.running_statistics(load_at(plain, STEPS)),
        "averaged": bnlab.running_statistics(load_at(results, STEPS)),
        "exact": bnlab.running_statistics(load_at(results, STEPS, "exact")),
    }
    for name, found in statistics.items():
        with bnlab.using(load_at(results, STEPS), found) as model, torch.no_grad():
            loss = nn.functional.cross_entropy(model(images), labels).item()
        assert frame.xs((name, STEPS))["loss"] == pytest.approx(loss, rel=1e-5)

    last = frame.xs(STEPS, level="step")
    assert last["loss"]["stale"] == last["loss"]["ema"]
    assert last["loss"].nunique() == len(ESTIMATORS) - 1
    gaps = tables["gaps"].set_index("estimator")["mean_gap"]
    assert (gaps["exact"] == 0).all()
    assert {*gaps.index} == {*ESTIMATORS}
    assert (run["averaging"], run["freeze_at"], run["freeze_with"]) == (kind, 1.0, "none")
