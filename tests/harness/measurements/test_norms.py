"""Networks with each norm: they train, and what a network has no rows of says so and is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bnlab import replay, running_statistics
from bnlab.estimators import EMA
from bnlab.harness import load, load_images, load_model
from bnlab.harness.lab.registry import list_measurements
from tests.harness.kills import read_trace
from tests.helpers import find_network, sweep_small

OWN = {"ghost": ["norm.batch_size=16"], "renorm": ["momentum=0.01"]}


def sweep_with(norm: str, results: Path, *words: str) -> None:
    """`bnlab sweep` of a small network with a norm, of all digits."""
    fixed = ["data.images=null", "batch_size=64", "steps=null", *OWN.get(norm, [])]
    sweep_small(results, *fixed, f"norm={norm}", *words)


def test_a_network_without_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["epochs=3", "evaluate_at=[0.5,1.0]", "accuracy_at=all", "measurements=[gaps,evaluations,drift]"]
    sweep_with("none", tmp_path, "model=mlp", "model.depth=2", "model.width=64", *words)
    tables = load("adhoc", tmp_path)
    (row,) = tables["runs"].to_dict("records")

    assert not (find_network(tmp_path) / "trace").exists()
    (skipped,) = [line for line in capsys.readouterr().out.splitlines() if "norm.name=none" in line]
    assert row["run"] in skipped and skipped.endswith(": gaps, drift")
    assert {*tables} == {"runs", "evaluations"}

    found = tables["evaluations"]
    assert found["step"].tolist() == [round(row["steps"] / 2), row["steps"]]
    assert set(found["estimator"]) == set(found["statistics_split"]) == {"none"}
    images, labels = load_images("adhoc", row["run"], results=tmp_path)
    with torch.no_grad():
        hits = load_model("adhoc", row["run"], results=tmp_path)(images).argmax(1) == labels
    expected = hits.double().mean().item()
    assert found["accuracy"].iloc[-1] == pytest.approx(expected, abs=1.5 / len(labels)), "one may be on the border"
    assert found["loss"].iloc[-1] < found["loss"].iloc[0]

    empty = found.columns[found.isna().all()]
    assert set(empty) == {"momentum", "disagreement", "logit_gap"}
    assert (found["stat_images"] == 0).all()

    assert row["norm"] == "none"
    assert row["status"] == "finished"
    assert tables["runs"]["norm_batch_size"].isna().all()


SOURCES = ["ema", "exact", "precise", "update_bn", "'test_batch(n=16)'"]


@pytest.mark.parametrize("name", ["ghost", "renorm"])
def test_batch_statistics_are_measured(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = list_measurements()
    words = [f"measurements=[{','.join(every)}]", f"estimator=[{','.join(SOURCES)}]", "momentum=0.01"]
    sweep_with(name, tmp_path, "epochs=1", "model.depth=3", "data.shift=1", "evaluate_at=[0.5,1.0]", *words)
    tables = load("adhoc", tmp_path)
    (row,) = tables["runs"].to_dict("records")

    (said,) = re.findall(f"{row['run']}: norm.name={name}, .*: (.*)", capsys.readouterr().out)
    left_out = said.split(", ")
    assert {*tables} == {*(each.name for each in every.values()), "runs"} - {*left_out}
    assert set(left_out) >= {"within_epoch", "decomposition"}
    assert ("drift" in left_out) == (name == "ghost")
    assert set(tables["gaps"]["estimator"]) == {"ema", "exact", "precise", "update_bn"}
    assert set(tables["evaluations"]["estimator"]) == {name.strip("'") for name in SOURCES}

    assert row["norm_batch_size"] == {"ghost": 16, "renorm": 64}[name]

    trace = read_trace(find_network(tmp_path))
    parts = {"ghost": 64 // 16, "renorm": 1}[name]
    assert all(layer.steps[: 2 * parts] == [1] * parts + [2] * parts for layer in trace.layers.values())

    if name == "renorm":  # its own running averages are what `ema` gives of the trace
        replayed = replay(trace, EMA(0.01), [row["steps"]])[row["steps"]]
        for layer, moments in running_statistics(load_model("adhoc", row["run"], results=tmp_path)).items():
            torch.testing.assert_close(moments.var, replayed[layer].var, rtol=1e-5, atol=1e-6)
