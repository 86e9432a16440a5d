"""What a dry run says: training takes as long as in earlier networks, or as in a short trial, and the disk space."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.harness import costs, planning
from bnlab.harness.artifacts.data import Digits
from bnlab.harness.artifacts.norms import Group
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.costs import find_cost, read_costs
from bnlab.harness.small_batches import ADVICE
from tests.conftest import small_config


@pytest.fixture
def alone(trained: Run, tmp_path: Path) -> Config:
    """The configuration of a copy of the trained network, in a results folder without any other one."""
    config = replace(trained.config, results=str(tmp_path / "alone"))
    shutil.copytree(trained.folder, Run(config).folder)
    return config


def set_seconds(config: Config, seconds: float) -> None:
    """Let the training of a network have taken so long."""
    path = Run(config).folder / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps({**status, "train_seconds": seconds}))


def test_a_trial_trains_as_a_job_does_and_leaves_nothing(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_WARM_UP", trained.steps)

    cost = find_cost(Run(small_config(tmp_path)), {})

    moments = sum(path.stat().st_size for path in trained.list_trace_parts())
    assert 0 < cost.update < 1
    assert cost.moments == pytest.approx(moments / trained.steps, rel=0.2)
    assert cost.checkpoint == trained.checkpoint(trained.steps).stat().st_size
    assert not list(tmp_path.iterdir())


def test_networks_that_train_alike_cost_the_median_of_earlier_ones(
    alone: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may differ in length, rate and seed; one whose file is damaged does not count."""
    set_seconds(alone, 4.0)
    for seed, seconds in enumerate((80.0, 8.0, 1000.0), start=1):
        other = replace(alone, seed=seed)
        shutil.copytree(Run(alone).folder, Run(other).folder)
        set_seconds(other, seconds)
    (Run(other).folder / "status.json").write_text("{")
    monkeypatch.setattr(costs, "ensure_trained", None)  # no trial
    longer = replace(alone, steps=1000, optimizer=replace(alone.optimizer, lr=0.02))

    cost = find_cost(Run(longer), read_costs(Path(alone.results)))

    assert cost.update == 8.0 / 40


@pytest.mark.parametrize("changes", [{"batch_size": 33}, {"threads": 2}, {"norm": Group(groups=2)}])
def test_other_networks_are_tried_once(
    changes: dict[str, Any], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = iter([costs.Cost(1.0, 2.0, 3.0)])
    monkeypatch.setattr(costs, "_try_training", lambda run: next(trials))
    known = read_costs(Path(copied.results))

    for seed in (1, 2):
        assert find_cost(Run(replace(copied, seed=seed, **changes)), known) == costs.Cost(1.0, 2.0, 3.0)

    torch.set_num_threads(1)


def test_a_plan_counts_networks_that_are_not_trained(alone: Config) -> None:
    set_seconds(alone, 80.0)
    jobs = [replace(alone, seed=seed, last_batch="drop") for seed in (1, 2, 3)]
    jobs = [alone, *jobs, replace(jobs[0], measurements="log")]

    lines = list(planning.plan(jobs, jobs, processes=2))

    assert lines[:3] == [
        "5 jobs on 4 networks, 1 trained already",
        "training   about 2 min, 2 networks at a time",
        "measuring  on top, at 16 checkpoints; with many estimators and momenta it takes longer than training",
    ]
    folder = Run(alone).folder
    kept = [path for name in ("checkpoints", "trace") for path in (folder / name).iterdir()]
    megabytes = 3 * sum(path.stat().st_size for path in kept) / 1e6
    assert lines[3] == f"disk       about {megabytes:.0f} MB in {alone.results}/runs"


def test_small_last_batches_are_named_once_for_each_size(tmp_path: Path) -> None:
    """Of 360 images 8 are left by batches of 16, 32 and 44, 12 by those of 29 and 58, and 20 by those of 68."""
    of_32 = [small_config(tmp_path, seed=seed) for seed in (0, 1)]
    others = [small_config(tmp_path, batch_size=size) for size in (16, 68, 29, 58, 44)]

    named = planning.name_small_batches([*of_32, *others])

    lasts = ["8 images of 32", "8 images of 16", "20 images of 68"]
    assert named[:3] == [f"the last batch of an epoch has {last}, {ADVICE}" for last in lasts]
    assert named[3:] == ["and 3 more of other sizes"]


@pytest.mark.parametrize(
    "changes",
    [
        {"last_batch": "drop"},
        {"batch_size": 36},
        {"batch_size": 32, "data": Digits(images=320)},  # 288 of them are trained on
        {"batch_size": 359},  # one image alone is left out
        {"batch_size": 47},  # 31 are left: more than half
        {"batch_size": 1024},  # all images are one batch
        {"steps": 11},  # it would be the twelfth
        {"norm": Group(groups=2)},
    ],
)
def test_other_last_batches_are_not_named(changes: dict[str, Any], tmp_path: Path) -> None:
    assert planning.name_small_batches([small_config(tmp_path, **changes)]) == []


def test_small_last_batches_of_trained_networks_are_not_named(copied: Config) -> None:
    untrained = replace(copied, seed=9)

    assert planning.name_small_batches([copied]) == []
    assert len(planning.name_small_batches([copied, untrained])) == 1
