"""Networks that are trained on one image at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bnlab.harness import load
from tests.helpers import SMALL, plan_network, rise_and_fall, sweep_small
from tests.references import float64_copy

STEPS = 6


@pytest.mark.parametrize("norm", ["group", "instance", "gain_control"])
def test_norms_of_each_image_are_trained_in_batches_of_one(norm: str, tmp_path: Path) -> None:
    """Every image of an epoch is an update; against a plain loop in float64 that takes one image after the other."""
    words = [f"norm={norm}", "batch_size=1", f"steps={STEPS}", "evaluate_at=final", "measurements=[evaluations,log]"]
    sweep_small(tmp_path, *words)

    small = [f"{key}={SMALL[key]}" for key in ("data.images", "model.depth", "model.width", "device")]
    run = plan_network(*small, *words)
    assert run.batches.per_epoch == 360
    model = float64_copy(run.new_model()).train()
    weights = list(model.parameters())
    velocities = [torch.zeros_like(weight) for weight in weights]
    losses = []
    rates = []
    for step, index in enumerate(run.batches.epoch_order(0)[:STEPS].tolist()):
        image = run.dataset.train.images[index : index + 1].double()
        loss = F.cross_entropy(model(image), run.dataset.train.labels[index : index + 1])
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        rate = 0.1 / 128**0.5 * rise_and_fall(step, STEPS)
        rates.append(rate)
        for weight, gradient, velocity in zip(weights, gradients, velocities, strict=True):
            slope = gradient + 5e-4 * weight.detach()
            velocity.mul_(0.9).add_(slope)
            weight.data -= rate * (slope + 0.9 * velocity)

    log = load("adhoc", tmp_path)["log"]
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert log["lr"].tolist() == pytest.approx(rates)
