"""Table `weight_norms`: how large the weights of each convolution are, and the learning rate that moves them."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
from torch import nn

from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real
from bnlab.harness.updates import lr_factor


class WeightNorms(Measurement):
    """Table `weight_norms`."""

    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "weight_norms"
    table: ClassVar[Table] = Table(
        about="How large the weights of each convolution are. Batch norm after it makes the network the same at any "
        "size, so that the learning rate over the squared norm says how far an update turns the weights.",
        key=common("run step layer"),
        others={
            **common("epoch depth"),
            "weight_norm": real("root of the sum of a convolution's squared weights"),
            "rate": real("learning rate of the update before the step"),
        },
    )

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure the norms: a row for each step and convolution."""
        optimizer = run.config.optimizer
        peak = optimizer.peak_lr(run.config.batch_size)
        rows = []
        for step in steps:
            rate = peak * lr_factor(optimizer.schedule, step - 1, run.steps)
            modules = run.model_at(step).named_modules()
            convolutions = [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]
            for depth, (name, convolution) in enumerate(convolutions, start=1):
                norm = convolution.weight.norm().item()
                rows.append({"step": step, "layer": name, "depth": depth, "weight_norm": norm, "rate": rate})
        return pd.DataFrame(rows)
