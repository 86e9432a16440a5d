"""A small sweep through the real command line: its tables, and every number of one step against slow twins."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor, nn

from bnlab.harness import load
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, field_names
from bnlab.harness.schema import LOG, TABLES, read_frame, write_frame
from tests import references
from tests.experiments.commands import SWEEP, Done, files, run, start, trained

Swept = tuple[Path, Done]

# Of design.md, as it stands there; `settings` is ours: the network's settings that differ from the defaults.
KEYS = {
    "runs": ["run"],
    "gaps": ["run", "step", "estimator", "momentum", "statistics_split", "layer"],
    "evaluations": ["run", "step", "estimator", "momentum", "statistics_split", "split", "shift"],
}
FURTHER = {
    "runs": "seed data model norm batch_size norm_batch_size optimizer lr lr_scaling sgd_momentum weight_decay "
    "label_smoothing schedule epochs steps status train_seconds final_loss settings versions device threads "
    "data.images data.classes data.difficulty data.fonts data.test_fonts data.image_size data.shift data.flip "
    "model.depth model.width model.pool_every lr_effective last_step data.name model.name norm.name "
    "norm.batch_size norm.groups norm.momentum norm.every_second optimizer.name "
    "optimizer.lr optimizer.lr_scaling optimizer.momentum optimizer.weight_decay optimizer.label_smoothing "
    "optimizer.schedule order freeze_at freeze_with averaging",
    "gaps": "epoch depth channels mean_gap var_gap kl tid_mean tid_std var_ratio",
    "evaluations": "epoch images stat_images loss accuracy ece disagreement logit_gap",
}
TEXT = {"run", "estimator", "statistics_split", "layer", "split", "shift", "data", "model", "norm", "optimizer"}
TEXT |= {"lr_scaling", "schedule", "status", "settings", "versions", "device"}
WHOLE = {"step", "seed", "batch_size", "norm_batch_size", "steps", "threads", "depth", "channels", "images"}
WHOLE |= {"stat_images", "data.images", "data.classes", "data.image_size", "data.shift", "last_step"}
WHOLE |= {"model.depth", "model.width", "model.pool_every", "norm.batch_size", "norm.groups"}
TEXT |= {"data.name", "model.name", "norm.name", "optimizer.name", "optimizer.lr_scaling", "optimizer.schedule"}
TEXT |= {"order", "averaging", "freeze_with", "data.difficulty", "data.fonts", "data.test_fonts", "norm.every_second"}
TRUTH = {"data.flip"}


@pytest.mark.parametrize("name", list(KEYS))
def test_tables_are_those_of_the_design(swept: Swept, name: str) -> None:
    frame = load("adhoc", swept[0])[name]
    assert list(frame.columns) == [*KEYS[name], *FURTHER[name].split()]
    assert list(TABLES[name].key) == KEYS[name]
    assert len(frame) and not frame.duplicated(KEYS[name]).any()
    for column, dtype in frame.dtypes.items():
        kinds = {"int64": WHOLE, "str": TEXT, "bool": TRUTH}
        assert dtype == next((kind for kind, names in kinds.items() if column in names), "float64"), column
    assert not frame.drop(columns="momentum", errors="ignore").isna().any().any()
    written = pd.read_parquet(swept[0] / "adhoc" / "tables" / f"{name}.parquet")
    assert_frame_equal(frame, written)


def test_each_network_is_trained_once(swept: Swept) -> None:
    results, done = swept
    assert len(trained(done)) == len(set(trained(done))) == 4
    runs = load("adhoc", results)["runs"]
    assert sorted(runs["run"]) == trained(done) == sorted(p.parent.parent.name + "/" + p.parent.name
                                                          for p in results.glob("runs/*/*/status.json"))  # fmt: skip
    assert set(runs["status"]) == {"finished"} and set(runs["batch_size"]) == {32, 256}
    assert runs.set_index("batch_size")["steps"].to_dict() == {32: 41, 256: 6}
    assert {json.loads(s).get("batch_size") for s in runs["settings"]} == {32, 256}


# Settings that change training, and their columns in `runs` where those have other names.
COLUMNS = {"data.name": "data", "model.name": "model", "optimizer.name": "optimizer"}
COLUMNS |= {"optimizer.momentum": "sgd_momentum"}
COLUMNS |= {f"optimizer.{name}": name for name in ("lr", "lr_scaling", "weight_decay", "label_smoothing", "schedule")}


def test_runs_has_a_column_for_every_setting_of_training(tmp_path: Path) -> None:
    groups = ("data.", "model.", "optimizer.")
    names = [
        name
        for name in field_names(Config)
        if name.startswith(groups)
        or name in ("batch_size", "epochs", "steps", "order", "freeze_at", "freeze_with", "averaging")
    ]
    trained_by = [name for name in names if name not in ("data.root", "data.download")]
    assert len(trained_by) > 20
    assert {COLUMNS.get(name, name) for name in trained_by} <= set(TABLES["runs"].types)
    words = (
        "data.images=500",
        "data.shift=2",
        "model.depth=2",
        "model.width=8",
        "batch_size=32",
        "steps=3",
        "order=blocks",
    )
    run("sweep", *words, "optimizer.lr=0.2", "optimizer.lr_scaling=linear", f"results={tmp_path}")
    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert row["data.images"] == 500 and row["data.shift"] == 2 and row["data.flip"] is False
    assert row["order"] == "blocks" and row["model.depth"] == 2 and row["model.width"] == 8
    assert row["last_step"] == row["steps"] == 3
    assert row["lr"] == 0.2 and row["lr_effective"] == pytest.approx(0.2 / 4)


def test_the_log_of_all_networks(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    tables = load("adhoc", swept[0])
    assert "log" not in tables
    log = tables["log"]
    assert log is tables["log"] and list(log.columns) == list(LOG.types) and not log.isna().any().any()
    assert list(log.dtypes) == ["str", "int64", "float64", "float64", "float64"]
    for row in tables["runs"].itertuples():
        here = log[log["run"] == row.run]
        assert list(here["step"]) == list(range(1, row.steps + 1))
        assert here["loss"].iloc[-1] == row.final_loss
        own = pd.read_parquet(swept[0] / "runs" / row.run / "log.parquet")
        assert list(own["accuracy"]) == list(here["accuracy"])
        assert here["lr"].max() <= row.lr_effective and here["lr"].iloc[0] == pytest.approx(0.05 * row.lr_effective)
    with pytest.raises(KeyError):
        tables["nonsense"]
    assert not capsys.readouterr().err


def test_a_network_without_its_log_is_named(swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(swept[0], tmp_path / "results")
    first, second, *_ = sorted((tmp_path / "results" / "runs").glob("*/seed_*/log.parquet"))
    first.unlink()
    second.write_bytes(b"nonsense")
    log = load("adhoc", tmp_path / "results")["log"]
    assert log["run"].nunique() == 2
    err = capsys.readouterr().err
    assert err.count("left out of the table log") == 2 and str(first) in err and str(second) in err and second.exists()


def test_the_log_of_another_training_is_named(swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network was removed and trained again, for another experiment, where it ends elsewhere."""
    results = Path(shutil.copytree(swept[0], tmp_path / "results"))
    path = sorted((results / "runs").glob("*/seed_*/log.parquet"))[0]
    frame = read_frame(path)
    write_frame(path, frame.assign(loss=frame["loss"] * (1 + 1e-7)))
    log = load("adhoc", results)["log"]
    run = f"{path.parent.parent.name}/{path.parent.name}"
    assert log["run"].nunique() == 3 and run not in set(log["run"])
    assert f"{run}: left out of the table log ({path}: is of another training" in capsys.readouterr().err


def test_rows_are_those_that_mean_something(swept: Swept) -> None:
    for name in ("gaps", "evaluations"):
        frame = load("adhoc", swept[0])[name]
        assert set(frame.loc[frame["momentum"].isna(), "estimator"]) == {"cumulative", "exact"}
        assert set(frame.loc[frame["momentum"].notna(), "estimator"]) == {"ema"}
        other = [k for k in KEYS[name] if k not in ("estimator", "momentum")]
        assert set(frame.groupby(other).size()) == {4}  # ema twice, cumulative, exact
    exact = load("adhoc", swept[0])["gaps"].query("estimator == 'exact'")
    assert (exact[["mean_gap", "var_gap", "kl"]] == 0).all().all()
    exact = load("adhoc", swept[0])["evaluations"].query("estimator == 'exact'")
    assert (exact[["disagreement", "logit_gap"]] == 0).all().all()


def test_lists_and_sweeps_give_the_same_rows(swept: Swept) -> None:
    results = swept[0]
    words = ("estimator=[ema,cumulative,exact]", "momentum=0.01,0.1", f"results={results}", "name=lists")
    done = run("sweep", *SWEEP, *words)
    assert trained(done) == []
    for name in KEYS:
        assert_frame_equal(load("lists", results)[name], load("adhoc", results)[name])


def test_running_again_trains_nothing_and_changes_nothing(swept: Swept, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(swept[0], results)
    before = files(results)
    words = ("momentum=[0.01,0.1]", "estimator=ema,cumulative,exact", f"results={results}")
    assert trained(run("sweep", *SWEEP, *words)) == []
    after = files(results)
    assert after.keys() == before.keys()
    parts = {name for name in before if name.startswith("adhoc/parts/")}
    assert all(after[name] == content for name, content in before.items() if name not in parts)
    for name in parts:  # the same rows, as of now
        then, now = (pd.read_parquet(io.BytesIO(found[name])) for found in (before, after))
        assert_frame_equal(then.drop(columns="written"), now.drop(columns="written"))
        assert (now["written"] > then["written"]).all()


def test_figures_are_found_and_csv_is_written(swept: Swept, tmp_path: Path) -> None:
    done = run("sweep", "steps=2", "batch_size=256", "csv=true", "name=it", f"results={tmp_path}")
    assert f'load("it", "{tmp_path}")' in done.stdout
    frame = pd.read_csv(tmp_path / "it" / "tables" / "gaps.csv")
    assert list(frame.columns) == list(TABLES["gaps"].types)


# Numbers, recomputed slowly


@pytest.fixture(scope="module")
def network(swept: Swept) -> Run:
    return Run(Config(batch_size=32, epochs=1, seed=0, device="cpu", results=str(swept[0])))


STEP = 12


def estimates(run: Run, population: dict[str, references.Moments]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Every estimator's statistics at STEP by loops over the recorded batches: estimator → layer → (mean, var)."""
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"ema 0.01": {}, "ema 0.1": {}, "cumulative": {}, "exact": {}}
    for name, layer in run.trace.layers.items():
        means, variances = layer.moments[:STEP].double().unbind(1)
        for momentum in (0.01, 0.1):
            mean, var = torch.zeros_like(means[0]), torch.ones_like(means[0])
            for batch in range(STEP):
                mean = (1 - momentum) * mean + momentum * means[batch]
                var = (1 - momentum) * var + momentum * variances[batch]
            found[f"ema {momentum}"][name] = mean, var
        found["cumulative"][name] = means.mean(0), variances.mean(0)
        found["exact"][name] = population[name].mean, population[name].var
    return found


@pytest.fixture(scope="module")
def slow(network: Run) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    return estimates(network, references.full_batch_population(network.model_at(STEP), network.dataset.train.images))


def test_recorded_moments_are_those_of_the_batches(network: Run) -> None:
    model = references.float64_copy(network.new_model()).train()
    name, layer = next(iter(network.trace.layers.items()))
    images, _ = next(iter(network.batches.from_step(0)))
    (seen,) = references.inputs_of(model.get_submodule(name), lambda: model(references.float64(images)))
    mean, var = references.unbiased(seen)
    torch.testing.assert_close(layer.moments[0].double(), torch.stack((mean, var)), rtol=1e-4, atol=1e-5)


def test_gaps_against_slow_twins(swept: Swept, network: Run, slow: dict[str, dict[str, tuple[Tensor, Tensor]]]) -> None:
    rows = load("adhoc", swept[0])["gaps"].query("run == @network.id and step == @STEP")
    assert len(rows) == 4 * len(network.trace.layers)
    distances = slow_tid(network, slow)
    for row in rows.itertuples():
        key = row.estimator if math.isnan(row.momentum) else f"{row.estimator} {row.momentum}"
        found = references.gap(slow["exact"][row.layer], slow[key][row.layer], network.trace.layers[row.layer].eps)
        found["tid_mean"], found["tid_std"] = distances[key][row.layer]
        for column, value in found.items():
            assert getattr(row, column) == pytest.approx(value, rel=2e-3, abs=1e-5), (key, row.layer, column)
        assert row.epoch == STEP / 41 and row.channels == len(slow[key][row.layer][0])


def slow_tid(run: Run, slow: dict[str, dict[str, tuple[Tensor, Tensor]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """mean_c |μ − μ_B|/σ_B and mean_c |σ/σ_B − 1| over the next 16 batches, by a loop over batches."""
    model = references.float64_copy(run.model_at(STEP))
    for layer in references.batch_norms(model).values():
        layer.train()
        layer.momentum = 0.0
    batches = run.batches.from_step(STEP)
    inputs = [references.float64(images) for (images, _), _ in zip(batches, range(16), strict=False)]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, recorded in run.trace.layers.items():
        seen = [references.inputs_of(model.get_submodule(name), lambda x=x: model(x))[0] for x in inputs]
        batch = [references.moments(x) for x in seen]
        for key, values in slow.items():
            mean, var = values[name]
            means, stds = [], []
            for _, batch_mean, batch_var in batch:
                sigma = (batch_var + recorded.eps).sqrt()
                means.append(float(((mean - batch_mean).abs() / sigma).mean()))
                stds.append(float(((var + recorded.eps).sqrt() / sigma - 1).abs().mean()))
            found.setdefault(key, {})[name] = sum(means) / len(means), sum(stds) / len(stds)
    return found


def test_evaluations_against_slow_twins(swept: Swept, network: Run) -> None:
    last = 41
    rows = load("adhoc", swept[0])["evaluations"].query("run == @network.id")
    assert list(rows["step"]) == [last] * 4 and set(rows["images"]) == {359} and set(rows["stat_images"]) == {1295}
    train, test = network.dataset.train, network.dataset.test
    logits = {}
    population = references.full_batch_population(network.model_at(last), train.images)
    for row in rows.itertuples():
        model = references.float64_copy(network.model_at(last))
        for name, layer in references.batch_norms(model).items():
            means, variances = network.trace.layers[name].moments.double().unbind(1)
            mean, var = torch.zeros_like(means[0]), torch.ones_like(means[0])
            for t in range(last):
                gain = 1 / (t + 1) if row.estimator == "cumulative" else row.momentum
                mean, var = mean + gain * (means[t] - mean), var + gain * (variances[t] - var)
            exact = population[name]
            layer.running_mean = exact.mean if row.estimator == "exact" else mean
            layer.running_var = exact.var if row.estimator == "exact" else var
        with torch.no_grad():
            logits[row.Index] = model(references.float64(test.images))
    exact = logits[rows.query("estimator == 'exact'").index[0]]
    for row in rows.itertuples():
        found = logits[row.Index]
        hit = found.argmax(1) == test.labels
        assert row.accuracy == pytest.approx(hit.double().mean().item(), abs=1.1 / 359)
        assert row.loss == pytest.approx(nn.functional.cross_entropy(found, test.labels).item(), rel=1e-3)
        assert row.ece == pytest.approx(slow_ece(found, test.labels), abs=5e-3)
        differing = (found.argmax(1) != exact.argmax(1)).double().mean().item()
        assert row.disagreement == pytest.approx(differing, abs=1.1 / 359)
        gap = math.sqrt(float(((found - exact) ** 2).mean() / (exact**2).mean()))
        assert row.logit_gap == pytest.approx(gap, rel=1e-3, abs=1e-5)


def slow_ece(logits: Tensor, labels: Tensor) -> float:
    """Share of images times |mean confidence − accuracy| in each of 15 bins, by a loop."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.softmax(1), labels, strict=True):
        confidence = float(row.max())
        place = max(1, math.ceil(confidence * 15))
        bins.setdefault(place, []).append((confidence, int(row.argmax()) == int(label)))
    total = 0.0
    for members in bins.values():
        confidence = sum(c for c, _ in members) / len(members)
        accuracy = sum(h for _, h in members) / len(members)
        total += len(members) / len(labels) * abs(confidence - accuracy)
    return total


# Several processes


SMALL = ("-m", "batch_size=256", "seed=0,1", "epochs=1", "momentum=[0.01,0.1]", "estimator=[ema,cumulative,exact]")


def assert_same_rows(swept: Swept, results: Path) -> None:
    """The rows of the two networks with batches of 256 are those that one process has found."""
    expected = load("adhoc", swept[0])
    names = expected["runs"].query("batch_size == 256")["run"]
    assert list(load("adhoc", results)["runs"]["run"]) == list(names)
    for name in ("gaps", "evaluations"):
        wanted = expected[name][expected[name]["run"].isin(names)].reset_index(drop=True)
        assert_frame_equal(load("adhoc", results)[name], wanted)


def test_two_sweeps_at_once(swept: Swept, tmp_path: Path) -> None:
    both = [start("sweep", *SMALL, f"results={tmp_path}") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    lines = [line.split()[0] for out, _ in ends for line in out.splitlines() if "epoch 1/1" in line]
    assert len(lines) == len(set(lines)) == 2
    assert_same_rows(swept, tmp_path)


def test_joblib_uses_processes_of_one_thread(swept: Swept, tmp_path: Path) -> None:
    run("sweep", *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"results={tmp_path}")
    assert_same_rows(swept, tmp_path)
    assert set(load("adhoc", tmp_path)["runs"]["threads"]) == {1}


# What goes wrong in a job


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failure_is_told_though_another_sweep_has_forgotten_it(launcher: str, tmp_path: Path) -> None:
    """One on the same network that begins meanwhile: `prepare` forgets the failures of earlier sweeps."""
    forgetful = ESTIMATORS.replace("        if len(stream) > 8:", "        if len(stream) > 8:\n            forget()")
    (tmp_path / "mine.py").write_text(f"{FORGET}{forgetful}")
    words = ("-m", "steps=9", "batch_size=256", "seed=0,1", f"results={tmp_path}/results")
    launched = (f"hydra/launcher={launcher}", "estimator=[mine.Broken]")
    done = run("sweep", *words, *launched, path=tmp_path, expect=1)
    assert done.stdout.count("failed: ") == done.stderr.count(": failed, ") == 2


def test_divergence_is_told_and_the_sweep_goes_on(tmp_path: Path) -> None:
    words = ("-m", "optimizer.lr=0.1,1e8", "batch_size=256", "epochs=1", f"results={tmp_path}")
    done = run("sweep", *words, "accuracy_at=all")
    runs = load("adhoc", tmp_path)["runs"].set_index("lr")
    assert runs["status"].to_dict() == {0.1: "finished", 1e8: "diverged"}
    (line,) = [line for line in done.stderr.splitlines() if "diverged" in line]
    assert runs.loc[1e8, "run"] in line
    rows = load("adhoc", tmp_path)["evaluations"].groupby("run")["step"].unique()
    assert list(rows[runs.loc[0.1, "run"]]) == [1, 2, 3, 4, 5, 6]
    kept = rows.get(runs.loc[1e8, "run"], [])
    assert list(kept) == list(range(1, len(kept) + 1)) and 0 < len(kept) < 6


ESTIMATORS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from bnlab.estimators import Estimator, Stream

@dataclass(frozen=True)
class Half(Estimator):
    name: ClassVar[str] = "half"
    def gains(self, stream: Stream) -> torch.Tensor:
        return torch.full((len(stream),), 0.5, dtype=torch.float64)

@dataclass(frozen=True)
class Broken(Estimator):
    name: ClassVar[str] = "broken"
    def gains(self, stream: Stream) -> torch.Tensor:
        if len(stream) > 8:
            raise RuntimeError("does not compute")
        return torch.full((len(stream),), 0.5, dtype=torch.float64)
"""

FORGET = """
from bnlab.harness import jobs

def forget():
    write_row = jobs._write_row
    def forgotten(run):
        write_row(run)
        jobs.prepare([run.config])
    jobs._write_row = forgotten
"""


def test_an_estimator_of_the_users_own(tmp_path: Path) -> None:
    """One that fails on the recorded stream alone leaves the rows of all others; measured again is what has changed."""
    (tmp_path / "mine.py").write_text(ESTIMATORS)
    words = ("steps=9", "batch_size=256", "momentum=0.5", f"results={tmp_path}/results")
    done = run("sweep", *words, "estimator=[mine.Half,mine.Broken,ema]", path=tmp_path, expect=1)
    tables = load("adhoc", tmp_path / "results")
    for name, column in (("gaps", "mean_gap"), ("evaluations", "accuracy")):
        frame = tables[name].set_index("estimator")[column]
        assert list(frame[["half"]]) == list(frame[["ema"]]) and "broken" not in frame.index
    assert list(tables["runs"]["status"]) == ["failed"]
    (reason,) = (tmp_path / "results" / "adhoc" / "failures").iterdir()
    assert "Traceback" in reason.read_text() and str(reason) in done.stdout
    message = f"broken: {tmp_path}/mine.py:18: RuntimeError: does not compute"
    assert f"failed, {message}" in done.stderr and message in reason.read_text() and "Traceback" not in done.stderr

    # A changed estimator is measured again, a corrected one is no failure any more.
    corrected = ESTIMATORS.replace('raise RuntimeError("does not compute")', "return torch.ones(len(stream)).double()")
    (tmp_path / "mine.py").write_text(corrected.replace("0.5, dtype", "1.0, dtype"))
    run("sweep", *words, "estimator=[mine.Half,mine.Broken,last_batch]", path=tmp_path)
    tables = load("adhoc", tmp_path / "results")
    frame = tables["gaps"].set_index("estimator")["mean_gap"]
    assert list(frame[["half"]]) == list(frame[["broken"]]) == list(frame[["last_batch"]])
    assert list(tables["runs"]["status"]) == ["finished"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "raise RuntimeError('does not compute')",
            "mine.py:18: RuntimeError: does not compute",
        ),
        ("import sys; sys.exit('now')", "mine.py:18: SystemExit: now"),
        ("return torch.ones(3)", "broken: gains returned torch.float32"),
    ],
)
def test_an_estimator_is_tried_before_anything_is_trained(line: str, reason: str, tmp_path: Path) -> None:
    code = ESTIMATORS.replace("if len(stream) > 8:", "if True:").replace('raise RuntimeError("does not compute")', line)
    (tmp_path / "mine.py").write_text(code)
    words = ("-m", "steps=9", "batch_size=256", f"results={tmp_path}/results")
    done = run("sweep", *words, "estimator=ema,mine.Broken", path=tmp_path, expect=2)
    assert "estimator=broken: mine.Broken" in done.stderr and reason in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "results" / "runs").exists()
