"""Networks train as a plain loop of torch trains them in the same process, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.artifacts.training import train
from bnlab.harness.artifacts.training_runner import start_training
from bnlab.harness.settings import COMPONENTS, list_settings
from bnlab.harness.updates import ORDERS, SCHEDULES
from tests.harness.plain_loop import train_plainly
from tests.helpers import Config, Run, plan_network

SMALL = ("data.images=200", "batch_size=64", "steps=5", "device=cpu")  # 64, 64 and 52 images in an epoch
SETTINGS = list_settings(Optimizer)
WORDS = [
    *(f"optimizer={name}" for name in COMPONENTS["optimizer"]),
    *(f"optimizer.schedule={schedule} steps=12" for schedule in SCHEDULES),
    "optimizer.schedule=cosine steps=40",  # two of which rise
    *(f"optimizer.lr_scaling={scaling}" for scaling in SETTINGS["lr_scaling"].choices),
    *(f"order={order}" for order in [*ORDERS, "blocks:4"]),
    "optimizer.momentum=0",
    "optimizer.weight_decay=0.1 optimizer.label_smoothing=0.2",
    "optimizer=adamw optimizer.weight_decay=3 data.shift=1",
    "order=blocks:4 optimizer.schedule=step steps=8",
    "last_batch=drop",
    "data.images=143",  # 129 images: the third batch would have one, and is left out
    "steps=null epochs=2",
    "precision=bfloat16",
    "seed=3",
    "data.shift=2",
    "norm.every_second=group",
    "norm=ghost norm.batch_size=4",
    "data=glyphs data.fonts=dejavu data.images=80 batch_size=32",
]


def draw_colours(root: str) -> list[tuple[Tensor, Tensor]]:
    """Images of three channels, which may be mirrored."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (200, 20):
        images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        parts.append((images, torch.arange(count) % 4))
    return parts


def build_with_dropout(channels: int, image_size: int, classes: int) -> nn.Module:
    layers = [nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(8, classes))


@cache
def plan(words: str = "") -> Config:
    """The settings of a small network, with further words. Not to be changed."""
    given = words.split()
    keys = {word.partition("=")[0] for word in given}
    small = [word for word in SMALL if word.partition("=")[0] not in keys]
    narrow = ["model.width=16"] * ("model" not in keys)
    return plan_network(*small, *narrow, *given).config


def assert_trained_as_by_the_plain_loop(config: Config) -> None:
    run = Run(config)
    progress = start_training(run)
    rates: list[float] = []
    for _ in train(progress, run.batches, config.optimizer, run.steps):
        rates += {group["lr"] for group in progress.optimizer.param_groups}

    updates = list(train_plainly(config))

    # Each side rounds a rate fewer than ten times, by 2⁻⁵³ at most, and 1 − step/steps magnifies the first of these by
    # up to `steps`. The weights, which are float32, see nothing of it.
    rounding = 20 * run.steps * 2**-53
    assert rates == pytest.approx([update.rate for update in updates], rel=rounding, abs=0)
    assert progress.log == [(step, each.loss, each.accuracy) for step, each in enumerate(updates, start=1)]
    found = progress.model.state_dict()
    expected = updates[-1].model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


SMALLER = {"cnn": {"width": 16}, "plain": {"depth": 7}, "resnet": {"depth": 8}}


def list_networks() -> list[Any]:
    """List models and norms; slow are norms of which another model is trained as well."""
    pairs = []
    for model, norm in product(COMPONENTS["model"], COMPONENTS["norm"]):
        if COMPONENTS["norm"][norm].needs_maps and not COMPONENTS["model"][model].has_maps:
            continue
        is_slow = model != "cnn" and norm not in ("batch", "none")
        pairs.append(pytest.param(model, norm, marks=pytest.mark.slow if is_slow else ()))
    return pairs


@pytest.mark.parametrize(("model", "norm"), list_networks())
def test_every_norm_in_every_model(model: str, norm: str) -> None:
    network = replace(COMPONENTS["model"][model], **SMALLER.get(model, {}))
    assert_trained_as_by_the_plain_loop(replace(plan(), model=network, norm=COMPONENTS["norm"][norm]))


@pytest.mark.parametrize("words", WORDS)
def test_every_way_to_train(words: str) -> None:
    assert_trained_as_by_the_plain_loop(plan(words))


def test_own_images_in_a_network_with_dropout() -> None:
    words = "data.shift=1 data.flip=true seed=3"
    config = plan(f"data={__name__}.draw_colours model={__name__}.build_with_dropout {words}")
    torch.manual_seed(0)  # which has no part in what dropout draws
    assert_trained_as_by_the_plain_loop(config)
