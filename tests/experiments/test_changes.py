"""Results of other settings than an experiment was written for say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.changes import describe_changes
from experiments.places import Place
from experiments.questions import list_questions
from tests.experiments.commands import ROOT


def tables(momenta: list[float | None], **settings: object) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame({"run": "a/seed_0", "seed": [0, 1], "steps": 40, "batch_size": 16, "data": "glyphs",
                         "data.name": "glyphs", "optimizer.lr": 0.1, "model.depth": 3.0, **settings})  # fmt: skip
    return {"runs": runs, "gaps": pd.DataFrame({"momentum": momenta})}


@pytest.mark.parametrize(
    ("momenta", "settings", "said"),
    [
        ([0.01, 0.1, None], {}, ""),
        ([0.01, 0.1], {"seed": [7, 8], "steps": 4, "model.depth": float("nan"), "new": 1}, ""),
        ([0.01, 0.1], {"data": "digits", "data.name": "digits"}, "data digits"),
        ([0.01, 0.1], {"batch_size": [16, 8], "optimizer.lr": 0.25}, "batch size 8, learning rate 0.25"),
        ([0.01, 0.1], {"order": "shuffled", "freeze_at": 1.0}, ""),
        ([0.01, 0.1], {"order": "sorted", "freeze_at": 0.2}, "order sorted, freeze at 0.2"),
        ([0.5], {"model.depth": 20.0}, "model.depth 20, momentum 0.5"),
        ([0.01, 0.1, 1, 2, 3, 4], {}, "momentum 1, 2, 3 and 4"),
        ([0.01, 0.1, 1, 2, 3, 4, 5, 6], {}, "momentum 1, 2, 3, 4 and 2 more"),
    ],
)  # fmt: skip
def test_what_differs_from_the_reference_is_named(
    momenta: list[float | None], settings: dict[str, object], said: str
) -> None:
    told = describe_changes(tables(momenta, **settings), tables([0.01, 0.1]))
    assert told.partition(". Captions")[0] == (said and f"Other than in this question's own sweep: {said}")


def test_what_is_missing_of_the_reference_is_named() -> None:
    """Where something of it is there."""
    own = tables([0.01, 0.1, 0.2, 0.2, 0.2, 0.2], batch_size=[16, 8])
    own["gaps"]["estimator"] = ["ema", "exact", "kalman", "a", "b", "c"]
    results = tables([0.1, 0.5], batch_size=8)
    results["gaps"]["estimator"] = ["exact", "mine"]
    assert describe_changes(results, own) == (
        "Other than in this question's own sweep: momentum 0.5, estimator mine. Missing, of this question's own sweep: "
        "batch size 16, momentum 0.01 and 0.2, estimator a, b, c, ema and kalman. Captions and claims were written "
        "for that sweep."
    )
    own["gaps"] = own["gaps"].drop(columns="estimator")  # of an older version
    assert "estimator" not in describe_changes(results, own)
    assert describe_changes(own, results).startswith(
        "Other than in this question's own sweep: batch size 16, momentum 0"
    )


def test_reference_results_differ_in_nothing() -> None:
    for name in list_questions():
        place = Place(name, name, None)
        if place.is_there:
            known = place.load()
            assert place.describe_changes(known) == "" and describe_changes(known, known) == ""


def test_the_reference_is_found_from_any_folder(tmp_path: Path) -> None:
    """Elsewhere there was none to compare with, and nothing was said of other settings."""
    code = "from experiments.places import Place; print(Place('quickstart', 'quickstart', None).is_there)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
