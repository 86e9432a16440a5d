"""A sweep's networks as modules: the step, the statistics, and what cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import bnlab
from bnlab.harness import load, load_images, load_model
from bnlab.harness.artifacts.models import Torchvision
from bnlab.harness.artifacts.norms.ghost import Ghost
from bnlab.harness.artifacts.optimizers import AdamW
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, restore_config
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import execute
from tests.conftest import small_config


@pytest.fixture(scope="module")
def swept(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The small network, measured. Not to be changed."""
    results = tmp_path_factory.mktemp("swept")
    shutil.copytree(trained.config.results, results, dirs_exist_ok=True)
    job = small_config(results, name="g", estimator=["ema", "exact"])
    execute(job)
    return job


def test_the_last_network_as_training_left_it(swept: Config) -> None:
    run = Run(swept)

    model = load_model("g", run.id, results=swept.results)

    assert not model.training

    expected = run.load_checkpoint(40)
    state = model.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_exact_statistics_give_the_accuracy_of_the_table(swept: Config) -> None:
    run = Run(swept)

    model = load_model("g", run.id[:4], step=40, statistics="exact", results=swept.results)

    images, labels = load_images("g", run.id[:4], results=swept.results)
    with torch.no_grad():
        hits = model(images).argmax(1) == labels
    table = load("g", swept.results)["evaluations"].query("estimator == 'exact' and step == 40")

    assert hits.double().mean().item() == table["accuracy"].item()


def test_another_average_is_replayed(swept: Config) -> None:
    run = Run(swept)

    model = load_model("g", run.id, step=7, statistics="ema(momentum=1.0)", results=swept.results)

    last_batch = bnlab.replay(run.trace, bnlab.estimators.EMA(momentum=1.0), [7])[7]
    for name, moments in bnlab.running_statistics(model).items():
        torch.testing.assert_close(moments.mean, last_batch[name].mean.float().double())


def test_what_is_not_there_is_named(swept: Config) -> None:
    run = Run(swept).id

    with pytest.raises(UserError, match=r"has no step 8; there are 1, 7, 20, 40"):
        load_model("g", run, step=8, results=swept.results)
    with pytest.raises(UserError, match=r"zzz: names no network of g; there are "):
        load_model("g", "zzz", results=swept.results)
    with pytest.raises(UserError, match="estimator=exakt: unknown"):
        load_model("g", run, statistics="exakt", results=swept.results)
    with pytest.raises(UserError, match="test_batch: is computed from the images that are predicted"):
        load_model("g", run, statistics="test_batch", results=swept.results)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(norm=Ghost(batch_size=8), optimizer=AdamW(lr=0.1), freeze_at=0.5, momentum=[0.1, 0.2]),
        Config(model=Torchvision("resnet18"), evaluate_at=[1, 0.5]),
    ],
)
def test_a_configuration_comes_back_from_its_file(config: Config, tmp_path: Path) -> None:
    from dataclasses import asdict

    text = yaml.safe_dump(asdict(config))

    assert restore_config(yaml.safe_load(text)) == config
