"""What a network is named by: what makes another one, and what leaves it as it is; the steps that are measured."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from bnlab.harness.settings import list_settings
from tests.helpers import Config, Run, plan_network


@cache
def plan(words: str = "") -> Config:
    """The job of a command line. Not to be changed."""
    return plan_network(*words.split()).config


def name(config: Config) -> str:
    """The name of a job's network, without the seed."""
    return Run(config).folder.parent.name


def test_defaults_are_left_off() -> None:
    """So that a field that is added later leaves old networks their names."""
    written_out = plan("batch_size=128 epochs=10 optimizer.lr=0.1 order=shuffled model.depth=3")

    assert name(plan()) == name(written_out) == "9e84def482"
    assert name(replace(plan(), steps=5, epochs=3)) == name(replace(plan(), steps=5)), "the length is set in steps"


@pytest.mark.parametrize(
    "words",
    [
        "evaluate_at=[1] accuracy_at=all evaluate_on=[val,test] shifts=[none,noise:1]",
        "momentum=[0.5] estimator=exact population=val measurements=evaluations",
        "device=cpu threads=1 results=x name=x dry_run=true seed=3",
        "freeze_with=exact",  # without freeze_at
    ],
)
def test_what_leaves_the_network_as_it_is(words: str) -> None:
    assert name(plan(words)) == name(plan())


SETTINGS: list[dict[str, Any]] = [
    *({"batch_size": 32}, {"epochs": 3}, {"steps": 3}, {"averaging": "swa"}, {"averaging": "ema"}),
    *({"precision": "bfloat16"}, {"weight_averages": 0.9}, {"weight_averages": [0.9, 0.99]}),
    *({"order": "sorted"}, {"order": "blocks:16"}, {"order": "blocks:32"}, {"last_batch": "drop"}),
    *({"freeze_at": 0.5}, {"freeze_at": 0.8}, {"freeze_at": 0.8, "freeze_with": "exact"}),
]
PARTS: dict[str, list[dict[str, Any]]] = {
    "optimizer": [{"lr": 0.2}, {"schedule": "step"}, {"momentum": 0.5}],
    "model": [{"depth": 2}, {"pool_every": 2}],
    "norm": [{"every_second": "group"}, {"every_second": "group", "groups": 4}],
    "data": [{"images": 1000}, {"shift": 1}],
}
CHOICES = """
optimizer=adamw
model=resnet
norm=ghost
norm=ghost norm.batch_size=64
norm=renorm momentum=0.01
norm=group
norm=group norm.groups=4
norm=layer
norm=none
data=glyphs
data=glyphs data.fonts=dejavu
"""


def test_what_makes_another_network() -> None:
    others = [replace(plan(), **changes) for changes in SETTINGS]
    for part, choices in PARTS.items():
        usual = getattr(plan(), part)
        others += [replace(plan(), **{part: replace(usual, **changes)}) for changes in choices]
    others += [plan(words) for words in CHOICES.strip().splitlines()]

    assert len({name(config) for config in [plan(), *others]}) == len(others) + 1


def test_what_is_measured_and_how_makes_no_other_network() -> None:
    """Each setting has a role; those of the training name the network, and no others do."""
    named = {"order": "sorted", "last_batch": "drop", "precision": "bfloat16", "averaging": "swa", "steps": 3}
    roles = {each: setting.role for each, setting in list_settings(Config).items()}
    assert {*named} < {each for each, role in roles.items() if role == "network"}
    assert {"momentum", "estimator", "measurements"} < {each for each, role in roles.items() if role == "measuring"}
    assert {"name", "device", "log"} < {each for each, role in roles.items() if role == "running"}


@pytest.mark.parametrize(
    ("at", "steps", "expected"),
    [
        ("final", 41, [41]),
        ("log", 1, [1]),
        ("log", 41, [1, 2, 3, 5, 8, 12, 18, 27, 41]),
        ([0.5, 1.0], 41, [20, 41]),
        ([0.001], 41, [1]),
        ([41, 0.5, 20], 41, [20, 41]),
        (3, 41, [3]),
    ],
)
def test_steps(at: Any, steps: int, expected: list[int]) -> None:
    assert Run(replace(plan(), evaluate_at=at, steps=steps)).measured_steps == expected
