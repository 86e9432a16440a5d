"""What of the user's own can be chosen, as any other choice of a group: on the command line, swept, and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bnlab.harness.artifacts.norms import Batch
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError
from tests.experiments.commands import Write
from tests.helpers import plan_jobs, plan_network

MODULE = """
import numpy as np
from torch import nn


def make_net(channels, image_size, classes, width: int = 4, widths=(4, 8), act="relu"):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(classes))


def make_norm(channels, momentum: float = 0.1):
    return nn.BatchNorm2d(channels, momentum=momentum)


def make_data(root):
    draw = np.random.default_rng(len(root))
    images, labels = draw.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 2
    return (images, labels), (images[:8], labels[:8])


class Net:
    def __init__(self, channels, image_size, classes, *, depth=1):
        raise AssertionError("it is only built to be trained")
"""


@pytest.fixture(autouse=True)
def mine(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(MODULE, "mine")
    monkeypatch.chdir(tmp_path)


def plan(*words: str) -> list[Any]:
    """The configurations of a sweep's jobs."""
    return plan_jobs([*words], multirun=True).configs


def test_beside_choices_of_bnlab() -> None:
    first, second = plan("norm=batch,mine.make_norm")
    assert type(first.norm) is Batch
    assert (second.norm.name, second.norm.arguments) == ("mine.make_norm", {"momentum": 0.1})


def test_arguments_are_swept() -> None:
    jobs = plan("model=mine.make_net", "model.width=8,16", "norm=batch")
    assert [each.model.arguments["width"] for each in jobs] == [8, 16]
    assert len({Run(each).id for each in jobs}) == 2


def test_folders_of_data_are_swept_and_one_with_a_comma_is_quoted() -> None:
    assert [each.data.root for each in plan("data=mine.make_data", "data.root=one,three", "batch_size=8")] == [
        "one",
        "three",
    ]
    (job,) = plan("data=mine.make_data", "data.root='a,b'", "batch_size=8")
    assert job.data.root == "a,b"


def test_lists_are_values() -> None:
    jobs = plan("model=mine.make_net", "model.widths=[4,4],[[1,2],3]")
    assert [each.model.arguments["widths"] for each in jobs] == [(4, 4), ((1, 2), 3)]


def test_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "conf" / "experiment" / "first.yaml"
    file.parent.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /model: mine.make_net\nname: first\nmodel:\n  width: 6\n"
    file.write_text(text, encoding="utf-8")

    (job,) = plan("experiment=first", "model.act=tanh")

    assert job.model.arguments == {"width": 6, "widths": (4, 8), "act": "tanh"}


@pytest.mark.parametrize("name", ["mine.make_net", "mine.Net"])
def test_its_name_is_that_of_its_settings_and_code(name: str, write: Write) -> None:
    run = plan_network(f"model={name}")
    assert run.settings["model"].keys() == {"name", "source"}, "defaults are left off"

    write(MODULE.replace("make_norm", "make_other"), "mine")
    assert plan_network(f"model={name}").id != run.id


MISTAKES = {
    "a misspelt argument": ("model=mine.make_net", "model.widht=8", "did you mean model.width?"),
    "a value of another type": ("model=mine.make_net", "model.width=wide", "model.width=wide: must be a whole number"),
    "none of the name": ("model=mine.make_nte", "", "model=mine.make_nte: cannot be imported, AttributeError"),
    "an unknown choice": ("model=cn", "", "did you mean cnn?"),
    "no group": ("modle=mine.make_net", "", "did you mean model"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str) -> None:
    *words, message = MISTAKES[case]
    with pytest.raises(UserError) as error:
        plan(*filter(None, words))
    assert message in str(error.value)
    assert str(error.value).count("\n") < 2
    assert "Error in call to target" not in str(error.value)
