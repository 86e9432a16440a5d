"""`python -m experiments.results`: what is kept of an experiment in results/reference."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bnlab.harness import planning
from experiments import answers
from experiments import results as command
from experiments.questions import find_experiment
from tests.experiments.commands import Call


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--help"], 0, "usage: python -m experiments.results"),
        (["seed=0"], 2, "error: seed=0: there are experiment=NAME and dry_run=true"),
        (["experiment=nothing"], 2, "error: experiment=nothing: there is no such experiment; choose from "),
        (["dry_run=maybe"], 2, "error: dry_run=maybe: Value 'maybe' is not a valid bool"),
        (["experiment=quickstart", "experiment=momentum"], 2, "error: experiment=momentum: experiment is given twice"),
    ],
)
def test_words(words: list[str], code: int, message: str, call: Call) -> None:
    returned, out, err = call("results", *words)
    assert returned == code and (err if code else out).startswith(message)


@pytest.mark.parametrize(("value", "is_dry"), [("true", True), ("True", True), ("false", False)])
def test_a_dry_run_makes_nothing(value: str, is_dry: bool, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    made: list[str] = []
    monkeypatch.setattr(planning, "plan", lambda *_: ["about an hour"])
    monkeypatch.setattr(command, "_make", lambda name: made.append(name) or 1)
    monkeypatch.setattr(command, "find_places", lambda words: [])
    monkeypatch.setattr(answers, "write_answers", lambda found: None)
    returned, out, err = call("results", "experiment=quickstart", f"dry_run={value}")
    assert (returned, out, err) == (0 if is_dry else 1, "about an hour\n", "")
    assert made == ([] if is_dry else ["quickstart"])


def test_what_is_kept(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The declared columns of all rows, the figures, and what they were made with; nothing of an earlier time."""
    (results / "adhoc").rename(results / "quickstart")
    (results / "quickstart" / "figures").mkdir()
    Image.new("RGB", (8, 8), "#d55e00").save(results / "quickstart" / "figures" / "gap.png")
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(command, "REFERENCE", tmp_path / "reference")
    kept = tmp_path / "reference" / "quickstart"
    kept.mkdir(parents=True)
    (kept / "old.png").write_bytes(b"")
    (tmp_path / "reference" / "environment.json").write_text('{"other": []}')
    command.keep("quickstart")
    assert sorted(path.name for path in kept.iterdir()) == [
        "evaluations.parquet",
        "gap.png",
        "gaps.parquet",
        "runs.parquet",
    ]
    assert Image.open(kept / "gap.png").convert("RGB").getpixel((4, 4)) == (0xD5, 0x5E, 0x00)
    gaps, declared = pd.read_parquet(kept / "gaps.parquet"), find_experiment("quickstart").columns["gaps"]
    assert {*declared, "run", "step", "estimator"} <= {*gaps} and "kl" not in gaps and len(gaps)
    environment = json.loads((tmp_path / "reference" / "environment.json").read_text())
    assert set(environment) == {"other", "quickstart"} and "torch" in environment["quickstart"][0]["versions"]
