"""Trainings that are killed and go on are bit for bit those that were not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.components import COMPONENTS
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import find_network, sweep_small

SWEEP = ("data.images=null", "batch_size=64", "steps=12", "evaluate_at=[5,12]", "accuracy_at=all",
         "measurements=evaluations")  # fmt: skip
OF_NORMS = {"ghost": "norm.batch_size=16", "renorm": "momentum=0.01"}
CASES = {  # further words, and the updates after which the training is killed
    **{norm: (f"norm={norm} {OF_NORMS.get(norm, '')}", (8,)) for norm in COMPONENTS["norm"]},
    "weights averaged, in bfloat16": ("averaging=swa precision=bfloat16", (1, 9, 11)),
    "averages beside": ("weight_averages=[0.5,0.9]", (3, 8)),
    "frozen": ("freeze_at=0.5 freeze_with=exact", (5, 6)),
    "two moments of each weight": ("optimizer=adamw data.shift=1 order=blocks:4", (7,)),
}
ALIKE = ("batch", "ghost", "layer", "instance", "gain_control", "none")  # norms that have the same files as others


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in ALIKE)) for case in CASES])
def test_killed_and_continued(case: str, tmp_path: Path) -> None:
    words, kills = CASES[case]
    sweep_small(tmp_path / "whole", *SWEEP, *words.split())

    for kill in kills:
        with interrupted_at(kill):
            sweep_small(tmp_path / "killed", *SWEEP, *words.split(), expect=130)
    sweep_small(tmp_path / "killed", *SWEEP, *words.split())

    assert_same(find_network(tmp_path / "killed"), find_network(tmp_path / "whole"))
    measured = load("adhoc", tmp_path / "killed")["evaluations"]
    assert measured["accuracy"].notna().all()


def test_a_training_that_goes_on_with_other_versions_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted_at(3):
        sweep_small(tmp_path, *SWEEP, expect=130)
    path = find_network(tmp_path) / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    versions = environment["versions"] | {"torch": "2.0.1"}
    path.write_text(json.dumps(environment | {"versions": versions, "threads": 64}), encoding="utf-8")
    capsys.readouterr()

    sweep_small(tmp_path, *SWEEP)

    begun = f"torch 2.0.1 (here {environment['versions']['torch']}), threads=64 (here {environment['threads']})"
    assert f"was begun with {begun}; the table runs names what it was begun with\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ({"vector_instructions": "SVE256"}, "begun on another kind of processor, {device} with SVE256, and goes on"),
        ({"device": "aarch64"}, "begun on another kind of processor, aarch64 with {vector_instructions}, and goes on"),
        ({}, ""),
    ],
)
def test_a_training_that_goes_on_on_another_processor_says_so_once(
    begun: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted_at(3):
        sweep_small(tmp_path, *SWEEP, expect=130)
    path = find_network(tmp_path) / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(environment | begun), encoding="utf-8")
    capsys.readouterr()

    sweep_small(tmp_path, *SWEEP)

    warned = capsys.readouterr().err
    assert warned.count("\n") == warned.count("another kind of processor") == len(begun)
    assert said.format(**environment) in warned
