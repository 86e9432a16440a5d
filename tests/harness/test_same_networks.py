"""While the harness is rebuilt: networks keep their names, and train to the same numbers, bit for bit.

`python -m tests.harness.test_same_networks` writes what they are now. An experiment that is not written there is a new
one: its networks have no names to keep.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bnlab.common.files import digest
from bnlab.harness.artifacts.data import augment, load_dataset
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.training import Batches, Seeds, TrainingState, train
from tests.helpers import Run, plan_jobs

EXPECTED = Path(__file__).with_name("same_networks.json")
WRITTEN: dict[str, str] = json.loads(EXPECTED.read_text(encoding="utf-8"))
EXPERIMENTS = sorted(path.stem for path in Path("conf/experiment").glob("*.yaml"))
NORMS = ("batch", "ghost", "renorm", "group", "layer", "instance", "gain_control", "none")
SMALL = {"ghost": ["norm.batch_size=4"], "renorm": ["momentum=0.01"]}
JOBS = [
    *([f"norm={norm}", "model.width=16", *SMALL.get(norm, [])] for norm in NORMS),
    *(["model=resnet", "model.depth=8", f"norm={norm}", *SMALL.get(norm, [])] for norm in NORMS),
    *(
        ["model=mlp", "model.width=16", f"norm={norm}", *SMALL.get(norm, [])]
        for norm in NORMS
        if norm not in ("instance", "gain_control")
    ),
    ["model=plain", "model.depth=4", "norm.every_second=group"],
    ["optimizer=adamw", "data.shift=1"],
    ["order=blocks:4", "optimizer.schedule=step"],
    ["data=glyphs", "data.images=400", "data.fonts=dejavu"],
]


def name_networks(experiment: str) -> str:
    """Digest the names of all networks of an experiment, which has the name that its file says."""
    words = [f"experiment={experiment}", "seed=0"]  # which has no part in a name
    if experiment.startswith("cifar10"):
        words.append("data.download=true")  # the files need not be there
    configs = plan_jobs(words).configs
    settings = yaml.safe_load(Path(f"conf/experiment/{experiment}.yaml").read_text(encoding="utf-8"))
    assert {config.name for config in configs} == {settings["name"]}
    return digest(json.dumps(sorted(Run(config).id for config in configs)), digits=16)


def train_network(words: list[str]) -> str:
    """Digest weights, buffers and loss after three updates."""
    config = replace(plan_jobs([*words, "batch_size=16", "steps=8"]).configs[0], device="cpu")
    data = load_dataset(config.data)
    torch.manual_seed(0)
    _, channels, size, _ = data.train.images.shape
    model = build_model(
        config.model, config.norm, channels=channels, image_size=size, classes=data.classes, seed=1, steps=8
    )
    batches = Batches(data.train, 16, Seeds.of(0), config.data.shift, config.data.flips, config.order)
    progress = TrainingState(model, config.optimizer.build(model.parameters(), 16), step=0)
    for _ in train(progress, batches, config.optimizer, 8, until=3):
        pass

    values = [value.double().sum().item() for value in model.state_dict().values()]
    images = augment(data.test.images[:4], torch.Generator().manual_seed(0), shift=1, flip=True)
    return digest(json.dumps([progress.loss, values, images.double().sum().item()]), digits=16)


def describe() -> dict[str, str]:
    return {
        **{name: name_networks(name) for name in EXPERIMENTS},
        **{" ".join(job): train_network(job) for job in JOBS},
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_networks_keep_their_names(experiment: str) -> None:
    found = name_networks(experiment)
    assert found == WRITTEN.get(experiment, found)


@pytest.mark.parametrize("words", JOBS, ids=" ".join)
def test_networks_train_to_the_same_numbers(words: list[str]) -> None:
    assert train_network(words) == WRITTEN[" ".join(words)]


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(describe(), indent=1) + "\n", encoding="utf-8")
