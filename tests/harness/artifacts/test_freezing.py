"""Batch norm in eval mode from a step on: by hand, and what the tables say of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bnlab
from bnlab.harness import load, load_images
from tests.harness.kills import load_at, read_trace
from tests.harness.plain_loop import train_plainly
from tests.helpers import find_network, plan_network, sweep_small

STEPS, FROZEN = 10, 5
WORDS = ("batch_size=256", "steps=10", "freeze_at=0.5", "evaluate_at=[4,5,7,10]", "accuracy_at=all",
         "estimator=[ema,exact]", "data.images=null")  # fmt: skip


@pytest.fixture(scope="module", params=["ema", "exact"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The statistics that are frozen, and results with them."""
    results = tmp_path_factory.mktemp(request.param)
    sweep_small(results, *WORDS, f"freeze_with={request.param}")
    return request.param, results


def test_a_loop_by_hand_gives_the_same_network(whole: tuple[str, Path]) -> None:
    """The plain loop, without recording."""
    kind, results = whole
    words = [word for word in WORDS if not word.startswith("freeze")]
    run = plan_network(*words, "model.depth=2", "model.width=8", "device=cpu")
    for step, update in enumerate(train_plainly(run.config), start=1):
        model = update.model
        if step != FROZEN:
            continue
        if kind == "exact":
            bnlab.population_statistics(model, run.dataset.train.images.split(100)).write_to(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    expected = model.state_dict()
    for name, value in load_at(results, STEPS).state_dict().items():
        # Recording rounds the buffers' last bit, which the frozen network is trained with.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert {layer.steps[-1] for layer in read_trace(find_network(results)).layers.values()} == {FROZEN}


def test_ema_is_what_the_network_holds(whole: tuple[str, Path]) -> None:
    """At every step, frozen or not yet: the row `ema` is the network in eval mode."""
    kind, results = whole
    tables = load("adhoc", results)
    run = tables["runs"].iloc[0]
    frame = tables["evaluations"].set_index(["estimator", "step"])
    images, labels = load_images("adhoc", run["run"], results=results)
    for step in (4, 5, 7, 10):
        with torch.no_grad():
            loss = nn.functional.cross_entropy(load_at(results, step)(images), labels).item()
        assert frame.xs(("ema", step))["loss"] == pytest.approx(loss, rel=1e-4)

    shown = 1280 if kind == "ema" else 1295
    assert frame["stat_images"].xs("ema").to_dict() == {4: 1024, 5: shown, 7: shown, 10: shown}
    assert (run["freeze_at"], run["freeze_with"]) == (0.5, kind)
