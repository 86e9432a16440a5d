"""Errors of running averages within an epoch, against averages written out batch by batch in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.helpers import Config, Run, measure
from tests.references import batch_norms, float64_copy, inputs_of, running_ema_debiased

EPOCHS = 24


def first_layers_batches(run: Run) -> tuple[str, list[Tensor]]:
    """The first layer's name and its inputs in 26 epochs after the fourth, which training has not finished."""
    model = run.model_at(40).train()
    wide = float64_copy(model)
    name, layer = next(iter(batch_norms(wide).items()))
    found: list[Tensor] = []
    for epoch in range(4, 4 + 2 + EPOCHS):
        for index in run.batches.epoch_order(epoch).split(32):
            images = run.dataset.train.images[index].double()
            found += inputs_of(layer, partial(wide, images))
    return name, found


def test_errors_batch_by_batch(trained: Run, copied: Config) -> None:
    table = "experiments.questions.streams.within_epoch.WithinEpoch"
    found = measure(copied, table, estimator=["ema_debiased", "exact"], momentum=[0.1, 0.5])

    assert set(found["step"]) == {40}
    layers = batch_norms(trained.model_at(40))
    assert len(found) == 2 * len(layers) * (12 + 11)
    name, inputs = first_layers_batches(trained)
    rows = found[(found["layer"] == name) & (found["momentum"] == 0.5)]
    for last, per_epoch, share in (("kept", 12, 8 / 32), ("dropped", 11, 1.0)):
        kept = [x for place, x in enumerate(inputs) if place % 12 < per_epoch]
        noise, spread = compute_errors(kept, per_epoch)

        part = rows[rows["last_batch"] == last]
        assert part["position"].to_list() == list(range(1, per_epoch + 1))
        assert set(part["batches"]) == {per_epoch}
        assert set(part["last_share"]) == {share}
        assert part["noise"].to_list() == pytest.approx(noise, rel=1e-3)
        assert part["spread"].to_list() == pytest.approx([spread] * per_epoch, rel=1e-3)


def compute_errors(batches: list[Tensor], per_epoch: int) -> tuple[list[float], float]:
    """The squared error of the average after each batch of an epoch, and the variance of the batches' means.

    Both are relative to the variance of the values. Two epochs go by before the average is looked at.
    """
    means = torch.stack([x.mean((0, 2, 3)) for x in batches])
    variances = torch.stack([x.var((0, 2, 3)) for x in batches])
    unit = variances.mean(0) + 1e-5

    averages = torch.stack([mean for mean, _ in running_ema_debiased(batches, 0.5)])
    errors = (averages[2 * per_epoch :] - means.mean(0)).square() / unit
    noise = errors.mean(1).view(EPOCHS, per_epoch).mean(0)

    by_epoch = means.view(-1, per_epoch, means.shape[1])
    full_batches = by_epoch[:, :11]
    spread = (full_batches.var(1).mean(0) / unit).mean()
    return noise.tolist(), float(spread)
