"""What added seeds say alone, on planted verdicts and on seeds with a planted effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, above
from bnlab.harness.reporting.frames import interval
from experiments.holdout import EXTENDED, FROM_THE_START, count_changes, hold_out

EXPERIMENTS = Path("conf/experiment")
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def test_changes_are_counted() -> None:
    planted = [
        ("undecided", "holds", "holds"),
        ("not tested", "undecided", "fails"),
        ("undecided", "fails", "holds"),
        ("holds", "holds", "holds"),
        ("fails", "undecided", "undecided"),
        ("undecided", "undecided", "undecided"),
    ]
    verdicts = pd.DataFrame(planted, columns=["first", "added", "with_all"])
    counts = {"conditions": 6, "decided": 3, "alike": 1, "undecided": 1, "reversed": 1, "undone": 1}
    assert count_changes(verdicts) == counts


def test_each_share_of_the_seeds_decides_for_itself() -> None:
    unsure = [2.0, -1.0, 1.5, -0.5, 1.0]  # mean 0.6, and wide
    high = [1.0, 1.1, 0.9, 1.2, 0.8] * 2
    runs = pd.DataFrame({"run": [f"r{seed}" for seed in range(15)], "seed": range(15)})
    values = pd.DataFrame({"run": runs["run"], "x": [*unsure, *high]})

    def score(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return interval(tables["values"].merge(tables["runs"], on="run"), "x", ())

    claim = Claim("It is positive.", score, above(0.0, "σ", "none"))
    experiment = Experiment(bears_on=(), figures={}, claims={"positive": claim})
    verdicts = hold_out(experiment, {"runs": runs, "values": values})
    assert verdicts.to_dict("records") == [{"first": "undecided", "added": "holds", "with_all": "holds"}]


def test_the_extended_experiments_are_those_that_got_fifteen_seeds_later() -> None:
    seeds = {path.parts[-3]: {*pd.read_parquet(path)["seed"]} for path in REFERENCE.glob("*/tables/runs.parquet")}
    of_fifteen = {name for name, of in seeds.items() if of == {*range(15)}}

    begun_with_fifteen = {path.stem for path in EXPERIMENTS.glob("*.yaml") if "seed: range(15)" in path.read_text()}

    in_part = {*FROM_THE_START} - {*EXTENDED}  # its other part has five seeds still
    assert of_fifteen - begun_with_fifteen - in_part == {*EXTENDED}
