"""Trainings that are killed and go on are bit for bit those that were not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnlab.harness import load
from bnlab.harness.settings import COMPONENTS
from tests.conftest import small_config
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import Run, find_network, run_job, sweep_small

SWEEP = ("batch_size=64", "steps=12", "evaluate_at=[5,12]", "accuracy_at=all",
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
    whole = small_config(tmp_path / "whole", *SWEEP, *words.split())
    killed = replace(whole, results=str(tmp_path / "killed"))
    run_job(whole)

    for kill in kills:
        with interrupted_at(kill), pytest.raises(KeyboardInterrupt):
            run_job(killed)
    run_job(killed)

    assert_same(Run(killed), Run(whole))
    measured = load("adhoc", killed.results)["evaluations"]
    assert measured["accuracy"].notna().all()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with a training that was interrupted. Not to be changed."""
    results = tmp_path_factory.mktemp("begun")
    with interrupted_at(3):
        sweep_small(results, *SWEEP, expect=130)
    return results


@pytest.fixture
def results(begun: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(begun, tmp_path / "results"))


def begin_elsewhere(results: Path, torch: str = "", **differences: Any) -> dict[str, Any]:
    """Let the training have begun in another environment; that of this machine."""
    path = find_network(results) / "environment.json"
    here: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    versions = here["versions"] | ({"torch": torch} if torch else {})
    path.write_text(json.dumps(here | differences | {"versions": versions}), encoding="utf-8")
    return here


def test_a_training_that_goes_on_with_other_versions_says_which(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = begin_elsewhere(results, torch="2.0.1", threads=64)

    sweep_small(results, *SWEEP)

    said = capsys.readouterr().err
    assert f"torch 2.0.1 (here {here['versions']['torch']})" in said
    assert f"threads=64 (here {here['threads']})" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("begun_on", [{"vector_instructions": "SVE256"}, {"device": "aarch64"}, {}])
def test_a_training_that_goes_on_on_another_processor_says_so_once(
    begun_on: dict[str, str], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = begin_elsewhere(results, **begun_on)

    sweep_small(results, *SWEEP)

    warned = capsys.readouterr().err
    assert warned.count("\n") == len(begun_on)
    there = {**here, **begun_on}
    assert not begun_on or f"{there['device']} with {there['vector_instructions']}" in warned
