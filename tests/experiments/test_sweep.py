"""A small sweep through the real commands: what is trained, which tables there are, what the commands say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pandas.testing import assert_frame_equal

from bnlab.harness import load
from bnlab.harness.artifacts.run import Run
from bnlab.harness.schema import read_key
from bnlab.harness.statistic_kinds import list_statistics
from bnlab.harness.trial import TrialResult
from tests.experiments.commands import EPOCH, SWEEP, Call, files, list_trained, run
from tests.harness.kills import interrupted_at
from tests.helpers import find_network, plan_jobs, sweep_small

NAMES = ("runs", "gaps", "evaluations")
TINY = ("data.images=100", "batch_size=32", "model.width=4", "model.depth=1")


def test_each_network_is_trained_and_measured(swept: Path) -> None:
    tables = load("adhoc", swept)
    trained = {*tables["runs"]["run"]}
    assert len(trained) == 4
    runs = tables["runs"].set_index("batch_size")
    assert set(runs["status"]) == {"finished"} and runs["steps"].to_dict() == {32: 41, 256: 6}
    for name in NAMES:
        frame = tables[name]
        key = read_key(pq.read_schema(swept / "adhoc" / "tables" / f"{name}.parquet"))
        assert set(frame["run"]) == trained and not frame.duplicated(key).any()
    gaps, evaluations = tables["gaps"], tables["evaluations"]
    assert not gaps.loc[gaps["estimator"] == "exact", ["mean_gap", "var_gap"]].any().any()
    pairs = {(row.estimator, row.momentum) for row in evaluations.fillna(-1).itertuples()}
    assert pairs == {("ema", 0.01), ("ema", 0.1), ("cumulative", -1), ("exact", -1)} and len(evaluations) == 16
    assert evaluations["accuracy"].between(0, 1).all() and set(evaluations["images"]) == {359}


def test_the_same_command_trains_nothing_and_changes_nothing(results: Path, call: Call) -> None:
    before = files(results)
    code, out, err = call("sweep", *SWEEP, f"results={results}")
    assert code == 0 and not err and re.match(r"4 jobs\b.*\b4 networks\b", out)
    assert not list_trained(out) and files(results) == before


def test_lists_and_sweeps_give_the_same_rows(results: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on what trained a network, whatever measures it."""
    monkeypatch.setattr("bnlab.harness.run_row.describe_environment", lambda device: {"threads": 99, "versions": {}})
    words = ("estimator=ema,cumulative,exact", "momentum=0.01,0.1", "hydra/launcher=basic", "name=swept")
    code, out, err = call("sweep", "-m", "batch_size=256", *EPOCH, *words, f"results={results}")
    assert code == 0 and not list_trained(out), err
    assert re.match(r"6 jobs\b.*\b1 network\b", out)
    for name in NAMES:
        found, expected = load("swept", results)[name], load("adhoc", results)[name]
        assert_frame_equal(found, expected[expected["run"].isin(found["run"])].reset_index(drop=True))


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ("hydra/launcher=joblib hydra.launcher.n_jobs=1", "1 network"),
        ("epochs=100000", "2 networks"),
        ("epochs=1", "1 network"),  # over before other processes have begun
    ],
)
def test_a_dry_run_says_how_many_are_trained_at_a_time(
    words: str, processes: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)

    tiny = (*TINY, "measurements=log", "device=cpu")
    done = call(f"sweep -m seed=0,1,2 dry_run=true {words}", *tiny, f"results={tmp_path}/r")

    assert done.code == 0 and f", {processes} at a time, " in done.out, done.err


def test_the_settings_of_a_job_are_printed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hydra prints them, and nothing else: the values that a job would have."""
    monkeypatch.chdir(tmp_path)
    single = call("sweep", "batch_size=7", "model=mlp", "--cfg", "job")
    several = call("sweep", "-m", "--cfg=job", "batch_size=4,32", "seed=3")

    assert single.code == several.code == 0, single.err + several.err
    settings = yaml.safe_load(single.out)
    assert (settings["batch_size"], settings["model"]) == (7, {"name": "mlp", "depth": 2, "width": 256})
    assert several.out.startswith("# of 2 jobs: job 1  batch_size=4\n")
    assert yaml.safe_load(several.out)["batch_size"] == 4
    assert not [*tmp_path.iterdir()]

    refused = call("sweep", "--cfg", "hydra")
    assert refused.code == 2
    assert "--cfg job" in refused.err


def test_help() -> None:
    shown = run("sweep", "--help").stdout
    ours = [name for name, cls in list_statistics().items() if cls.__module__.startswith("bnlab.")]
    assert {"ema", "exact", "stale", "test_batch"} <= {*ours}
    for name in ("batch_size", "resnet", "renorm", *ours):
        assert re.search(rf"\b{name}\b", shown), name
    assert "data.images=null" in shown
    assert "--info" in shown


def test_an_experiment_that_lies_elsewhere_and_divergence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that diverges keeps its rows up to then, and the sweep goes on; folders may have any name."""
    folder = tmp_path / "ein ölfass + x's"
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nbatch_size: 64\nsteps: 6\naccuracy_at: all\nestimator: exact\n"
        "hydra:\n  sweeper:\n    params:\n      optimizer.lr: 0.1,1e8\n",
        encoding="utf-8",
    )
    results = tmp_path / "it's a=b, [ä] + (x)"

    monkeypatch.chdir(folder)

    done = call("sweep", "experiment=mine", *TINY[2:], "hydra/launcher=basic", f"results={results}")

    assert done.code == 0, done.err
    assert done.out.count("diverged: ") == 1
    last = done.out.splitlines()[-1]
    assert shlex.split(last) == ["next:", "bnlab", "report", "name=mine", f"results={results}"]
    tables = load("mine", results)
    runs = tables["runs"].set_index("optimizer.lr")
    assert runs["status"].to_dict() == {0.1: "finished", 1e8: "diverged"}
    steps = tables["evaluations"].groupby("run")["step"].apply(list)
    assert steps[runs["run"][0.1]] == [1, 2, 3, 4, 5, 6]
    diverged = runs.loc[1e8]
    log = pd.read_parquet(results / "runs" / diverged["run"] / "log.parquet")
    assert len(steps[diverged["run"]]) <= len(log) == diverged["last_step"] < 6


def test_rows_on_another_number_of_images_are_left_out_until_they_are_measured_again(
    call: Call, tmp_path: Path
) -> None:
    """Means over seeds would have both; whichever sweep came last counts, and says how the line is completed."""
    words = (*TINY, "steps=4", "evaluate_at=[2,4]", "measurements=[gaps]", "hydra/launcher=basic")
    assert call("sweep", "-m", *words, "population_images=30,50", f"results={tmp_path}").code == 2
    assert call("sweep", "-m", *words, "population_images=30", "seed=0,1", f"results={tmp_path}").code == 0

    later = call("sweep", *words, "population_images=50", "seed=0", f"results={tmp_path}")

    gaps = load("adhoc", tmp_path)["gaps"]
    assert {run[-6:] for run in gaps["run"]} == {"seed_0"}
    (note,) = [line for line in later.out.splitlines() if "1 network " in line and "again: " in line]
    program, command, *others = shlex.split(note.partition("again: ")[2])
    assert program == "bnlab"
    assert "population_images=50" in others

    assert call(command, *others).code == 0
    tables = load("adhoc", tmp_path)
    assert not tables.notes
    assert {run[-6:] for run in tables["gaps"]["run"]} == {"seed_0", "seed_1"}
    of_first = tables["gaps"][tables["gaps"]["run"].isin(gaps["run"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_first, gaps)


def test_jobs_that_all_end_before_they_leave_anything(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster that ends them."""
    monkeypatch.setattr("bnlab.harness.lab.sweep._run", lambda *args: iter([]))

    code, out, _ = call("sweep", *TINY, "steps=4", "hydra/launcher=basic", f"results={tmp_path}")

    assert code == 1
    assert re.search(r"\w{10}/seed_0\b", out.splitlines()[-1])


def test_what_to_do_next(call: Call, results: Path) -> None:
    """The command of the question's report, under the name that was swept; none where no report could be made."""
    words = (*TINY, "steps=1", "hydra/launcher=basic", "seed=0", "evaluate_at=final")
    unreported = call("sweep name=g measurements=log", *words, f"results={results}")
    reported = call("sweep experiment=quickstart measurements=evaluations name=g", *words, f"results={results}")

    assert "next:" not in unreported.out
    last = reported.out.splitlines()[-1]
    assert shlex.split(last) == ["next:", "bnlab", "report", "experiment=quickstart", "name=g", f"results={results}"]


@pytest.mark.parametrize(("words", "threads"), [([], 1), (["threads=2"], 2)])
def test_a_network_has_one_thread_unless_it_is_said_otherwise(
    words: list[str], threads: int, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many torch would take on this machine, when the network is tried too."""
    tried: list[int] = []

    def note_threads(run: Run) -> TrialResult:
        tried.append(torch.get_num_threads())
        return TrialResult(0.0, 0.0, 0.0, [])

    monkeypatch.setattr("bnlab.harness.jobs.try_training", note_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        one = (*TINY, "steps=1", "measurements=log", "hydra/launcher=basic")
        done = call("sweep", *one, *words, f"results={tmp_path}")
    finally:
        torch.set_num_threads(before)

    assert done.code == 0, done.err
    assert tried == list(load("adhoc", tmp_path)["runs"]["threads"]) == [threads]


def test_joblib_runs_a_single_job_in_the_process_of_the_sweep(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then nobody waits for another process to end."""
    short = (*TINY, "steps=1", "measurements=evaluations", "hydra/launcher=joblib", f"results={tmp_path}")
    waiting: list[int] = []
    monkeypatch.setattr("bnlab.harness.lab.launch._end_with", waiting.append)

    done = call("sweep", *short)

    assert done.code == 0, done.err
    assert not waiting
    assert len(list_trained(done.out)) == 1


def test_runs(results: Path, call: Call) -> None:
    where = f"results={results}"
    header, *lines, total = call("runs list", where).out.splitlines()
    assert header.split() == ["run", "batch_size", "status", "step", "seconds", "MB"] and total.startswith("4 networks")
    assert (
        sorted(line.split()[1:4] for line in lines) == [["256", "finished", "6"]] * 2 + [["32", "finished", "41"]] * 2
    )
    names = [line.split()[0] for line in lines]
    shown = call("runs show", names[0], where)
    assert shown.code == 0 and all(word in shown.out for word in ("batch_size", "status.json", "torch"))
    assert call("runs rm", names[0], names[2], where).out.count("removed ") == 2
    assert [line.split()[0] for line in call("runs list", where).out.splitlines()[1:-1]] == [names[1], names[3]]


def test_networks_that_differ_in_a_setting_that_one_does_not_have(tmp_path: Path, call: Call) -> None:
    words = (*TINY, "steps=2", "measurements=log", "hydra/launcher=basic", f"results={tmp_path}")
    assert call("sweep", "-m", *words, "freeze_at=null,0.5").code == 0

    assert "freeze_at" in call("runs list", f"results={tmp_path}").out


@pytest.mark.parametrize("name", ["2024_11_2", "1e3", "007", "null"])
def test_a_name_is_a_text(name: str) -> None:
    (config,) = plan_jobs((f"name={name}",)).configs

    assert config.name == name


@pytest.mark.usefixtures("no_pictures")
def test_two_networks_that_no_setting_tells_apart_are_named_with_a_way_out(tmp_path: Path, call: Call) -> None:
    """Two epochs of 90 images are six updates, and so are steps=6."""
    words = (*TINY, "evaluate_at=final", "measurements=evaluations", f"results={tmp_path}")
    for length in ("epochs=2", "steps=6"):
        assert call("sweep", *words, "hydra/launcher=basic", length).code == 0

    code, _, err = call("report", "name=adhoc", f"results={tmp_path}")

    assert code == 2
    run = re.search(r"bnlab runs rm name=NAME run=(\S+)", err)
    assert run, err
    assert call("runs rm", "name=adhoc", f"run={run[1]}", f"results={tmp_path}", "--yes").code == 0
    assert call("report", "name=adhoc", f"results={tmp_path}").code == 0


def test_an_interrupted_network_is_listed_with_what_is_saved_of_it(tmp_path: Path, call: Call) -> None:
    with interrupted_at(3):
        sweep_small(tmp_path, expect=130)
    state = find_network(tmp_path) / "resume.pt"
    saved = torch.load(state, weights_only=True)
    torch.save(saved | {"seconds": 12.3}, state)

    header, line, _ = call("runs list", f"results={tmp_path}").out.splitlines()[-3:]

    assert header.split()[1:4] == ["status", "step", "seconds"]
    assert line.split()[1:4] == ["unfinished", str(saved["step"]), "12"]
    assert saved["step"] > 0


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "name: [adhoc"), ("status.json", '{"status": "fin')])
def test_a_run_with_a_damaged_file(name: str, text: str, results: Path, call: Call) -> None:
    """Is named, can be shown and removed; all others are listed."""
    where = f"results={results}"
    folder = next(results.glob("runs/*/seed_0"))
    (folder / name).write_text(text, encoding="utf-8")
    run_id = f"{folder.parent.name}/seed_0"

    listed = call("runs list", where)
    shown = call("runs show", run_id, where)
    removed = call("runs rm", run_id, where)

    assert listed.code == 0 and listed.out.splitlines()[-1].startswith("3 networks")
    assert listed.err.startswith(f"{run_id} ") and f" {folder / name}: " in listed.err
    assert shown.code == 0 and text in shown.out
    assert removed.code == 0 and {path.name for path in folder.iterdir()} <= {"rows"}
