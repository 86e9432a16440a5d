"""Damaged and foreign files of a run: each is named, set aside and made anew, with the same rows in the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from bnlab.harness import load, tables
from bnlab.harness.config import Config
from bnlab.harness.jobs import attempt, execute, failures, prepare
from bnlab.harness.measurements.frozen import EXACT, population
from bnlab.harness.measurements.sources import Setting
from bnlab.harness.runs import Run, all_runs
from bnlab.storage import save_tensors
from bnlab.trace import MomentTrace


def config(results: Path, **changes: object) -> Config:
    fixed = {"batch_size": 256, "epochs": 1, "threads": 1, "device": "cpu", "estimator": ["ema", "exact"]}
    return Config(**{**fixed, "results": str(results), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run. Not to be changed."""
    results = tmp_path_factory.mktemp("whole")
    execute(config(results))
    return results


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle of the contents, which a parquet file has at its beginning."""
    found = bytearray(path.read_bytes())
    found[len(found) // 8 if path.suffix == ".parquet" else len(found) * 3 // 5] ^= 4
    path.write_bytes(found)


def another_version(path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    elif path.suffix == ".parquet":
        tables.write_frame(path, pd.DataFrame({"other": [1]}))
    else:
        save_tensors(path, {"x": torch.ones(1)}, "other/99", {})


FILES = {
    "checkpoint": "runs/*/seed_0/checkpoints/step_0000003.safetensors",
    "trace": "runs/*/seed_0/trace/*.safetensors",
    "log": "runs/*/seed_0/log.parquet",
    "status": "runs/*/seed_0/status.json",
    "statistics": "runs/*/seed_0/statistics/exact-train-all-0000003-v*.safetensors",
    "measurement": "runs/*/seed_0/measurements/gaps-*.parquet",
    "part": "adhoc/parts/gaps/*.parquet",
}


@pytest.mark.parametrize("damage", [truncate, empty, flip, another_version])
@pytest.mark.parametrize("kind", list(FILES))
def test_damage(
    kind: str, damage: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    (path,) = results.glob(FILES[kind])
    damage(path)
    if kind == "statistics":  # they are read only where a measurement is missing
        shutil.rmtree(next(results.glob("runs/*/seed_0/measurements")))
    if kind == "part":
        assert load("adhoc", results)["gaps"].empty
    capsys.readouterr()
    attempt(config(results))
    if kind != "part":
        err = capsys.readouterr().err
        assert str(path) in err and "set aside" in err and "Traceback" not in err
        assert list(results.rglob("*damaged*"))
    assert not failures(config(results))
    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", results)[name], load("adhoc", whole)[name])
    capsys.readouterr()
    attempt(config(results))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", [truncate, empty, flip, another_version])
def test_damaged_state(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an unfinished run, and of a finished one that needs another checkpoint."""
    for finished in (True, False):
        results = tmp_path / str(finished)
        shutil.copytree(whole, results)
        run = Run(config(results))
        damage(run.folder / "state.safetensors")
        run.checkpoint(3).unlink()
        if not finished:
            (run.folder / "status.json").unlink()
        attempt(config(results))
        assert "state.safetensors" in capsys.readouterr().err and not failures(config(results))
        original = Run(config(whole)).model_at(3).state_dict()
        assert all(torch.equal(v, original[k]) for k, v in run.model_at(3).state_dict().items())
        assert_frame_equal(load("adhoc", results)["gaps"], load("adhoc", whole)["gaps"])


@pytest.mark.parametrize("kind", ["log", "trace", "checkpoint"])
def test_damage_in_an_unfinished_run(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    run = Run(config(results))
    (run.folder / "status.json").unlink()
    (path,) = results.glob(FILES[kind])
    flip(path)
    attempt(config(results))
    err = capsys.readouterr().err
    assert str(path) in err and "trained again" in err
    assert_frame_equal(load("adhoc", results)["gaps"], load("adhoc", whole)["gaps"])


def test_a_missing_file_of_a_finished_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("log", "trace"):
        results = tmp_path / kind
        shutil.copytree(whole, results)
        next(results.glob(FILES[kind])).unlink()
        attempt(config(results))
        assert "set aside as seed_0.damaged-1" in capsys.readouterr().err
        assert [path.name for path in all_runs(results)] == ["seed_0"]


def test_what_a_run_consists_of(whole: Path) -> None:
    run = Run(config(whole))
    assert run.status is not None and run.status["status"] == "finished" and run.status["step"] == 6
    log = tables.read_frame(run.folder / "log.parquet")
    assert list(log) == ["step", "loss", "accuracy"] and list(log["step"]) == [1, 2, 3, 4, 5, 6]
    assert json.loads((run.folder / "environment.json").read_text())["threads"] == 1
    assert run.trace.last_step == 6 and run.wanted == [1, 2, 3, 4, 5, 6]
    assert isinstance(run.trace, MomentTrace)


def test_the_row_tells_the_environment_of_the_training(whole: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    path = Run(config(results)).folder / "environment.json"
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 7'))
    execute(config(results))
    assert list(load("adhoc", results)["runs"]["threads"]) == [7]


@pytest.mark.parametrize("images", [None, 257, 256, 130])
@pytest.mark.parametrize("size", [2, 128, 256])
def test_every_image_of_the_population_is_in_a_batch_of_two_or_more(images: int | None, size: int) -> None:
    run = Run(config(Path("unused")))
    setting = Setting("precise", None, "train", images=images)
    batches = [x for x, _ in population(run, setting, size)]
    assert sum(map(len, batches)) == (images or 1295)
    assert min(map(len, batches)) >= 2 and torch.equal(torch.cat(batches), run.dataset.train.images[: images or 1295])
    assert EXACT.images is None


def test_precise_with_one_image_left(tmp_path: Path) -> None:
    """1,295 images: batches of 647 leave one over, and an mlp has no variance to make of it."""
    mlp = config(tmp_path, batch_size=647, estimator=["precise", "precise(images=2)"])
    mlp.model.name, mlp.model.depth = "mlp", 1
    execute(mlp)
    rows = load("adhoc", tmp_path)["evaluations"]
    assert set(rows["stat_images"]) == {1295, 2}


def test_prepare_forgets_old_failures(tmp_path: Path) -> None:
    job = config(tmp_path)
    old = tmp_path / "adhoc" / "failures" / f"{Run(job).id.replace('/', '-')}-x.txt"
    other = old.with_name("0000000000-seed_0-x.txt")
    for path in (old, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    prepare([job])
    assert not old.exists() and other.exists()
