"""Table `autocast`: exact statistics measured in bfloat16, and predictions made in it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pandas as pd
import torch

from bnlab import gap, population_statistics
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import compute_output
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import IMAGES_AT_ONCE
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, real, text

PRECISIONS = ("float32", "bfloat16")

_ABOUT = """\
Exact statistics of the network at the end of training, from forward passes in float32 and in bfloat16 (autocast), and
how it predicts with either of them, in either precision."""


class Autocast(Measurement):
    """Table `autocast`."""

    at_last_step: ClassVar[bool] = True
    name: ClassVar[str] = "autocast"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "measured_in": text("float32 or bfloat16: the forward passes of which the exact statistics are"),
            "predicted_in": text("float32 or bfloat16: the forward passes that predict"),
        },
        others={
            **common("epoch"),
            "largest_gap": real(
                "of those statistics to the ones measured in float32, `mean_gap` of the layer where it is largest"
            ),
            "accuracy": real("share of test images that are predicted right"),
        },
    )

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure statistics of the training split in both precisions, and predict the test split in both."""
        (step,) = steps
        model = run.model_at(step)
        images = run.dataset.train.images.split(IMAGES_AT_ONCE)
        measured = {}
        for precision in PRECISIONS:
            # The forward pass of training, so that autocast covers the same part of it.
            forward = partial(compute_output, precision=precision)
            measured[precision] = population_statistics(model, images, forward=forward)

        rows = []
        for measured_in, statistics in measured.items():
            largest = float(gap(measured["float32"], statistics)["mean_gap"].max())
            for predicted_in in PRECISIONS:
                # `measure_accuracy` takes no forward pass of the caller's, so that autocast is entered around
                # it.
                with torch.autocast(run.device.type, torch.bfloat16, enabled=predicted_in == "bfloat16"):
                    accuracy = measure_accuracy(model, run.dataset.test, statistics)
                place = {"step": step, "measured_in": measured_in, "predicted_in": predicted_in}
                rows.append({**place, "largest_gap": largest, "accuracy": accuracy})
        return pd.DataFrame(rows)
