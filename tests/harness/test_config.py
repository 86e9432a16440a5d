"""Identity of a network, the steps that are measured, the settings that are meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bnlab.harness.config import Config, check, checkpoints, field_names, network, network_hash, statistics_settings
from bnlab.harness.data import DataConfig
from bnlab.harness.errors import UserError
from bnlab.harness.models import ModelConfig
from bnlab.harness.training import OptimizerConfig

PLAIN = Config()


def test_defaults_are_left_off() -> None:
    assert network(PLAIN) == {}
    assert network(Config(batch_size=32, optimizer=OptimizerConfig(lr=0.2))) == {
        "batch_size": 32,
        "optimizer": {"lr": 0.2},
    }
    assert network(Config(steps=5, epochs=3)) == network(Config(steps=5)) == {"steps": 5}


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate_at": [1]},
        {"accuracy_at": "all"},
        {"momentum": [0.5]},
        {"estimator": ["exact"]},
        {"population": "val"},
        {"measurements": ["drift"]},
        {"device": "cpu"},
        {"threads": 1},
        {"results": "x"},
        {"name": "x"},
        {"csv": True},
        {"dry_run": True},
        {"seed": 3},
        {"data": DataConfig(root="x", download=True)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_leaves_the_network_as_it_is(changes: dict[str, Any]) -> None:
    assert network_hash(replace(PLAIN, **changes)) == network_hash(PLAIN)


def test_what_makes_another_network() -> None:
    others = [
        {"batch_size": 32},
        {"epochs": 3},
        {"steps": 3},
        {"optimizer": OptimizerConfig(lr=0.2)},
        {"optimizer": OptimizerConfig(schedule="step")},
        {"model": ModelConfig(depth=2)},
        {"data": DataConfig(images=100)},
        {"data": DataConfig(shift=1)},
    ]
    hashes = [network_hash(replace(PLAIN, **changes)) for changes in others]  # type: ignore[arg-type]
    assert len({network_hash(PLAIN), *hashes}) == len(others) + 1


def test_a_name_stays_for_ever() -> None:
    assert network_hash(PLAIN) == "44136fa355"
    assert network_hash(Config(batch_size=32, steps=5)) == "a1d3963317"


@pytest.mark.parametrize(
    ("at", "steps", "expected"),
    [
        ("final", 41, [41]),
        ("log", 1, [1]),
        ("log", 41, [1, 2, 3, 5, 8, 12, 18, 27, 41]),
        ([1, 7, 41], 41, [1, 7, 41]),
        ([0.5, 1.0], 41, [20, 41]),
        ([0.001], 41, [1]),
        ([41, 0.5, 20], 41, [20, 41]),
        (3, 41, [3]),
    ],
)
def test_checkpoints(at: Any, steps: int, expected: list[int]) -> None:
    assert checkpoints(Config(evaluate_at=at), steps) == expected


def test_each_setting_once() -> None:
    names = ["ema", "cumulative", "exact", "ema", "precise(images=10)", "ema(momentum=0.3)"]
    found = statistics_settings(Config(estimator=names, momentum=[0.1, 0.2, 0.1]))
    assert [(s.estimator, s.momentum) for s in found] == [
        ("ema", 0.1),
        ("ema", 0.2),
        ("cumulative", None),
        ("exact", None),
        ("precise(images=10)", None),
        ("ema", 0.3),
    ]
    assert [s.kind for s in found[2:5]] == ["running", "exact", "precise"] and found[4].images == 10


def test_field_names() -> None:
    assert {"batch_size", "data.name", "optimizer.lr"} <= set(field_names(Config))


def test_bounds() -> None:
    check(Config(batch_size=2))
    check(Config(batch_size=1295, data=DataConfig()))
    with pytest.raises(UserError, match="batch_size=1296"):
        check(Config(batch_size=1296))
    with pytest.raises(UserError, match="name='a b'"):
        check(Config(name="a b"))


def test_steps_after_the_end_are_refused() -> None:
    with pytest.raises(UserError, match="evaluate_at=100: the training has 41 steps"):
        check(Config(batch_size=32, epochs=1, evaluate_at=[10, 100]))
