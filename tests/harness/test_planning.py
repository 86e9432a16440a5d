"""What a sweep says before it starts: how many networks, how long they train, the disk space, small last batches."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bnlab.harness.artifacts.run import Run
from bnlab.harness.durations import Durations, TableCost
from tests.helpers import Config, sweep_small


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run times one update and not a second of them."""
    monkeypatch.setattr("bnlab.harness.planning._SECONDS", 0.0)


def test_a_dry_run_counts_what_is_not_trained_and_writes_nothing(
    copied: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(copied.results)

    sweep_small(results, "-m", "seed=0,1,2,3", "last_batch=keep", "dry_run=true")

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 jobs on 4 networks, 1 trained already"
    assert re.fullmatch(r"training   about \d+ s", lines[1])
    assert re.fullmatch(r"measuring  about \d+ s, at 16 checkpoints, less where rows are there already", lines[2])
    assert re.fullmatch(r"the rest   about \d+ s: .*", lines[3])
    assert re.fullmatch(r"in all     about \d+ s, 1 network at a time, on this machine as busy as it is now", lines[4])
    assert {path.name for path in results.iterdir()} == {"runs"}

    sweep_small(results, "steps=100_000", "measurements=log", "dry_run=true")

    moments = 100_000 * (8 + 16) * 2 * 4  # mean and variance of each channel, in float32; checkpoints are small
    assert f"disk       about {moments / 1e6:.0f} MB in" in capsys.readouterr().out


def test_averages_of_the_weights_are_copies_of_the_network_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ("model=mlp", "model.width=512", "model.depth=2")
    words = ("steps=1", "evaluate_at=final", *large, "measurements=log", "dry_run=true")

    def plan(*others: str) -> float:
        sweep_small(tmp_path, *words, *others)
        (found,) = re.findall(r"disk       about ([\d.]+) MB", capsys.readouterr().out)
        return float(found)

    alone = plan()
    together = plan("-m", "weight_averages=null,[0.5,0.9]")

    assert alone > 1
    assert together == pytest.approx(4 * alone, abs=2.5)  # one network, and one with two copies; each is rounded


THREE_AT_A_TIME = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "measurements=log")


def test_networks_that_are_trained_at_a_time_share_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three networks with 40 updates, of ten seconds each by this clock, take 400 seconds together, on three cores."""
    monkeypatch.setattr("bnlab.harness.planning.cpu_count", lambda: 3)
    clock = itertools.count(step=10)
    monkeypatch.setattr("bnlab.harness.trial.time", SimpleNamespace(perf_counter=lambda: next(clock)))

    sweep_small(tmp_path, "-m", "seed=0,1,2", *THREE_AT_A_TIME, "dry_run=true")

    out = capsys.readouterr().out
    assert "training   about 7 min\n" in out
    assert re.search("in all     about 7 min, 3 networks at a time, each as fast as one alone is now\n", out)


@pytest.mark.parametrize(
    ("cores", "minutes", "said"),
    [(2, 13, "3 networks at a time, of 1 thread each on 2 cores"), (1, 20, "of 1 thread each on 1 core")],
)
def test_networks_that_share_cores_take_longer(
    cores: int,
    minutes: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same three on two cores: the third begins when the first has ended."""
    monkeypatch.setattr("bnlab.harness.planning.cpu_count", lambda: cores)
    clock = itertools.count(step=10)
    monkeypatch.setattr("bnlab.harness.trial.time", SimpleNamespace(perf_counter=lambda: next(clock)))

    sweep_small(tmp_path, "-m", "seed=0,1,2", *THREE_AT_A_TIME, "dry_run=true")

    out = capsys.readouterr().out
    assert f"training   about {minutes} min\n" in out
    assert said in out


def test_checkpoints_of_other_steps_are_named_as_the_reason_to_train_again(
    copied: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_small(Path(copied.results), "evaluate_at=[0.3]", "dry_run=true")

    summary = capsys.readouterr().out.splitlines()[0]
    assert summary.endswith("all trained already, 1 of them again now, for checkpoints of steps that are not there")


def test_a_killed_training_is_planned_from_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=10)
    monkeypatch.setattr("bnlab.harness.trial.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("bnlab.harness.artifacts.run.Run.read_step", lambda run: 28)

    sweep_small(tmp_path, "measurements=log", "dry_run=true")

    assert "training   about 2 min\n" in capsys.readouterr().out, "12 updates of 10 seconds are left"


COSTS: list[tuple[dict[str, Any], float]] = [
    # 40 updates; 360 images of the training split, 359 of test; steps 1, 7, 20, 40
    ({"measurements": "gaps"}, 40 * 0.5 + 4 * 7 + 4 * 360 * 2 + 4 * 5),
    ({"measurements": "evaluations"}, 40 * 0.5 + 1 * 7 + 360 * 2 + 359 * 3),
    ({"measurements": "evaluations", "accuracy_at": "all"}, 40 * 0.5 + 4 * 7 + 4 * 360 * 2 + 4 * 359 * 3),
    ({"measurements": ["gaps", "evaluations"]}, 40 * 0.5 + 4 * 7 + 4 * 360 * 2 + 4 * 5 + 359 * 3),
    ({"measurements": "gaps", "population_images": 100}, 40 * 0.5 + 4 * 7 + (3 * 100 + 360) * 2 + 4 * 5),
    ({"measurements": "log"}, 40 * 0.5 + 11),
]


@pytest.mark.parametrize(("settings", "expected"), COSTS)
def test_what_measuring_takes_grows_with_steps_and_images(
    settings: dict[str, Any], expected: float, trained: Run
) -> None:
    tables = {
        "gaps": TableCost(5.0, is_by_split=False, has_statistics=True),
        "evaluations": TableCost(3.0, is_by_split=True, has_statistics=True),
        "log": TableCost(11.0, is_by_split=False, has_statistics=False),
    }
    found = Durations(statistics=2.0, drawn=7.0, replay=0.5, tables=tables)

    assert found.estimate_measuring(Run(replace(trained.config, **settings))) == expected


LEFT = "the last batch of an epoch has {}, and its update is made at the full learning rate, which can harm the weights"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("-m batch_size=32,16,68 seed=0,1", ["8 images of 32", "8 images of 16", "20 images of 68"]),  # each size once
        ("last_batch=drop", []),
        ("batch_size=36", []),
        ("data.images=320", []),  # 288 of them are trained on
        ("batch_size=359", []),  # one image alone is left out
        ("batch_size=47", []),  # 31 are left: more than half
        ("steps=11 evaluate_at=final", []),  # it would be the twelfth
        ("norm=group norm.groups=2", []),
    ],
)
def test_small_last_batches_are_named(
    words: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_small(tmp_path, *words.split(), "measurements=log", "dry_run=true")

    lines = [line for line in capsys.readouterr().out.splitlines() if "last batch" in line]
    assert lines == [f"{LEFT.format(last)}; last_batch=drop leaves it out" for last in named]
