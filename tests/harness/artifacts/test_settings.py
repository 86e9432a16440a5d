"""Identity of a network, the steps that are measured, the settings that are meant."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.models import ModelConfig
from bnlab.harness.artifacts.norms import NormConfig
from bnlab.harness.artifacts.settings import (
    Config,
    changed_settings,
    field_names,
    list_steps,
    network,
    network_hash,
    training_settings,
)
from bnlab.harness.artifacts.training import OptimizerConfig
from experiments.compose import plan_jobs

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
        {"evaluate_on": ["val", "test"]},
        {"shifts": ["none", "noise:1"]},
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
        {"freeze_with": "exact"},  # without freeze_at
        {"data": DataConfig(root="x", download=True)},
        {"norm": NormConfig(batch_size=4, groups=2, momentum=0.5)},
        {"data": DataConfig(classes=10, difficulty="weak", fonts="dejavu", test_fonts="dejavu", image_size=64)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_leaves_the_network_as_it_is(changes: dict[str, Any]) -> None:
    assert network_hash(replace(PLAIN, **changes)) == network_hash(PLAIN)


@pytest.mark.parametrize(
    ("plain", "changed"),
    [
        ({"data": DataConfig("glyphs")}, {"data": DataConfig("glyphs", test_fonts="dejavu", image_size=64)}),
        ({"model": ModelConfig("mlp")}, {"model": ModelConfig("mlp", pool_every=3)}),
        ({"model": ModelConfig("resnet", 8)}, {"model": ModelConfig("resnet", 8, pool_every=3)}),
        ({"model": ModelConfig("resnet18")}, {"model": ModelConfig("resnet18", 8, 64, 3)}),
        ({"norm": NormConfig("none")}, {"norm": NormConfig("none", 4, 2, 0.5)}),
        ({"norm": NormConfig("ghost")}, {"norm": NormConfig("ghost", groups=2, momentum=0.5)}),
        ({"norm": NormConfig("group")}, {"norm": NormConfig("group", batch_size=4, momentum=0.5)}),
        ({"norm": NormConfig("renorm")}, {"norm": NormConfig("renorm", batch_size=4, groups=2)}),
        ({"optimizer": OptimizerConfig("adamw")}, {"optimizer": OptimizerConfig("adamw", momentum=0.5)}),
    ],
)
def test_what_is_ignored_makes_no_other_network(plain: dict[str, Any], changed: dict[str, Any]) -> None:
    assert network_hash(replace(PLAIN, **plain)) == network_hash(replace(PLAIN, **changed)) != network_hash(PLAIN)


def write_image_folder(root: Path, grey: int = 0) -> DataConfig:
    for part in ("train", "test"):
        for shade, name in enumerate(("a", "b")):
            folder = root / "image_folder" / part / name
            folder.mkdir(parents=True)
            for number in range(20):
                color = (grey + shade, number, 2 * number + 90 * shade)
                Image.new("RGB", (8, 8), color).save(folder / f"{number:02d}.png")
    return DataConfig("image_folder", str(root), image_size=8)


def test_the_files_of_an_image_folder_make_another_network(tmp_path: Path) -> None:
    a, b, c = (
        replace(PLAIN, data=write_image_folder(tmp_path / n, grey)) for n, grey in (("a", 0), ("b", 0), ("c", 7))
    )
    assert network_hash(a) == network_hash(b) != network_hash(c)  # the same images in another place
    path = tmp_path / "a" / "image_folder" / "test" / "b" / "03.png"
    path.write_bytes(path.read_bytes() + b"0")  # images that are only evaluated
    assert network_hash(a) == network_hash(b)
    path = tmp_path / "a" / "image_folder" / "train" / "b" / "03.png"
    contents = path.read_bytes()
    path.write_bytes(contents[:-1] + b"0")  # of the same size
    changed = network_hash(a)
    path.write_bytes(contents)
    assert network_hash(a) == network_hash(b) != changed
    path.rename(path.with_name("030.png"))
    assert network_hash(a) not in (network_hash(b), changed)


def test_what_makes_another_network() -> None:
    others = [
        {"batch_size": 32},
        {"epochs": 3},
        {"steps": 3},
        {"order": "sorted"},
        {"order": "blocks"},
        {"order": "blocks:16"},
        {"order": "blocks:32"},
        {"averaging": "swa"},
        {"averaging": "ema"},
        {"freeze_at": 0.5},
        {"freeze_at": 0.8},
        {"freeze_at": 0.8, "freeze_with": "exact"},
        {"optimizer": OptimizerConfig(lr=0.2)},
        {"optimizer": OptimizerConfig(schedule="step")},
        {"model": ModelConfig(depth=2)},
        {"norm": NormConfig("none")},
        {"norm": NormConfig("ghost")},
        {"norm": NormConfig("ghost", batch_size=64)},
        {"norm": NormConfig("renorm")},
        {"norm": NormConfig("renorm", momentum=0.1)},
        {"norm": NormConfig("group")},
        {"norm": NormConfig("group", groups=4)},
        {"norm": NormConfig("layer")},
        {"norm": NormConfig(every_second="group")},
        {"norm": NormConfig(every_second="group", groups=4)},
        {"data": DataConfig(images=100)},
        {"data": DataConfig(shift=1)},
    ]
    hashes = [network_hash(replace(PLAIN, **changes)) for changes in others]  # type: ignore[arg-type]
    assert len({network_hash(PLAIN), *hashes}) == len(others) + 1


def test_a_name_stays_for_ever() -> None:
    assert network_hash(PLAIN) == "44136fa355"
    assert network_hash(Config(batch_size=32, steps=5)) == "a1d3963317"


@pytest.mark.parametrize(
    ("word", "expected"),
    {
        "experiment=quickstart": {"14c961bccd", "77428d52c6", "f6b08d26d5"},
        "experiment=momentum": {"12466a1003", "5aa83c3af8", "7c7b348efc"},
        "experiment=training_curve": {"5aa83c3af8", "626897f4c9"},
        "model=resnet": {"2dc2453c1b"},
        "norm=batch": {"44136fa355"},
        "norm=none": {"69cf19d758"},
        "norm=ghost": {"0c36a5a7fb"},
        "norm=group": {"21d3a1064d"},
        "norm=layer": {"2c9570cc88"},
        "norm=instance": {"9d1712f70c"},
        "norm=gain_control": {"80b4c4a309"},
        "norm=frozen": {"2d2a562413"},
        "model=mlp": {"d5819468c4"},
        "model=torchvision": {"37ed5b19f0"},
        "optimizer=adamw": {"e6015a9e9d"},
        "data=glyphs": {"d09fed4578"},
    }.items(),
)
def test_the_choices_keep_their_names(word: str, expected: set[str]) -> None:
    """What has been trained under these names is found again."""
    assert {network_hash(config) for config in plan_jobs([word], multirun=False).configs} == expected


def test_the_defaults() -> None:
    """Names leave defaults off: with another default, every old network would stand for settings it was not trained
    with, and would be refused for it. Give a new meaning a new setting instead."""
    assert asdict(PLAIN.norm) == {
        "name": "batch",
        "batch_size": 32,
        "groups": 8,
        "momentum": 0.01,
        "every_second": "none",
    }
    assert asdict(PLAIN.data) == {
        "name": "digits",
        "root": "data",
        "download": False,
        "images": None,
        "classes": 36,
        "difficulty": "medium",
        "fonts": "all",
        "test_fonts": "all",
        "image_size": 32,
        "shift": 0,
        "flip": False,
    }
    assert training_settings(PLAIN) == {
        "data": {"name": "digits", "images": None, "shift": 0, "flip": False},
        "model": {"name": "cnn", "depth": 3, "width": 32, "pool_every": 1},
        "norm": {"name": "batch", "every_second": "none"},
        "optimizer": {
            "name": "sgd",
            "lr": 0.1,
            "lr_scaling": "sqrt",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
            "schedule": "onecycle",
        },
        "batch_size": 128,
        "epochs": 10,
        "order": "shuffled",
        "averaging": "none",
    }


def test_settings_that_have_changed_since() -> None:
    saved = asdict(PLAIN)
    assert changed_settings(replace(PLAIN, threads=3, data=DataConfig(test_fonts="dejavu")), saved) == []
    assert changed_settings(replace(PLAIN, optimizer=OptimizerConfig(lr=0.2)), saved) == [
        "optimizer.lr=0.1 then, 0.2 now"
    ]
    del saved["optimizer"]["lr"]  # a setting that came later
    assert changed_settings(PLAIN, saved) == []


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
def test_steps(at: Any, steps: int, expected: list[int]) -> None:
    assert list_steps(at, steps) == expected


def test_field_names() -> None:
    assert {"batch_size", "data.name", "optimizer.lr"} <= set(field_names(Config))
