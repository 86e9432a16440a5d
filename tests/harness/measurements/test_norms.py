"""Networks with each norm: they train and go on, and what a network has no rows of says so and is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnlab import replay, running_statistics
from bnlab.estimators import EMA
from bnlab.harness import load
from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import execute, find_failure, prepare
from bnlab.lab.catalogue import list_measurements
from bnlab.lab.compose import plan_jobs
from tests.harness.kills import assert_same, killed_at

SMALL = ("data=digits", "model=cnn", "model.depth=1", "model.width=8", "batch_size=64", "threads=1", "epochs=1")


def configure(norm: str, *words: str) -> Config:
    """Configure a small network with a norm, as a sweep with these words does."""
    own = {"ghost": ["norm.batch_size=16"], "renorm": ["momentum=0.01"]}
    (config,) = plan_jobs([*SMALL, f"norm={norm}", *own.get(norm, []), *words]).configs
    return config


@pytest.mark.parametrize("model", ["model.depth=3 model.width=16", "model=mlp model.depth=2 model.width=64"])
def test_it_trains(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["epochs=3", "evaluate_at=[0.5,1.0]", "accuracy_at=all", "measurements=[gaps,evaluations,drift]"]
    config = configure("none", *model.split(), *words, f"results={tmp_path}")
    prepare([config])
    execute(config)
    run = Run(config)
    tables = load("adhoc", tmp_path)

    assert not run.has_trace
    assert not find_failure(Run(config)).exists()
    assert not (run.folder / "trace").exists()

    skipped = [line for line in capsys.readouterr().out.splitlines() if "gaps" in line]
    assert skipped == [f"{run.id}: norm.name=none, so not measured: gaps, drift"]
    assert not {"gaps", "drift"} & {*tables}

    found = tables["evaluations"]
    assert list(found["step"]) == run.wanted
    assert set(found["estimator"]) == set(found["statistics_split"]) == {"none"}
    assert found["accuracy"].iloc[-1] > 0.7

    empty = found.columns[found.isna().all()]
    assert set(empty) == {"momentum", "disagreement", "logit_gap"}
    assert (found["stat_images"] == 0).all()

    (row,) = tables["runs"].to_dict("records")
    assert row["norm"] == "none"
    assert row["status"] == "finished"
    assert tables["runs"]["norm_batch_size"].isna().all()


@pytest.mark.parametrize("norm", GROUPS["norm"])
def test_every_norm_continues(norm: str, tmp_path: Path) -> None:
    config = configure(norm, "evaluate_at=[5,20]")
    whole = Run(replace(config, results=str(tmp_path / "whole")))
    broken = Run(replace(config, results=str(tmp_path / "broken")))
    ensure_trained(whole)
    with killed_at(10):
        ensure_trained(broken)
    ensure_trained(broken)
    assert_same(broken, whole)


@pytest.mark.parametrize("norm", GROUPS["norm"])
def test_every_norm_is_measured(norm: str, tmp_path: Path) -> None:
    config = configure(norm, "evaluate_at=[0.5,1.0]", f"results={tmp_path}")

    prepare([config])
    execute(config)

    assert not find_failure(Run(config)).exists()
    tables = load("adhoc", tmp_path)
    assert tables["evaluations"]["accuracy"].notna().all()
    assert ("gaps" in tables) == config.norm.uses_batch


SOURCES = ["ema", "exact", "precise", "update_bn", "test_batch(n=16)"]


@pytest.mark.parametrize("name", ["ghost", "renorm"])
def test_batch_statistics_are_measured(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.depth=3", "data.shift=1", "evaluate_at=[0.5,1.0]", f"results={tmp_path}"]
    config = replace(configure(name, *words), estimator=SOURCES, momentum=0.01, measurements=list(list_measurements()))
    prepare([config])
    execute(config)
    run = Run(config)
    tables = load("adhoc", tmp_path)

    assert not find_failure(Run(config)).exists()

    left_out = [each.name for each in list_measurements().values() if not each.covers(config.norm)]
    assert f"{run.id}: norm.name={name}, so not measured: {', '.join(left_out)}" in capsys.readouterr().out
    measured = {each.name for each in list_measurements().values() if each.covers(config.norm)}
    assert {*tables} == {*measured, "runs"}
    assert set(left_out) >= {"within_epoch", "decomposition"}
    assert ("drift" in left_out) == (name == "ghost")
    assert set(tables["gaps"]["estimator"]) == {"ema", "exact", "precise", "update_bn"}
    assert set(tables["evaluations"]["estimator"]) == {*SOURCES}

    (row,) = tables["runs"].to_dict("records")
    assert row["norm_batch_size"] == {"ghost": 16, "renorm": 64}[name]

    trace = run.trace
    parts = {"ghost": 64 // 16, "renorm": 1}[name]
    assert all(layer.steps[: 2 * parts] == [1] * parts + [2] * parts for layer in trace.layers.values())

    if name == "renorm":  # its own running averages are what `ema` gives of the trace
        replayed = replay(trace, EMA(0.01), [run.steps])[run.steps]
        for layer, moments in running_statistics(run.model_at(run.steps)).items():
            torch.testing.assert_close(moments.var, replayed[layer].var, rtol=1e-5, atol=1e-6)
