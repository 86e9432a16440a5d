"""Table `doses`: how the network predicts under exact statistics that are disturbed by a known amount."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.evaluations import compare_logits, predict
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, seed_by
from bnlab.harness.measurements.sources import Source
from bnlab.statistics import Layout, using

NORMS = RECORDED
_TOGETHER = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # doses of all layers at once
_ALONE = (0.4, 1.6)  # of one layer alone
_MOMENTS = ("mean", "var")


def scope(run: Run, sources: list[Source]) -> dict[None, list[int]]:
    """No estimator; the final step."""
    return {None: run.wanted[-1:]}


def doses(run: Run, sources: list[None], steps: list[int]) -> pd.DataFrame:
    """One row for each step, layer or all layers, moment and dose, on the test split.

    A dose d adds ±d standard deviations to each channel's mean, or multiplies its variance by exp(±d). The signs are
    drawn once for each network and moment, so that a larger dose goes further in the same direction.
    """
    rows, test = [], run.dataset.test
    for step in steps:
        model, statistics = run.model_at(step), frozen_statistics(run, step, EXACT)
        layout = Layout.of(statistics)
        values, signs = layout.flatten(statistics), draw_signs(run, layout)
        with using(model, statistics):
            exact = predict(model, test)
        for layer, depth, moment, dose in _list_doses(layout):
            here = signs * mask_layer(layout, layer)
            with using(model, layout.unflatten(disturb(layout, values, here, moment, dose))):
                found = predict(model, test)
            scores = found.accuracy, exact.accuracy - found.accuracy, *compare_logits(exact.logits, found.logits)
            rows.append((run.id, step, layer, moment, dose, step / run.batches.per_epoch, depth, *scores))
    columns = ["run", "step", "layer", "moment", "dose", "epoch", "depth"]
    return pd.DataFrame(rows, columns=[*columns, "accuracy", "accuracy_lost", "disagreement", "logit_gap"])


def _list_doses(layout: Layout) -> Iterator[tuple[str, int, str, float]]:
    """Layer, depth, moment and dose of each row."""
    for depth, layer in enumerate(("all", *layout.names)):
        for moment in _MOMENTS:
            for dose in _ALONE if depth else _TOGETHER:
                yield layer, depth, moment, dose


def draw_signs(run: Run, layout: Layout) -> Tensor:
    """float64 [2, all channels], 1 or -1 for each mean and variance; others for each network."""
    shape = 2, sum(layout.channels)
    return 2 * torch.randint(2, shape, generator=seed_by(f"{run.id} doses"), dtype=torch.float64) - 1


def mask_layer(layout: Layout, layer: str) -> Tensor:
    """float64 [all channels], 1 in the layer's channels and 0 elsewhere; 1 everywhere for "all"."""
    chosen = torch.tensor([layer in ("all", name) for name in layout.names], dtype=torch.float64)
    return chosen.repeat_interleave(torch.tensor(layout.channels))


def disturb(layout: Layout, values: Tensor, signs: Tensor, moment: str, dose: float) -> Tensor:
    """Flat statistics [2, all channels] with a dose of error in one moment; a sign of 0 leaves a channel as it is."""
    mean, var = values
    if moment == "mean":
        return torch.stack((mean + dose * signs[0] * (var + layout.channel_eps).sqrt(), var))
    return torch.stack((mean, var * torch.exp(dose * signs[1])))
