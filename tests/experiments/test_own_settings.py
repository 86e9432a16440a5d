"""The arguments of a user's own functions are settings: set, swept, hashed, columns of `runs`."""

from __future__ import annotations

import importlib
from dataclasses import asdict

import pytest
import yaml

from bnlab.harness import load
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.settings import network_hash, restore_config
from bnlab.harness.errors import UserError
from bnlab.lab.compose import plan_jobs
from tests.experiments.commands import Call, Write

MODULE = """
import numpy as np
from torch import nn

CALLS = []


def make_model(channels, image_size, classes, width=4, dropout: float = 0.0, kind="plain", sizes=(3,), act=nn.ReLU):
    CALLS.append((width, dropout, kind, sizes))
    layers = [nn.Conv2d(channels, width, sizes[0]), nn.BatchNorm2d(width), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, classes))


class Net(nn.Module):
    def __init__(self, channels, image_size, classes, *, width):
        super().__init__()
        self.layers = make_model(channels, image_size, classes, width)

    def forward(self, x):
        return self.layers(x)


def make_data(noise=0.0):
    draw = np.random.default_rng(0)
    parts = [(draw.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 3) for n in (40, 12)]
    parts[0][0][:, 0] += np.uint8(noise)
    return parts


def clashes(channels, image_size, classes, name="a"):
    return make_model(channels, image_size, classes)
"""
SMALL = ("data=own.make_data", "steps=4", "batch_size=12", "measurements=[gaps]")


@pytest.fixture
def mine(write: Write) -> None:
    write(MODULE, "own")


def test_arguments_are_settings_of_the_network(mine: None) -> None:
    plain = plan_jobs(["model=own.make_model", *SMALL, *[]]).configs[0]
    wide = plan_jobs(["model=own.make_model", *SMALL, *["model.width=8"]]).configs[0]
    same = plan_jobs(["model=own.make_model", *SMALL, *["model.width=4"]]).configs[0]

    assert asdict(wide.model)["width"] == 8
    assert network_hash(plain) == network_hash(same) != network_hash(wide)


def test_a_sweep_over_arguments_fills_columns_of_runs(mine: None, call: Call, tmp_path: object) -> None:
    words = ("-m", "model=own.make_model", *SMALL, "model.width=2,3", "data.noise=0,9", f"results={tmp_path}/r")

    code, _, err = call("sweep", *words, "model.kind=other", "model.sizes=[2,2]")

    assert code == 0, err

    runs = load("adhoc", f"{tmp_path}/r")["runs"]
    assert sorted(zip(runs["model.width"], runs["data.noise"], strict=True)) == [(2, 0), (2, 9), (3, 0), (3, 9)]
    assert {*runs["model.kind"]} == {"other"}
    assert {*runs["model.dropout"]} == {0.0}
    assert runs["model.source"].nunique() == runs["data.source"].nunique() == 1
    assert len({*runs["run"]}) == 4


def test_the_function_is_given_the_values(mine: None) -> None:
    words = ["model=own.make_model", *SMALL, "model.width=6", "model.dropout=1", "model.kind=b", "model.sizes=[2,4]"]
    config = plan_jobs(words).configs[0]
    build_model(config.model, channels=3, image_size=8, classes=3, seed=0)

    assert importlib.import_module("own").CALLS[-1] == (6, 1.0, "b", (2, 4))


def test_a_class_is_a_function_too_and_an_argument_without_a_default_has_to_be_set(mine: None) -> None:
    config = plan_jobs(["model=own.Net", *SMALL, "model.width=5"]).configs[0]
    assert asdict(config.model)["width"] == 5

    with pytest.raises(UserError, match=r"model\.width: has no value.*add model\.width="):
        plan_jobs(["model=own.Net", *SMALL])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("model.widht=8", "no setting model.widht; did you mean model.width"),
        ("model.dropout=much", "model.dropout: Value .much."),
        ("model.act=ReLU", "no setting model.act"),
        ("data.root=photos", "data.root=photos: "),
    ],
)
def test_what_the_function_does_not_take_is_refused(mine: None, word: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        plan_jobs(["model=own.make_model", *SMALL, word])


def test_choices_that_have_a_setting_are_those_that_help_lists(mine: None) -> None:
    plan_jobs(["model=own.make_model", *SMALL])

    with pytest.raises(UserError, match=r"this data has no flip; .*, data=fashion_mnist has$"):
        plan_jobs(["data.flip=true"])


def test_an_argument_with_the_name_of_a_setting_is_refused(mine: None) -> None:
    with pytest.raises(UserError, match=r"own\.clashes: its argument name .* rename it"):
        plan_jobs(["model=own.clashes", *SMALL])


def test_a_word_in_a_column_of_numbers_makes_it_text(mine: None, call: Call, tmp_path: object) -> None:
    results = f"results={tmp_path}/r"
    for words in (["model.width=4"], ["model=own.make_model", "model.kind=7", "model.width=5"]):
        code, _, err = call("sweep", *SMALL, *words, results)
        assert code == 0, err

    runs = load("adhoc", f"{tmp_path}/r")["runs"].sort_values("model.width")

    assert list(runs["model.width"]) == [4, 5]
    assert list(runs["model.kind"].isna()) == [True, False]


def test_a_job_on_own_functions_is_made_again_of_plain_settings(mine: None) -> None:
    """As they stand in the file of a network, which does not know the class of the arguments."""
    words = ["model=own.make_model", *SMALL, "model.width=6", "model.sizes=[2,4]", "data.noise=1"]
    config = plan_jobs(words).configs[0]

    settings = yaml.safe_load(yaml.safe_dump(asdict(config)))

    assert network_hash(restore_config(settings)) == network_hash(config)
