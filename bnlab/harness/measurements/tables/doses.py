"""Table `doses`: how the network predicts under exact statistics that are disturbed by a known amount."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, seed_by
from bnlab.harness.measurements.sources import Source
from bnlab.harness.measurements.tables.evaluations import compare_logits, predict
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.layout import Layout
from bnlab.statistics import using

_TOGETHER = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # doses of all layers at once
_ALONE = (0.4, 1.6)  # of one layer alone

_ABOUT = """\
How the network predicts at the end of training under exact statistics that are disturbed by a known amount: each
channel's mean is moved by so many standard deviations, or its variance multiplied, up or down by signs that are
drawn for each network."""


@component
@dataclass(unsafe_hash=True)
class Doses(Measurement):
    """Table `doses`."""

    at_last_step: ClassVar[bool] = True
    name: str = "doses"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "layer": text("the layer that is disturbed, as in `gaps`; `all` are all layers together"),
            "moment": text("what is disturbed: mean or var"),
            "dose": real("error of each mean in standard deviations, or of each variance's logarithm"),
        },
        others={
            **common("epoch"),
            "depth": integer("as in `gaps`; 0 for all layers together"),
            "accuracy": real("share of test images that are predicted right"),
            "accuracy_lost": real("the same under exact statistics, minus that"),
            "disagreement": real("share of test images whose prediction differs from that under exact statistics"),
            "logit_gap": real("as in `evaluations`"),
        },
    )

    def scope(self, run: Run, sources: list[Source]) -> dict[None, list[int]]:
        """No estimator; the final step."""
        return {None: run.wanted[-1:]}

    def measure(self, run: Run, sources: list[None], steps: list[int]) -> pd.DataFrame:
        """One row for each layer or all layers, moment and dose, on the test split after one step.

        A dose d adds ±d standard deviations to each channel's mean, or multiplies its variance by exp(±d). The signs
        are drawn once for each network and moment, so that a larger dose goes further in the same direction.
        """
        (step,), rows, test = steps, [], run.dataset.test
        model, statistics = run.model_at(step), frozen_statistics(run, step, EXACT)
        layout = Layout.of(statistics)
        values, signs = layout.flatten(statistics), draw_signs(run, layout)
        with using(model, statistics):
            exact = predict(model, test)
        for depth, layer in enumerate(("all", *layout.names)):
            for moment, dose in product(("mean", "var"), _ALONE if depth else _TOGETHER):
                with using(model, layout.unflatten(disturb(layout, values, signs, layer, moment, dose))):
                    found = predict(model, test)
                scores = found.accuracy, exact.accuracy - found.accuracy, *compare_logits(exact.logits, found.logits)
                rows.append((run.id, step, layer, moment, dose, step / run.batches.per_epoch, depth, *scores))
        columns = ["run", "step", "layer", "moment", "dose", "epoch", "depth"]
        return pd.DataFrame(rows, columns=[*columns, "accuracy", "accuracy_lost", "disagreement", "logit_gap"])


def draw_signs(run: Run, layout: Layout) -> Tensor:
    """float64 [2, all channels], 1 or -1 for each mean and variance; others for each network."""
    shape = 2, sum(layout.channels)
    return 2 * torch.randint(2, shape, generator=seed_by(f"{run.id} doses"), dtype=torch.float64) - 1


def disturb(layout: Layout, values: Tensor, signs: Tensor, layer: str, moment: str, dose: float) -> Tensor:
    """Flat statistics [2, all channels] with a dose of error in one moment of a layer, or of all layers."""
    chosen = torch.tensor([layer in ("all", name) for name in layout.channel_frame()["layer"]])
    errors, (mean, var) = dose * signs * chosen, values
    if moment == "mean":
        return torch.stack((mean + errors[0] * (var + layout.channel_eps).sqrt(), var))
    return torch.stack((mean, var * torch.exp(errors[1])))
