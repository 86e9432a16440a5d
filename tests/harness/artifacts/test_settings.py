"""What a network is named by: what makes another one, and what leaves it as it is; the steps that are measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bnlab.harness.artifacts.data import Digits, Glyphs
from bnlab.harness.artifacts.data.published import Cifar10, Mnist
from bnlab.harness.artifacts.models import Cnn, Resnet, Torchvision
from bnlab.harness.artifacts.norms import Batch, Group, Layer, NoNorm
from bnlab.harness.artifacts.norms.ghost import Ghost
from bnlab.harness.artifacts.norms.renorm import Renorm
from bnlab.harness.artifacts.optimizers import AdamW, Sgd
from bnlab.harness.artifacts.settings import Config, list_steps, network, network_hash

PLAIN = Config()


def test_defaults_are_left_off() -> None:
    """So that a field that is added later leaves old networks their names."""
    names = {"data": {"name": "digits"}, "model": {"name": "cnn"}, "norm": {"name": "batch"}}
    assert network(PLAIN) == {"batch_size": 128, "epochs": 10, **names, "optimizer": {"name": "sgd"}}
    changed = Config(batch_size=32, steps=5, epochs=3, optimizer=Sgd(lr=0.2))
    assert network(changed) == {"batch_size": 32, "steps": 5, **names, "optimizer": {"name": "sgd", "lr": 0.2}}
    assert network_hash(PLAIN) == "9e84def482"


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate_at": [1], "accuracy_at": "all", "evaluate_on": ["val", "test"], "shifts": ["none", "noise:1"]},
        {"momentum": [0.5], "estimator": ["exact"], "population": "val", "measurements": ["drift"]},
        {"device": "cpu", "threads": 1, "results": "x", "name": "x", "csv": True, "dry_run": True, "seed": 3},
        {"freeze_with": "exact"},  # without freeze_at
        {"data": Mnist(root="x", download=True)},
        {"data": Glyphs(test_fonts="dejavu")},
    ],
)
def test_what_leaves_the_network_as_it_is(changes: dict[str, Any]) -> None:
    plain = {"data": type(changes["data"])(changes["data"].name)} if "data" in changes else {}
    assert network_hash(replace(PLAIN, **changes)) == network_hash(replace(PLAIN, **plain))


def test_what_makes_another_network() -> None:
    others = [
        *({"batch_size": 32}, {"epochs": 3}, {"steps": 3}, {"averaging": "swa"}, {"averaging": "ema"}),
        *({"order": order} for order in ("sorted", "blocks", "blocks:16", "blocks:32")),
        *({"freeze_at": 0.5}, {"freeze_at": 0.8}, {"freeze_at": 0.8, "freeze_with": "exact"}),
        *({"optimizer": optimizer} for optimizer in (Sgd(lr=0.2), Sgd(schedule="step"), Sgd(momentum=0.5), AdamW())),
        *({"model": model} for model in (Cnn(depth=2), Cnn(pool_every=2), Resnet(), Torchvision())),
        *({"norm": norm} for norm in (Ghost(), Ghost(batch_size=64), Renorm(), Renorm(momentum=0.1), Group())),
        *({"norm": norm} for norm in (Group(groups=4), Layer(), NoNorm())),
        *({"norm": norm} for norm in (Batch(every_second="group"), Batch(every_second="group", groups=4))),
        *({"data": chosen} for chosen in (Digits(images=100), Digits(shift=1), Glyphs(), Glyphs(fonts="dejavu"))),
        *({"data": chosen} for chosen in (Cifar10(), Cifar10(flip=True))),
    ]
    hashes = {network_hash(replace(PLAIN, **changes)) for changes in others}  # type: ignore[arg-type]
    assert len({network_hash(PLAIN), *hashes}) == len(others) + 1


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
    assert list_steps(at, steps) == expected
