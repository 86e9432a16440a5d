"""Damaged and foreign files of a run: each is named, set aside and made anew, with the same rows in the end."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors import safe_open

from bnlab.harness import jobs, load, schema
from bnlab.harness.artifacts import runs, states
from bnlab.harness.artifacts.folders import list_runs, read_config
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import Progress
from bnlab.harness.errors import JobError, UserError
from bnlab.harness.jobs import attempt, execute, list_failures, prepare
from bnlab.harness.measurements.cache import complete_rows
from bnlab.harness.measurements.frozen import EXACT, population
from bnlab.harness.measurements.sources import FrozenWeights
from bnlab.recording.trace import MomentTrace
from bnlab.storage import save_tensors
from tests.experiments.commands import files


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
    """One bit in the middle of the contents; of a parquet file, in the last value of the first column."""
    found = bytearray(path.read_bytes())
    place = len(found) * 3 // 5
    if path.suffix == ".parquet":
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        place = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
    found[place] ^= 4
    path.write_bytes(found)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_version(path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    elif path.suffix == ".parquet":
        schema.write_frame(path, pd.DataFrame({"other": [1]}))
    else:
        with safe_open(path, "pt") as file:
            kind = file.metadata()["format"]
        save_tensors(path, {"x": torch.ones(1)}, kind.replace("/1", "/99"), {})


FILES = {
    "checkpoint": "runs/*/seed_0/checkpoints/step_0000003.safetensors",
    "trace": "runs/*/seed_0/trace/*.safetensors",
    "log": "runs/*/seed_0/log.parquet",
    "status": "runs/*/seed_0/status.json",
    "statistics": "runs/*/seed_0/statistics/exact-train-all-0000003-v*.safetensors",
    "measurement": "runs/*/seed_0/measurements/gaps/*.parquet",
    "part": "adhoc/parts/gaps/*.parquet",
}


@pytest.mark.parametrize("damage", [truncate, empty, replace_by_folder])
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
    assert not list_failures(config(results))
    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", results)[name], load("adhoc", whole)[name])
    capsys.readouterr()
    attempt(config(results))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", [truncate, empty, replace_by_folder])
def test_damaged_state(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an unfinished run, and of a finished one that needs another checkpoint."""
    for finished in (True, False):
        results = tmp_path / str(finished)
        shutil.copytree(whole, results)
        run = Run(config(results))
        state = run.state(3) if finished else run.folder / "state.safetensors"
        damage(state)
        run.checkpoint(3).unlink()
        if not finished:
            (run.folder / "status.json").unlink()
        attempt(config(results))
        assert str(state) in capsys.readouterr().err and not list_failures(config(results))
        original = Run(config(whole)).model_at(3).state_dict()
        assert all(torch.equal(v, original[k]) for k, v in run.model_at(3).state_dict().items())
        assert_frame_equal(load("adhoc", results)["gaps"], load("adhoc", whole)["gaps"])


@pytest.mark.parametrize("kind", ["log", "trace", "checkpoint", "status", "state"])
def test_another_version_is_no_damage(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another version trained stays as it is; the job fails and says why."""
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    run = Run(config(results))
    path = run.folder / "state.safetensors" if kind == "state" else next(results.glob(FILES[kind]))
    if kind == "state":  # it is read only where training goes on
        (run.folder / "status.json").unlink()
    another_version(path)
    before = files(results / "runs")
    with pytest.raises(JobError, match=rf"{path}: .*expected .*use the version that wrote it, or another folder"):
        execute(config(results))
    assert files(results / "runs") == before
    attempt(config(results))
    assert len(list_failures(config(results))) == 1 and str(path) in capsys.readouterr().err
    if kind == "status":
        with pytest.raises(JobError, match="use the version that wrote it"):
            prepare([config(results)])


@pytest.mark.parametrize("kind", ["statistics", "measurement", "part"])
def test_what_another_version_measured_is_measured_again(kind: str, whole: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    (path,) = results.glob(FILES[kind])
    another_version(path)
    if kind == "statistics":
        shutil.rmtree(next(results.glob("runs/*/seed_0/measurements")))
    execute(config(results))
    assert not list(results.rglob("*damaged*"))
    assert_frame_equal(load("adhoc", results)["gaps"], load("adhoc", whole)["gaps"])


@pytest.mark.parametrize("damage", [truncate, empty, replace_by_folder, lambda path: path.write_text("[")])
def test_a_damaged_config_is_written_again(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    run = Run(config(results))
    path = run.folder / "config.yaml"
    path.write_text("'" + path.read_text())  # so that half of it cannot be read either
    damage(path)
    execute(config(results))
    err = capsys.readouterr().err
    assert str(path) in err and "set aside" in err and "trained again" not in err
    assert read_config(run.folder)["batch_size"] == 256


def test_a_network_of_other_settings_is_refused(whole: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    path = Run(config(results)).folder / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1\n", "lr: 0.3\n").replace("  classes: 36\n", "  classes: 10\n"))
    before = files(results / "runs")
    for call in (lambda: prepare([config(results)]), lambda: execute(config(results))):
        with pytest.raises(JobError, match=r"with other settings \(optimizer.lr=0.3 then, 0.1 now\)"):
            call()
    assert files(results / "runs") == before


def test_a_network_of_other_images_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    other = Run(config(results))
    other.dataset = replace(other.dataset, train=replace(other.dataset.train, digest="0" * 16))
    with pytest.raises(JobError, match=r"was trained on other images than digits has now in data.root=data"):
        ensure_trained(other)
    (other.folder / "status.json").unlink()  # unfinished
    with pytest.raises(JobError, match="was trained on other images"):
        ensure_trained(other)
    path = other.folder / "environment.json"
    path.write_text(path.read_text().replace("training_images", "before_it_was_recorded"))
    ensure_trained(other)


@pytest.mark.parametrize("lost", [(), ("status.json", "state.safetensors")])
def test_rows_of_the_network_that_was_there_before_leave(
    lost: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained again is another network where threads or versions are others: nothing of both is mixed."""
    results, estimators = tmp_path / "results", ["cumulative", "exact"]
    shutil.copytree(whole, results)
    run = Run(config(results, estimator=estimators))
    for name in lost:
        (run.folder / name).unlink()
    if not lost:
        shutil.rmtree(run.folder)
    start_training = states.start_training

    def start_elsewhere(run: Run) -> Progress:
        progress = start_training(run)
        with torch.no_grad():
            next(progress.model.parameters()).mul_(1.001)
        return progress

    monkeypatch.setattr(states, "start_training", start_elsewhere)
    execute(run.config)
    execute(config(tmp_path / "alone", estimator=estimators))
    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", results)[name], load("adhoc", tmp_path / "alone")[name])


@pytest.mark.parametrize("text", ["", "{}", '{"versions": {}, "device": "x86_64"}', "[]", "{"])
def test_a_damaged_environment(text: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    path = Run(config(results)).folder / "environment.json"
    if text:
        path.write_text(text)
    else:
        replace_by_folder(path)
    attempt(config(results))
    assert f"{path}: damaged" in capsys.readouterr().err and not list_failures(config(results))


def test_bad_data_is_no_damage_of_a_network(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)

    def corrupt(*_: object) -> None:
        raise UserError("digits: corrupt")

    monkeypatch.setattr(runs, "load_dataset", corrupt)
    for name in ("finished", "unfinished"):
        with pytest.raises(UserError, match="corrupt"):
            ensure_trained(Run(config(results)))
        assert not list(results.rglob("*damaged*")), name
        (Run(config(results)).folder / "status.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["log", "trace", "checkpoint"])
def test_damage_in_an_unfinished_run(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    run = Run(config(results))
    (run.folder / "status.json").unlink()
    (path,) = results.glob(FILES[kind])
    truncate(path)
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
        assert [path.name for path in list_runs(results)] == ["seed_0"]


def test_a_network_that_is_removed_while_it_is_measured_fails_alone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `runs rm` removes it: the other jobs of a sweep go on, and the next sweep trains it again.

    Something is measured meanwhile, which makes the folder again.
    """

    def remove(run: Run, *rest: Any) -> Any:
        shutil.rmtree(run.folder)
        (run.folder / "statistics").mkdir(parents=True)
        return complete_rows(run, *rest)

    results = tmp_path / "results"
    shutil.copytree(whole, results)
    changed = config(results, estimator=["ema", "exact", "precise"])
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "complete_rows", remove)
        failed = attempt(changed)
    assert failed is not None and "was removed while it was measured" in failed.read_text()
    assert str(failed) in capsys.readouterr().err
    prepare([changed])
    assert attempt(changed) is None
    execute(config(tmp_path / "fresh", estimator=["ema", "exact", "precise"]))
    assert_frame_equal(load("adhoc", results)["gaps"], load("adhoc", tmp_path / "fresh")["gaps"])


def test_what_a_run_consists_of(whole: Path) -> None:
    run = Run(config(whole))
    assert run.status is not None and run.status["status"] == "finished" and run.status["step"] == 6
    log = schema.read_frame(run.folder / "log.parquet")
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
    source = FrozenWeights("precise", None, "train", images)
    batches = [x for x, _ in population(run, 0, source, size)]
    assert sum(map(len, batches)) == (images or 1295)
    drawn = torch.cat(batches).flatten(1).unique(dim=0)
    assert min(map(len, batches)) >= 2 and len(drawn) == len(run.dataset.train.images[:images].flatten(1).unique(dim=0))
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


def test_copies_that_a_synchronized_drive_has_made_are_left_alone(tmp_path: Path) -> None:
    run = Run(config(tmp_path))
    for kind in ("states", "checkpoints"):
        (run.folder / kind).mkdir(parents=True)
        for step in ("0000001", "0000001 (1)", "0000001-conflict", "0000009"):
            (run.folder / kind / f"step_{step}.safetensors").touch()
    assert [path.stem for path in (*run.states(5), *run.checkpoints(5))] == ["step_0000001"] * 2
    (run.folder / "trace").mkdir()
    for steps in ("0000000-0000004", "0000000-0000004 (1)", "0000000-0000004.sync-conflict-2", "0000004-0000009"):
        (run.folder / "trace" / f"{steps}.safetensors").touch()
    assert [path.stem for path in run.trace_parts(5)] == ["0000000-0000004"]


@pytest.mark.parametrize("part", ["log.parquet", "trace", "checkpoints"])
def test_files_that_cannot_be_read_are_not_damaged(
    part: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of others, say, who may read them; the network stays where it is."""
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    run, opened = Run(config(results)), Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if part in self.parts and self.suffix in (".parquet", ".safetensors"):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *args, **kwargs)  # type: ignore[call-overload]

    before = files(results)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        execute(config(results, estimator=["ema", "exact", "precise"]))
    monkeypatch.undo()
    assert run.folder.is_dir() and not [path for path in files(results) if ".damaged-" in str(path)]
    assert {*before} <= {*files(results)}
