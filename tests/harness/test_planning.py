"""What a sweep says before it starts: how many networks, how long they train, the disk space, small last batches."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import Config, sweep_small


def test_a_dry_run_counts_what_is_not_trained_and_writes_nothing(
    copied: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(copied.results)

    sweep_small(results, "-m", "seed=0,1,2,3", "last_batch=keep", "dry_run=true")

    summary, remark, training, measuring, disk = capsys.readouterr().out.splitlines()
    assert summary == "4 jobs on 4 networks, 1 trained already"
    assert remark.startswith("the last batch of an epoch has 8 images of 32")
    assert re.fullmatch(r"training   about \d+ s, 1 network at a time, on this machine as busy as it is now", training)
    assert measuring.startswith("measuring  comes on top")
    assert disk.startswith("disk       about ")
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


def count_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each update of a trial take ten seconds by its clock."""
    clock = itertools.count(step=10)
    monkeypatch.setattr("bnlab.harness.trial.time", SimpleNamespace(perf_counter=lambda: next(clock)))


@pytest.mark.parametrize(
    ("cores", "said"),
    [(3, "7 min, 3 networks at a time,"), (2, "10 min, 2 networks at a time,"), (1, "20 min, 1 network at a time,")],
)
def test_networks_that_are_trained_at_a_time_share_the_time(
    cores: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three networks with 40 updates take 400 seconds each."""
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    count_ten_seconds(monkeypatch)

    sweep_small(tmp_path, "-m", "seed=0,1,2", *THREE_AT_A_TIME, "dry_run=true")

    assert f"training   about {said}" in capsys.readouterr().out


def test_a_sweep_trains_no_shorter_than_its_longest_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    count_ten_seconds(monkeypatch)

    sweep_small(tmp_path, "-m", "steps=1,2,40", "evaluate_at=final", *THREE_AT_A_TIME, "dry_run=true")

    assert "training   about 7 min, 3 networks" in capsys.readouterr().out


def test_checkpoints_of_other_steps_are_named_as_the_reason_to_train_again(
    copied: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_small(Path(copied.results), "evaluate_at=[0.3]", "dry_run=true")

    summary = capsys.readouterr().out.splitlines()[0]
    assert summary.endswith("all trained already, 1 of them again now, for checkpoints of steps that are not there")


def test_a_killed_training_is_planned_from_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count_ten_seconds(monkeypatch)
    monkeypatch.setattr("bnlab.harness.artifacts.run.Run.read_step", lambda run: 28)

    sweep_small(tmp_path, "measurements=log", "dry_run=true")

    assert "training   about 2 min, " in capsys.readouterr().out, "12 updates of 10 seconds are left"


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
