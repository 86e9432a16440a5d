"""The script that cuts the learning rate, on a small network."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import bnlab
from bnlab.harness.artifacts.data.cifar10 import Cifar10
from bnlab.harness.artifacts.training import train
from bnlab.harness.artifacts.training_runner import start_training
from bnlab.harness.reporting.frames import select
from bnlab.harness.schema import find_fault
from experiments.questions.rate_cut import cut
from tests.conftest import small_config
from tests.helpers import Run, write_copies


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Forty updates at a constant rate, a fifth of which come before the cut."""
    return Run(small_config(tmp_path_factory.mktemp("cut"), "optimizer.schedule=constant", population_images=300))


@pytest.fixture(scope="module")
def measured(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `cut` and `cut_layers`."""
    lost, layers = zip(*cut.cut_rates(run), strict=True)
    return pd.DataFrame(lost), pd.concat(layers)


def test_each_factor_is_measured_at_each_number_of_updates(
    run: Run, measured: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    lost, layers = measured

    assert len(lost) == len(cut.FACTORS) * len(cut.UPDATES)
    assert find_fault(cut.CUT, lost) == ""
    assert find_fault(cut.CUT_LAYERS, layers) == ""
    for values in measured:
        at_cut = select(values, updates=0).drop(columns="factor")
        assert len(at_cut.drop_duplicates()) == len(at_cut) / len(cut.FACTORS)


def test_without_a_cut_training_goes_on_as_it_was(run: Run, measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    state = start_training(run)
    for _ in train(state, run.batches, run.config.optimizer, run.steps, until=8 + 20):
        pass
    images = run.dataset.test
    with bnlab.using(state.model, bnlab.running_statistics(state.model)), torch.no_grad():
        accuracy = (state.model(images.images).argmax(1) == images.labels).double().mean().item()

    found = select(measured[0], factor=1.0, updates=20)["accuracy"].item()

    assert abs(found - accuracy) <= 1.5 / len(images.labels)


def test_at_rate_0_weights_stand_still_and_the_error_shrinks(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    lost, layers = measured

    stopped = select(lost, factor=0.0)
    assert stopped["exact_accuracy"].nunique() == 1
    assert select(lost, factor=1.0)["exact_accuracy"].nunique() > 1

    gaps = select(layers, factor=0.0).pivot(index="updates", columns="depth", values="mean_gap")
    # The start at 0 and 1 is a large error, of which 12% are left after 20 updates.
    assert (gaps.loc[20] < 0.3 * gaps.loc[0]).all()
    along_cut = select(layers, factor=0.0).pivot(index="updates", columns="depth", values="along_cut")
    assert along_cut.loc[0].to_numpy() == pytest.approx(gaps.loc[0].to_numpy() ** 2)
    left = (along_cut / along_cut.loc[0]).loc[5]
    assert left.to_numpy() == pytest.approx(0.9**5, abs=0.1)
    noise = select(layers, factor=0.0, updates=60)["noise"].to_numpy()
    assert (gaps.loc[60] < 3 * noise).all()


def test_noise_is_that_of_an_average_of_independent_batches() -> None:
    """A layer of variance 4, of which the batch means have 1 and the exact mean a standard error of 0.1."""
    generator = torch.Generator().manual_seed(0)
    moments = bnlab.Moments(100, torch.zeros(3, dtype=torch.float64), torch.full((3,), 4.0, dtype=torch.float64))
    exact = bnlab.Statistics({"norm": moments}, {"norm": 0.0})
    errors = torch.full((3,), 0.1, dtype=torch.float64)
    exact.standard_errors = {"norm": (errors, errors)}
    batch_means = torch.randn(4000, 3, generator=generator, dtype=torch.float64)

    (noise,) = cut.compute_noise(exact, [batch_means])

    assert noise == pytest.approx(((0.1 / 1.9 + 0.01) / 4) ** 0.5, rel=0.03)


def test_the_command_writes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_copies(tmp_path / "copies", 150, 30)
    monkeypatch.setattr(Cifar10, "size", Cifar10.size._replace(available=150, test=30))
    monkeypatch.setattr(cut, "UPDATES", (0, 2))
    words = ["data.copies=true", f"data.root={tmp_path / 'copies'}", f"results={tmp_path}", "model.depth=8"]

    code = cut._cut_all([*words, "model.width=4", "steps=10", "batch_size=32", "seed=0", "population_images=100"])

    assert code == 0
    tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / cut.NAME / "tables").glob("*.parquet")}
    assert tables["runs"]["optimizer.lr"].to_list() == [0.1, 0.4]
    assert tables["runs"]["steps"].to_list() == [2, 2]
    assert len(tables["cut"]) == 2 * len(cut.FACTORS) * 2
    assert len(tables["cut_layers"]) == len(tables["cut"]) * 7
