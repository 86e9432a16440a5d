"""Networks that are trained on one image at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.nn import functional as F

from bnlab.harness import load
from tests.helpers import SMALL, plan_network, rise_and_fall, sweep_small
from tests.references import Descent, float64_copy

STEPS = 6


def test_a_norm_of_each_image_is_trained_in_batches_of_one(tmp_path: Path) -> None:
    """Every image of an epoch is an update; against a plain loop in float64 that takes one image after the other."""
    words = ["norm=group", "batch_size=1", f"steps={STEPS}", "evaluate_at=final", "measurements=[evaluations,log]"]
    sweep_small(tmp_path, *words)

    small = [f"{key}={SMALL[key]}" for key in ("data.images", "model.depth", "model.width", "device")]
    run = plan_network(*small, *words)
    assert run.batches.per_epoch == 360
    model = float64_copy(run.new_model()).train()
    descent = Descent(model)
    losses = []
    rates = []
    for step, index in enumerate(run.batches.epoch_order(0)[:STEPS].tolist()):
        image = run.dataset.train.images[index : index + 1].double()
        loss = F.cross_entropy(model(image), run.dataset.train.labels[index : index + 1])
        losses.append(loss.item())
        rate = 0.1 / 128**0.5 * rise_and_fall(step, STEPS)
        rates.append(rate)
        descent.step(loss, rate)

    log = load("adhoc", tmp_path)["log"]
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert log["lr"].tolist() == pytest.approx(rates)
