"""Table `drift`: how noisy the batch statistics of each layer are, and how fast what they estimate moves."""

from __future__ import annotations

from bisect import bisect_right
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, integer, real
from bnlab.recording.trace import LayerTrace
from bnlab.theory import local_level

_SHORTEST = 16  # steps from which noise and drift are told apart at all

_ABOUT = """\
How noisy the batch moments are and how fast they move, fitted to the last steps of the trace."""


class MomentDrift(Measurement):
    """Table `drift`."""

    about_batches: ClassVar[bool] = True
    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "drift"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key=common("run step layer"),
        others={
            **common("epoch depth channels"),
            "window": integer("steps that the fit is made of"),
            "mean_level": real("squared mean, in variances of the layer: how far off a start at 0 is"),
            "mean_noise": real("variance of a batch mean around the level, in variances of the layer"),
            "mean_drift": real("variance of the level's change in a step, in variances of the layer"),
            "var_noise": real("variance of the logarithm of a batch variance around its level"),
            "var_drift": real("variance of that level's change in a step"),
        },
    )

    def covers(self, norm: Norm) -> bool:
        # The fit takes each record for one step, but a norm that averages parts of a batch leaves several.
        return norm.takes_batch_whole

    def scope(self, run: Run, subjects: list[Subject]) -> dict[None, list[int]]:
        """Choose the steps of `evaluate_at` before which enough was recorded, without an estimator."""
        return {None: [step for step in run.measured_steps if step >= _SHORTEST]}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        return []

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure noise and drift: a row for each step and layer, from the last tenth of the trace (16 at least).

        Both are variances per step of the local-level model, averaged over channels. A tenth, because drift follows the
        learning rate: the second half of a one-cycle schedule would describe weights that move much faster.
        """
        rows = []
        for step in steps:
            for depth, (name, layer) in enumerate(run.trace.layers.items(), start=1):
                rows.append({"step": step, "layer": name, "depth": depth, **_fit_layer(layer, step)})
        return pd.DataFrame(rows)


def _fit_layer(layer: LayerTrace, step: int) -> dict[str, float]:
    """Fit the local-level model to the layer's last moments up to a step: all columns that depend on them."""
    recorded = bisect_right(layer.steps, step)
    window = max(_SHORTEST, recorded // 10)
    moments = layer.moments[:recorded][-window:]
    means, variances = moments.double().unbind(1)
    logs = torch.log(variances + layer.eps)

    # The geometric mean of the variances, with eps as in the layer, is the unit of the columns `mean_*`.
    scale = np.exp(logs.mean(0).numpy())
    level = means.mean(0).square().numpy()
    mean = local_level(means.numpy())
    var = local_level(logs.numpy())
    return {
        "channels": moments.shape[2],
        "window": len(moments),
        "mean_level": (level / scale).mean(),
        "mean_noise": (mean.noise / scale).mean(),
        "mean_drift": (mean.drift / scale).mean(),
        "var_noise": var.noise.mean(),
        "var_drift": var.drift.mean(),
    }
