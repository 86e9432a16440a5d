"""Table `doses`: how the network predicts under exact statistics that are disturbed by a known amount."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import EXACT, measure_at, seed_by
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.statistics.layout import Layout

_TOGETHER = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # doses of all layers at once
_ALONE = (0.4, 1.6)  # of one layer alone

_ABOUT = """\
How the network predicts at the end of training under exact statistics that are disturbed by a known amount: each
channel's mean is moved by so many standard deviations, or its variance multiplied, up or down by signs that are
drawn for each network."""


class Doses(Measurement):
    """Table `doses`."""

    at_last_step: ClassVar[bool] = True
    name: ClassVar[str] = "doses"
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
        },
    )

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure how doses change predictions: a row for each layer or all layers, moment and dose, after one step.

        A dose d adds ±d standard deviations to each channel's mean, or multiplies its variance by exp(±d). The signs
        are drawn once for each network and moment, so that a larger dose goes further in the same direction. The test
        split is predicted.
        """
        (step,) = steps
        test = run.dataset.test
        model = run.model_at(step)
        statistics = measure_at(run, step, EXACT)
        under_exact = measure_accuracy(model, test, statistics)

        layout = Layout.of(statistics)
        values = layout.flatten(statistics)
        signs = draw_signs(run, layout)
        rows = []
        # Layers are counted from 1, which leaves depth 0 to all of them together.
        for depth, layer in enumerate(("all", *layout.names)):
            doses = _TOGETHER if depth == 0 else _ALONE
            for moment, dose in product(("mean", "var"), doses):
                disturbed = disturb(layout, values, signs, layer, moment, dose)
                accuracy = measure_accuracy(model, test, layout.unflatten(disturbed))
                place = {"step": step, "layer": layer, "moment": moment, "dose": dose, "depth": depth}
                rows.append({**place, "accuracy": accuracy, "accuracy_lost": under_exact - accuracy})
        return pd.DataFrame(rows)


def draw_signs(run: Run, layout: Layout) -> Tensor:
    """Draw 1 or -1 for each mean and variance, others for each network: float64 [2, all channels]."""
    shape = (2, sum(layout.channels))
    generator = seed_by(f"{run.id} doses")
    return 2 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1


def disturb(layout: Layout, values: Tensor, signs: Tensor, layer: str, moment: str, dose: float) -> Tensor:
    """Add a dose of error to flat statistics [2, all channels], in one moment of a layer or of all layers."""
    layers = layout.channel_frame()["layer"]
    is_chosen = [layer in ("all", name) for name in layers]
    errors = dose * signs * torch.tensor(is_chosen)
    mean_error, var_error = errors

    mean, var = values
    if moment == "mean":
        deviation = (var + layout.channel_eps).sqrt()
        mean = mean + mean_error * deviation
    else:
        # An error of its logarithm keeps a variance positive, however large the error is.
        var = var * torch.exp(var_error)
    return torch.stack((mean, var))
