"""What committed pages say beside the verdicts: added seeds, devices, the columns of tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.lab.registry import list_measurements
from bnlab.harness.reporting.experiment import Claim, Experiment, above
from bnlab.harness.reporting.frames import interval
from bnlab.harness.reporting.means import SHARES
from bnlab.harness.schema import Column
from experiments.holdout import EXTENDED, FROM_THE_START, count_changes, hold_out
from experiments.pages import adapt_links, describe_devices

EXPERIMENTS = Path("conf/experiment")
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def test_links_to_howtos_lead_from_any_folder_of_results(tmp_path: Path) -> None:
    link = "[how](../../docs/howto/domains.md#two-domains-through-one-layer), [gap](gap/README.md)"

    assert adapt_links(link, REFERENCE, "ANSWERS.md") == link

    adapted = adapt_links(link, tmp_path, "ANSWERS.md")
    path, _, heading = adapted.partition("](")[2].partition(")")[0].partition("#")
    assert (tmp_path / path).resolve() == REFERENCE.parents[1] / "docs/howto/domains.md"
    assert heading == "two-domains-through-one-layer"
    assert adapted.endswith("[gap](gap/README.md)")


def test_links_of_an_experiments_page_lead_from_its_own_folder(tmp_path: Path) -> None:
    page = "[withdrawn](../../../experiments/withdrawn.md), [answers](../ANSWERS.md)"

    adapted = adapt_links(page, tmp_path, "ground/README.md")

    path = adapted.partition("](")[2].partition(")")[0]
    assert (tmp_path / "ground" / path).resolve() == REFERENCE.parents[1] / "experiments/withdrawn.md"
    assert adapted.endswith("[answers](../ANSWERS.md)")


@pytest.mark.parametrize(
    ("trained_on", "is_said"), [(["x86_64"], False), (["NVIDIA H200"], False), (["x86_64", "NVIDIA H200"], True)]
)
def test_devices_are_compared_for_mixed_experiments_alone(trained_on: list[str], is_said: bool) -> None:
    words = describe_devices(pd.DataFrame({"device": trained_on}))
    assert ("| batch, 16 | exact statistics |" in words) == is_said


def test_shares_of_images_are_known_by_their_names() -> None:
    """Their intervals end at 0 and 100%; `experiments.describe` writes what each column means."""
    columns: dict[str, Column] = {}
    for measurement in list_measurements().values():
        columns |= measurement.table.columns
    of_images = {name for name, column in columns.items() if re.match("share of .*(image|batch)", column.meaning)}

    assert of_images <= {*SHARES}
    assert "accuracy" in of_images


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

    claim = Claim("It is positive.", score, above(0.0, "σ", "none"), lines="each")
    experiment = Experiment(figures={}, claims={"positive": claim})
    verdicts = hold_out(experiment, {"runs": runs, "values": values})
    assert verdicts.to_dict("records") == [{"first": "undecided", "added": "holds", "with_all": "holds"}]


def test_the_extended_experiments_are_those_that_got_fifteen_seeds_later() -> None:
    seeds = {}
    for path in REFERENCE.glob("*/tables/runs.parquet"):
        seeds[path.parts[-3]] = {*pd.read_parquet(path)["seed"]}
    of_fifteen = {name for name, of in seeds.items() if of == {*range(15)}}

    begun_with_fifteen = {
        path.stem for path in EXPERIMENTS.glob("*.yaml") if "seed: range(15)" in path.read_text(encoding="utf-8")
    }
    in_part = {*FROM_THE_START} - {*EXTENDED}  # its other part has five seeds still
    assert of_fifteen - begun_with_fifteen - in_part == {*EXTENDED}
