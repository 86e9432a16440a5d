"""What committed pages say beside the verdicts: links, devices, the columns of tables."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from bnlab.harness.lab.registry import find_question, list_measurements
from bnlab.harness.reporting.means import SHARES
from bnlab.harness.schema import Column
from experiments.devices import ON_BOTH
from experiments.pages import adapt_links

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


def test_shares_of_images_are_known_by_their_names() -> None:
    """Their intervals end at 0 and 100%; `experiments.describe` writes what each column means."""
    columns: dict[str, Column] = {}
    for measurement in list_measurements().values():
        columns |= measurement.table.columns
    of_images = {name for name, column in columns.items() if re.match("share of .*(image|batch)", column.meaning)}

    assert of_images <= {*SHARES}
    assert "accuracy" in of_images


def test_pages_compare_devices_where_networks_were_trained_on_both() -> None:
    for path in REFERENCE.glob("*/tables/runs.parquet"):
        name = path.parts[-3]
        is_gpu = pd.read_parquet(path)["device"].str.contains("NVIDIA")
        assert (ON_BOTH in find_question(name).remarks) == (is_gpu.any() and not is_gpu.all()), name
