"""The networks of every experiment keep their names, which are digests of settings.

`python -m tests.harness.test_network_names` writes what they are now. An experiment that is not written there is a new
one: its networks have no names to keep.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.common.files import digest
from tests.helpers import Run, plan_jobs

EXPECTED = Path(__file__).with_name("network_names.json")
NAMED_BY_IMAGES = ("fashion",)  # which need not be there
EXPERIMENTS = sorted({path.stem for path in Path("conf/experiment").glob("*.yaml")} - {*NAMED_BY_IMAGES})


@cache
def read_names() -> dict[str, str]:
    """Read the digest that each experiment had."""
    return json.loads(EXPECTED.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def name_networks(experiment: str) -> str:
    """Digest the names of all networks of an experiment, which has the name that its file says."""
    words = [f"experiment={experiment}", "seed=0"]  # which has no part in a name
    if experiment.startswith(("cifar10", "real", "scaled_batches", "step_schedule")):
        words.append("data.download=true")  # the files need not be there
    configs = plan_jobs(words).configs
    settings = yaml.safe_load(Path(f"conf/experiment/{experiment}.yaml").read_text(encoding="utf-8"))
    assert {config.name for config in configs} == {settings["name"]}
    return digest(json.dumps(sorted(Run(config).id for config in configs)), digits=16)


def list_experiments() -> list[Any]:
    """List the experiments; all but each third are slow."""
    slow = {name for place, name in enumerate(EXPERIMENTS) if place % 3}
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in EXPERIMENTS]


@pytest.mark.parametrize("experiment", list_experiments())
def test_networks_keep_their_names(experiment: str) -> None:
    found = name_networks(experiment)
    assert found == read_names().get(experiment, found)


if __name__ == "__main__":
    names = {experiment: name_networks(experiment) for experiment in EXPERIMENTS}
    EXPECTED.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
