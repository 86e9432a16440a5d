"""Networks that are trained on one image at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bnlab.harness.artifacts.norms import Group, Instance, Norm
from bnlab.harness.artifacts.norms.gain_control import ImageGain
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.config import check
from bnlab.harness.schedule import lr_factor
from tests.conftest import small_config
from tests.references import float64_copy

STEPS = 6


@pytest.mark.parametrize("norm", [Group(), Instance(), ImageGain()], ids=lambda norm: norm.name)
def test_norms_of_each_image_are_trained_in_batches_of_one(norm: Norm, tmp_path: Path) -> None:
    """Every image of an epoch is an update; against a plain loop in float64 that takes one image after the other."""
    config = small_config(tmp_path, norm=norm, batch_size=1, steps=STEPS, evaluate_at=[STEPS])
    check(config)
    run = Run(config)
    ensure_trained(run)

    assert run.batches.per_epoch == 360
    assert run.status is not None and run.status["status"] == "finished"

    model = float64_copy(run.new_model()).train()
    weights = list(model.parameters())
    velocities = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for step, index in enumerate(run.batches.epoch_order(0)[:STEPS].tolist()):
        image = run.dataset.train.images[index : index + 1].double()
        loss = F.cross_entropy(model(image), run.dataset.train.labels[index : index + 1])
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        rate = 0.1 / 128**0.5 * lr_factor("onecycle", step, STEPS)
        for weight, gradient, velocity in zip(weights, gradients, velocities, strict=True):
            slope = gradient + 5e-4 * weight.detach()
            velocity.mul_(0.9).add_(slope)
            weight.data -= rate * (slope + 0.9 * velocity)

    assert run.read_log()["loss"].tolist() == pytest.approx(losses, rel=1e-4)
