"""Errors of running averages within an epoch, against averages written out batch by batch in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements import list_measurements
from bnlab.harness.measurements.sources import parse_sources
from bnlab.harness.measurements.tables.within_epoch import EPOCHS
from tests.references import batch_norms, float64_copy, inputs_of, running_ema_debiased


def first_layers_batches(run: Run) -> tuple[str, list[Tensor]]:
    """The first layer's name and its inputs in 26 epochs after the fourth, which training has not finished."""
    model = run.model_at(40).train()
    wide = float64_copy(model)
    name, layer = next(iter(batch_norms(wide).items()))
    found: list[Tensor] = []
    for epoch in range(4, 4 + 2 + EPOCHS):
        for index in run.batches.epoch_order(epoch).split(32):
            found += inputs_of(layer, partial(wide, run.dataset.train.images[index].double()))
    return name, found


def test_errors_batch_by_batch(trained: Run) -> None:
    run = trained
    sources = parse_sources(["ema_debiased", "exact"], [0.1, 0.5], "train")
    ((subject, (step,)), (other, _)) = list_measurements()["within_epoch"].scope(run, sources).items()
    found = list_measurements()["within_epoch"].measure(run, [subject, other], [step])

    assert len(found) == 2 * len(batch_norms(run.model_at(40))) * (12 + 11)
    assert step == 40

    name, inputs = first_layers_batches(run)
    for last, per_epoch, share in (("kept", 12, 8 / 32), ("dropped", 11, 1.0)):
        kept = [x for place, x in enumerate(inputs) if place % 12 < per_epoch]
        means = torch.stack([x.mean((0, 2, 3)) for x in kept])
        var = torch.stack([x.var((0, 2, 3)) for x in kept]).mean(0) + 1e-5
        averages = torch.stack([mean for mean, _ in running_ema_debiased(kept, 0.5)])[2 * per_epoch :]
        squares = ((averages - means.mean(0)).square() / var).mean(1).view(EPOCHS, per_epoch).mean(0)
        spread = (means.view(-1, per_epoch, means.shape[1])[:, :11].var(1).mean(0) / var).mean()
        rows = found[(found["layer"] == name) & (found["last_batch"] == last) & (found["momentum"] == 0.5)]
        assert rows["position"].to_list() == list(range(1, per_epoch + 1))
        assert set(rows["batches"]) == {per_epoch}
        assert set(rows["last_share"]) == {share}
        assert rows["noise"].to_list() == pytest.approx(squares.tolist(), rel=1e-3)
        assert rows["spread"].to_list() == pytest.approx([float(spread)] * per_epoch, rel=1e-3)
