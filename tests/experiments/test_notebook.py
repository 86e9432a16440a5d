"""What is edited between two sweeps of one process, as in a notebook; and code that people write in their models."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

import bnlab.harness
from bnlab.harness.errors import UserError
from tests.experiments.commands import Call, Write
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import Run, find_network, plan_jobs, plan_network

SMALL = ("steps=12", "batch_size=64", "data.images=400", "evaluate_at=[5,12]", "threads=1", "measurements=log")
NET = """
import random

import numpy as np
import torch
from torch import nn


class Noisy(nn.Module):
    \"\"\"Draws from numpy's and Python's generators, and has a layer with a slash in its name.\"\"\"

    def __init__(self, channels, size, classes):
        super().__init__()
        self.parts = nn.ModuleDict({"a/b": nn.Conv2d(channels, 8, 3), "norm": nn.BatchNorm2d(8)})
        self.head = nn.Linear(8, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(0.1 * np.random.randn(classes, 8)))

    def forward(self, x):
        x = self.parts["norm"](self.parts["a/b"](x)).relu()
        if self.training and random.random() < 0.5:
            x = x * float(np.random.rand())
        return self.head(x.mean((2, 3)))


def make(channels, size, classes, width: int = None, stages=None):
    return Noisy(channels, size, classes)
"""
PICTURES = """
import numpy as np
import torch


class Flipped:
    def __init__(self, images, labels, share):
        self.images, self.labels, self.share = images, labels, share

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index])
        return (image.flip(-1) if torch.rand(()) < self.share else image), int(self.labels[index])


def make(root, share=0.5):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    test = images[:12], labels[:12]
    return (images, labels), test, Flipped(images, labels, share)
"""


def name(*words: str) -> str:
    """Name the network of a command line."""
    return plan_network(*words).id


def test_a_default_that_was_changed_is_another_network(write: Write) -> None:
    text = "def make(channels, size, classes, width=8):\n    raise NotImplementedError\n"
    write(text, "defaults")
    before = plan_network("model=defaults.make").config.model.arguments["width"]  # type: ignore[attr-defined]

    write(text.replace("8", "16"), "defaults")

    now = plan_network("model=defaults.make").config.model.arguments["width"]  # type: ignore[attr-defined]
    assert (before, now) == (8, 16)


def test_a_helper_that_was_imported_again_is_other_code_and_one_that_was_not_is_none(write: Write) -> None:
    """What runs is the code as it was when it was imported."""
    write("WIDTH = 8\n", "helping")
    write("import helping\n\n\ndef make(channels, size, classes):\n    return helping.WIDTH\n", "helped")
    before = name("model=helped.make")
    file = Path(str(sys.modules["helping"].__file__))

    file.write_text("WIDTH = 16\n", encoding="utf-8")
    assert name("model=helped.make") == before

    importlib.reload(sys.modules["helping"])
    assert name("model=helped.make") != before


def test_what_is_typed_into_a_notebook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it calls there could change, and no file would show it."""
    typed = types.ModuleType("typed")
    exec("def make(channels, size, classes):\n    return act()\n", typed.__dict__)
    monkeypatch.setitem(sys.modules, "typed", typed)

    with pytest.raises(UserError, match=r"typed: .*\bmodule\b"):
        name("model=typed.make")


def test_an_experiment_that_was_edited_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf" / "experiment" / "edited.yaml"
    file.parent.mkdir(parents=True)
    sizes = []
    for size in (32, 64):
        file.write_text(f"# @package _global_\nname: edited\nbatch_size: {size}\n", encoding="utf-8")
        (config,) = plan_jobs(("experiment=edited",)).configs
        sizes.append(config.batch_size)

    assert sizes == [32, 64]


def test_arguments_of_random_transforms_are_part_of_the_name(write: Write) -> None:
    """No sample of what is drawn tells near ones apart; the folder does not count."""
    write(PICTURES, "pictures")
    small = ("data=pictures.make", "batch_size=16", "steps=2")

    first, *others = plan_jobs((*small, "data.share=0.5,0.51,0.52,0.53"), multirun=True).configs

    assert len({Run(config).id for config in (first, *others)}) == 4
    assert name(*small) == Run(first).id == name(*small, "data.root=elsewhere")


def test_networks_that_draw_from_all_generators_go_on_exactly(write: Write, call: Call, tmp_path: Path) -> None:
    write(NET, "noisy")
    words = (*SMALL, "model=noisy.make")
    whole = tmp_path / "whole"
    assert call("sweep", *words, f"results={whole}").code == 0

    for kills in ((), (4,), (7, 9)):
        results = tmp_path / f"killed after {kills}"
        for kill in kills:
            with interrupted_at(kill):
                assert call("sweep", *words, f"results={results}").code == 130
        assert call("sweep", *words, f"results={results}").code == 0

        assert_same(find_network(results), find_network(whole))


def test_arguments_that_people_write(write: Write) -> None:
    """A default of None beside `int`, and lists in lists."""
    write(NET, "noisy")

    model = plan_network("model=noisy.make", "model.stages=[[1,2],[5,6]]").config.model
    assert model.arguments == {"width": None, "stages": ((1, 2), (5, 6))}  # type: ignore[attr-defined]
    (config,) = plan_jobs(("model=noisy.make", "model.width=3")).configs
    assert config.model.arguments["width"] == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weight_averages": "high"}, "^weight_averages=high: "),
        ({"evaluate_on": None}, "^evaluate_on=null: "),
        ({"measurements": None}, "^measurements=null: "),
        ({"seed": 2**40}, "^seed=1099511627776: .*4,294,967,295"),
    ],
)
def test_values_of_another_kind_are_named(settings: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        bnlab.harness.sweep(**settings, results=tmp_path)  # type: ignore[arg-type]
