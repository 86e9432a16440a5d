"""What a network is named by: what makes another one, and what leaves it as it is; the steps that are measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest

from bnlab.harness.artifacts.job_settings import GROUPS
from bnlab.harness.requests import MEASURED_WITH
from bnlab.harness.trained_with import TRAINED_WITH
from tests.helpers import Config, plan_network

RUN_BY = ("name", "results", "device", "threads", "dry_run", "quiet", "log")


def name(words: str) -> str:
    """The name of the network of a command line."""
    return plan_network(*words.split()).folder.parent.name


def test_defaults_are_left_off() -> None:
    """So that a field that is added later leaves old networks their names."""
    assert name("") == name("batch_size=128 epochs=10 optimizer.lr=0.1 order=shuffled model.depth=3") == "9e84def482"
    assert name("steps=5 epochs=3") == name("steps=5"), "the length is set in steps"


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        ("evaluate_at=[1] accuracy_at=all evaluate_on=[val,test] shifts=[none,noise:1]", ""),
        ("momentum=[0.5] estimator=exact population=val measurements=evaluations", ""),
        ("device=cpu threads=1 results=x name=x dry_run=true seed=3", ""),
        ("freeze_with=exact", ""),  # without freeze_at
    ],
)
def test_what_leaves_the_network_as_it_is(words: str, plain: str) -> None:
    assert name(words) == name(plain)


def test_what_makes_another_network() -> None:
    others = [
        *("batch_size=32", "epochs=3", "steps=3", "averaging=swa", "averaging=ema", "precision=bfloat16"),
        *("weight_averages=0.9", "weight_averages=[0.9,0.99]"),
        *("order=sorted", "order=blocks:16", "order=blocks:32", "last_batch=drop"),
        *("freeze_at=0.5", "freeze_at=0.8", "freeze_at=0.8 freeze_with=exact"),
        *("optimizer.lr=0.2", "optimizer.schedule=step", "optimizer.momentum=0.5", "optimizer=adamw"),
        *("model.depth=2", "model.pool_every=2", "model=resnet"),
        *("norm=ghost", "norm=ghost norm.batch_size=64", "norm=renorm momentum=0.01", "norm=group"),
        *("norm=group norm.groups=4", "norm=layer", "norm=none", "norm.every_second=group"),
        *("norm.every_second=group norm.groups=4", "data.images=1000", "data.shift=1", "data=glyphs"),
        "data=glyphs data.fonts=dejavu",
    ]
    assert len({name(words) for words in ["", *others]}) == len(others) + 1


def test_each_setting_is_of_the_training_or_of_what_is_measured_or_of_how() -> None:
    """One that is in no list would name no network: two trainings would share a folder."""
    listed = Counter([*GROUPS, "inputs", "seed", *TRAINED_WITH, *MEASURED_WITH, *RUN_BY])

    assert listed == Counter(each.name for each in fields(Config))


@pytest.mark.parametrize(
    ("at", "steps", "expected"),
    [
        ("final", 41, [41]),
        ("log", 1, [1]),
        ("log", 41, [1, 2, 3, 5, 8, 12, 18, 27, 41]),
        ("[0.5,1.0]", 41, [20, 41]),
        ("[0.001]", 41, [1]),
        ("[41,0.5,20]", 41, [20, 41]),
        ("3", 41, [3]),
    ],
)
def test_steps(at: str, steps: int, expected: list[int]) -> None:
    assert plan_network(f"evaluate_at={at}", f"steps={steps}").measured_steps == expected
