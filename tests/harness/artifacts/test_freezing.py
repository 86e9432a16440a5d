"""Batch norm in eval mode from a step on: by hand, killed and continued, and what the tables say of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bnlab
from bnlab.harness import load
from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.freezing import MOMENTUM
from bnlab.harness.artifacts.models import Cnn
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import execute
from bnlab.harness.measurements.estimates import EXACT, flat_statistics, frozen_statistics
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schedule import lr_factor
from tests.harness.kills import assert_same, killed_at

STEPS, FROZEN = 10, 5


def config(results: Path, freeze_with: str, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "model": Cnn(depth=2, width=8),
        "batch_size": 256,
        "steps": STEPS,
        "freeze_at": 0.5,
        "freeze_with": freeze_with,
        "evaluate_at": [4, 5, 7, 10],
        "accuracy_at": "all",
        "estimator": ["ema", "exact"],
        "threads": 1,
        "device": "cpu",
        "results": str(results),
    }
    return Config(**{**settings, **changes})


@pytest.fixture(scope="module", params=["ema", "exact"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(config(tmp_path_factory.mktemp("whole"), request.param))
    execute(run.config)
    return run


def train_by_hand(run: Run, batch_norms: type) -> nn.Module:
    """The plain loop, without recording."""
    progress = states.start_training(run)
    model, optimizer = progress.model, progress.optimizer
    (group,) = optimizer.param_groups
    peak = group["lr"]
    for step, (images, labels) in enumerate(islice(run.batches.from_step(0), STEPS)):
        if step == FROZEN:
            if run.config.freeze_with == "exact":
                bnlab.population_statistics(model, run.dataset.train.images.split(100)).write_to(model)
            for module in model.modules():
                if isinstance(module, batch_norms):
                    module.eval()
        group["lr"] = peak * lr_factor("onecycle", step, STEPS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def test_a_loop_by_hand_gives_the_same_network(whole: Run) -> None:
    expected = train_by_hand(whole, nn.BatchNorm2d).state_dict()
    for name, value in whole.load_checkpoint(STEPS).items():
        # Recording rounds the buffers' last bit, which the frozen network is trained with.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_the_statistics_of_that_step_are_kept(whole: Run) -> None:
    first = bnlab.running_statistics(whole.model_at(FROZEN))
    last = bnlab.running_statistics(whole.model_at(STEPS))
    before = bnlab.running_statistics(whole.model_at(4))
    for name in first:
        assert torch.equal(first[name].mean, last[name].mean)
        assert torch.equal(first[name].var, last[name].var)
        assert not torch.equal(first[name].mean, before[name].mean)
    if whole.config.freeze_with == "exact":
        exact = frozen_statistics(whole, FROZEN, EXACT)
        for name in first:
            torch.testing.assert_close(first[name].var, exact[name].var, rtol=1e-5, atol=0)

    assert whole.trace.last_step == STEPS
    assert {layer.steps[-1] for layer in whole.trace.layers.values()} == {FROZEN}


def test_ema_is_what_the_network_holds(whole: Run) -> None:
    """At every step, frozen or not yet: the row `ema` is the network in eval mode."""
    source = Subject(bnlab.estimators.EMA(MOMENTUM))
    values = flat_statistics(whole, [source], whole.wanted)[0]
    replayed = dict(zip(whole.wanted, map(whole.trace.layout.unflatten, values), strict=True))
    for step in whole.wanted:
        for name, held in bnlab.running_statistics(whole.model_at(step)).items():
            torch.testing.assert_close(replayed[step][name].mean, held.mean, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(replayed[step][name].var, held.var, rtol=1e-4, atol=1e-6)
    frame = load("adhoc", whole.config.results)["evaluations"].set_index(["estimator", "step"])
    model = whole.model_at(STEPS).eval()
    test = whole.dataset.test
    with torch.no_grad():
        hit = model(test.images).argmax(1) == test.labels

    assert frame.xs(("ema", STEPS))["accuracy"] == pytest.approx(hit.double().mean().item(), abs=2 / len(hit))

    images = frame["stat_images"].xs("ema").to_dict()
    shown = 1280 if whole.config.freeze_with == "ema" else 1295
    assert images == {4: 1024, 5: shown, 7: shown, 10: shown}

    (row,) = load("adhoc", whole.config.results)["runs"].to_dict("records")
    assert row["freeze_at"] == 0.5
    assert row["freeze_with"] == whole.config.freeze_with


@pytest.mark.parametrize("kills", [(4,), (5,), (4, 5, 8)])
def test_killed_and_continued_is_bit_for_bit_the_same(whole: Run, kills: tuple[int, ...], tmp_path: Path) -> None:
    run = Run(replace(whole.config, results=str(tmp_path)))
    for kill in kills:
        with killed_at(kill):
            ensure_trained(run)
    ensure_trained(run)
    assert_same(run, whole)
