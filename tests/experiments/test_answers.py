"""The command `answers`, in this process, and its lines."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.reporting.experiment import Claim, Experiment, above
from experiments import answers


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--help"], 0, "usage: python -m experiments.answers"),
        ([], 2, "error: no results in {}/; run: python -m experiments.sweep experiment=quickstart"),
        (["experiment=momentum"], 2, "error: no results for 'momentum' in {}/; run: "),
        (["momentum=0.1"], 2, "error: momentum: not an option here"),
        (["experiment=nothing"], 2, "error: experiment=nothing: there is no such experiment; choose from momentum"),
    ],
)
def test_what_is_said_without_results(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["answers", *words, *([] if code == 0 else [f"results={tmp_path}"])])
    assert answers.main() == code
    out, err = capsys.readouterr()
    assert (err if code else out).startswith(message.format(tmp_path)) and err.count("\n") <= 2


def test_lines_are_aligned_and_numbers_have_the_digits_of_their_interval() -> None:
    claim = Claim("c", "It is large.", lambda tables: tables["x"], above(1.0), "points", "none")
    experiment = Experiment(name="e", question="?", answers=(), source="", columns={}, figures=(), claims=(claim,))
    found = pd.DataFrame({"claim": "c", "condition": ["a", "longer", "no rows", "exact"],
                          "mean": [-1e-16, 33.444, np.nan, 2.0], "low": [-0.49, np.nan, np.nan, 2.0],
                          "high": [0.49, np.nan, np.nan, 2.0], "n": [5, 1, 0, 3],
                          "verdict": ["fails", "one seed", "undecided", "holds"]})  # fmt: skip
    assert answers.describe(experiment, found) == [
        "  It is large. (points: above 1)",
        "    a        0.00 [-0.49, 0.49]    n=5  fails",
        "    longer   33.4                  n=1  one seed",
        "    no rows                        n=0  undecided",
        "    exact    2.000 [2.000, 2.000]  n=3  holds",
    ]
    assert answers._number(56.2, 45.1, 67.3, 4) == "56 [45, 67]"
