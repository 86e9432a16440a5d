"""Networks that are trained on one image at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness import load
from tests.harness.plain_loop import train_plainly
from tests.helpers import SMALL, plan_network, sweep_small


def test_a_norm_of_each_image_is_trained_in_batches_of_one(tmp_path: Path) -> None:
    """Every image of an epoch is an update; as a sweep writes it down."""
    words = ["norm=group", "batch_size=1", "steps=6", "evaluate_at=final", "measurements=[evaluations,log]"]
    sweep_small(tmp_path, *words)

    small = [f"{key}={SMALL[key]}" for key in ("data.images", "model.depth", "model.width", "device")]
    run = plan_network(*small, *words)
    assert run.batches.per_epoch == 360
    updates = list(train_plainly(run.config))
    log = load("adhoc", tmp_path)["log"]
    assert log["loss"].tolist() == [update.loss for update in updates]
    assert log["lr"].tolist() == pytest.approx([update.rate for update in updates])
