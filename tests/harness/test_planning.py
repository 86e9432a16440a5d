"""What a dry run says: the time of trials that do what jobs do, shared out among processes, and the disk space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.harness import planning, trials
from bnlab.harness.artifacts.data.digits import Digits
from bnlab.harness.artifacts.norms.group import Group
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import execute
from bnlab.harness.small_batches import ADVICE
from bnlab.harness.trials import Cost, Trial, estimate
from tests.conftest import small_config


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_SECONDS", 0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": ["ema", "cumulative", "exact", "precise"], "momentum": [0.01, 0.1, 0.5], "accuracy_at": "all"},
        {"measurements": ["log", "traces"]},
        {"steps": 400, "evaluate_at": "final", "measurements": "evaluations"},
    ],
)
def test_disk_space(changes: dict[str, Any], tmp_path: Path) -> None:
    job = small_config(tmp_path, **changes)

    cost = estimate([job])

    assert not [*tmp_path.iterdir()], "a trial leaves nothing behind"

    execute(job)
    files = [path for path in Run(job).folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert cost.disk == pytest.approx(size, rel=0.25)


def test_a_trial_counts_what_is_replayed_and_what_each_step_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a clock that goes on by 1 s for a recorded call of a layer that is replayed, and 100 s for a step."""
    now = [0.0]
    monkeypatch.setattr(trials.time, "perf_counter", lambda: now[0])
    measured: set[tuple[str, int]] = set()

    def pretend_rows(run: Run, name: str, *_: object) -> None:
        steps = {(name, step) for step in run.wanted} - measured
        measured.update(steps)
        replayed = len(next(iter(run.trace.layers.values())))
        now[0] += replayed + 100 * len(steps)

    monkeypatch.setattr(trials, "complete_rows", pretend_rows)
    monkeypatch.setattr(trials, "_STEPS", 400)
    monkeypatch.setattr(Trial, "_time_updates", lambda self, progress: _train_a_little(self, progress))
    job = small_config(tmp_path, steps=1000, evaluate_at=[10, 100, 500, 1000], accuracy_at=[500, 1000])

    cost = estimate([job])

    # For early steps 17 calls are replayed, half of which count for each of two steps.
    gaps = 4 * 108.5
    evaluations = 2 * 108.5
    replays = 2 * (500 - 108.5) * 1000 / 400

    assert cost.measuring == [pytest.approx(gaps + evaluations + replays)]
    assert cost.training == pytest.approx(1000 * 0.25)


def _train_a_little(trial: Trial, progress: Any) -> float:
    from bnlab.harness.artifacts.training import train

    run = trial._run
    train(progress, run.batches, run.config.optimizer, 4, [], until=4)
    return 0.25


def test_a_sample_takes_as_much_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps before the last one are measured on `population_images` of the 360."""
    whole = Trial(Run(small_config(tmp_path)), str(tmp_path))
    some = Run(small_config(tmp_path, population_images=90))

    assert [whole._scale(some, step) for step in (7, 40)] == [0.25, 1.0]

    monkeypatch.setattr(trials, "_IMAGES", 180)
    half = Trial(Run(small_config(tmp_path)), str(tmp_path))
    assert half._scale(Run(small_config(tmp_path)), 7) == 2.0


def test_processes_take_the_next_job_when_they_are_free() -> None:
    assert planning._share_out([4.0, 1.0, 1.0, 1.0], 2) == 4.0
    assert planning._share_out([1.0, 1.0, 4.0], 2) == 5.0
    assert planning._share_out([4.0, 1.0, 1.0, 1.0], 1) == 7.0


def test_networks_of_one_kind_are_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copied: Config) -> None:
    """A network that is trained already is only measured."""
    tried: list[int] = []

    def pretend(jobs: list[Config]) -> Cost:
        tried.append(len(jobs))
        return Cost(10.0, [1.0] * len(jobs), 1e6)

    monkeypatch.setattr(planning, "estimate", pretend)
    jobs = [replace(copied, seed=seed, measurements=name) for seed in (0, 1, 2) for name in ("gaps", "log")]

    plan = planning.make_plan(jobs, 1)

    assert tried == [2], "both jobs on a network together"
    assert plan.training == 20.0
    assert plan.measuring == 6.0
    assert plan.disk == 2e6
    assert plan.altogether == pytest.approx(26.0 + 0.3 + 6 * 0.02)


def test_a_trial_sets_the_threads_of_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads: list[int] = []
    time_updates: Callable[..., float] = Trial._time_updates

    def note(trial: Trial, progress: Any) -> float:
        threads.append(torch.get_num_threads())
        return time_updates(trial, progress)

    monkeypatch.setattr(Trial, "_time_updates", note)

    estimate([small_config(tmp_path, threads=2, measurements="log")])

    assert threads == [2]

    torch.set_num_threads(1)


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


@pytest.mark.slow
def test_trials_in_processes_as_many_as_there_will_be(tmp_path: Path) -> None:
    plan = planning.make_plan([small_config(tmp_path, seed=seed, measurements="log") for seed in range(4)], 2)

    assert plan.altogether > plan.training / 2 > 0
    assert plan.disk > 0
