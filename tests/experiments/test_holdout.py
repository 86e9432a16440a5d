"""What added seeds say alone, on seeds with planted effects."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.reporting.experiment import Claim, Experiment, above
from bnlab.harness.reporting.frames import interval
from bnlab.harness.reporting.tables import load
from experiments.holdout import EXTENDED, FIRST_SEEDS, hold_out

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
UNSURE = [2.0, -1.0, 1.5, -0.5, 1.0]  # mean 0.6, and wide
HIGH, LOW = [1.0, 1.1, 0.9, 1.2, 0.8] * 2, [-3.0, -3.1, -2.9, -3.2, -2.8] * 2
WIDE = [9.0, -8.0] * 5


@pytest.mark.parametrize(
    ("added", "counts"),
    [
        (HIGH, {"decided": 1, "alike": 1, "undecided": 0, "reversed": 0}),
        (LOW, {"decided": 1, "alike": 1, "undecided": 0, "reversed": 0}),
        (WIDE, {"decided": 0, "alike": 0, "undecided": 0, "reversed": 0}),
    ],
)
def test_conditions_that_more_seeds_decide(added: list[float], counts: dict[str, int]) -> None:
    runs = pd.DataFrame({"run": [f"r{seed}" for seed in range(15)], "seed": range(15)})
    values = pd.DataFrame({"run": runs["run"], "x": [*UNSURE, *added]})

    def score(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
        return interval(tables["values"].merge(tables["runs"], on="run"), "x", ())

    claim = Claim("It is positive.", score, above(0.0, "σ", "none"))
    experiment = Experiment(answers=(), figures={}, claims={"positive": claim})
    assert hold_out(experiment, {"runs": runs, "values": values}) == {"conditions": 1, **counts}


@pytest.mark.parametrize("name", EXTENDED)
def test_extended_experiments_have_more_seeds(name: str) -> None:
    seeds = {*load(name, REFERENCE)["runs"]["seed"]}
    assert seeds == {*range(15)} and FIRST_SEEDS == 5
