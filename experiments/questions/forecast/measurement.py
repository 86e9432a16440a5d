"""Table `batch_scatter`: do the means of training batches scatter as those of independent images would?"""

from __future__ import annotations

import math
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real

IMAGES = 1000  # of the validation split, or as many as there are
_FEWEST = 40  # latest batches that are compared, unless there have been fewer
_SHARE = 0.1  # of the batches so far that count as the latest, as where the self-tuned momentum scores its averages
_BLOCK = 5  # batches; images of a class that come together make neighbouring batches alike, and blocks of them differ


class BatchScatter(Measurement):
    """Table `batch_scatter`."""

    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "batch_scatter"
    table: ClassVar[Table] = Table(
        about="Whether the latest training batches look like independent images, read from their recorded means in the "
        "first layer and from validation images.",
        key=common("run step"),
        others={
            **common("epoch"),
            "scatter": real(
                f"half the mean squared difference between the averages of {_BLOCK} batch means and of the next "
                f"{_BLOCK}, over the last tenth of the batches so far, at least {_FEWEST}; divided by the variance of "
                "such averages of independent validation images; the median over the first layer's channels; about 1 "
                "where training batches are independent"
            ),
        },
    )

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Compare the two variances: a row for each step."""
        # The first layer alone: deeper means move with the weights.
        first, *_ = run.trace.layers.values()
        batch_means = first.moments[:, 0].double()
        rows = []
        for step in steps:
            count = max(_FEWEST, round(_SHARE * step))
            latest = batch_means[max(0, step - count) : step]
            image_means = read_first_layer(run, step)
            variance = image_means.var(0) / run.config.batch_size
            rows.append({"step": step, "scatter": compare_scatter(latest, variance)})
        return pd.DataFrame(rows)


def compare_scatter(batch_means: Tensor, variance: Tensor) -> float:
    """Compare how far neighbouring blocks of batches differ with what independent batches would.

    Args:
        batch_means: [batches, C], in order; NaN is returned of fewer than two blocks.
        variance: [C], of the mean of a batch of independent images.
    """
    if len(batch_means) < 2 * _BLOCK:
        return math.nan
    averages = batch_means.unfold(0, _BLOCK, 1).mean(-1)
    differences = averages[_BLOCK:] - averages[:-_BLOCK]
    scatter = 0.5 * differences.square().mean(0)
    # A plain mean would be moved by the one channel whose weights move.
    return (scatter / (variance / _BLOCK)).median().item()


@torch.no_grad()
def read_first_layer(run: Run, step: int) -> Tensor:
    """Read what the first batch norm is given of validation images: the mean of each image, float64 [N, C]."""
    model = run.model_at(step).eval()
    name = next(iter(run.trace.layers))
    given: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, values: given.append(values[0]))
    model(run.dataset.val.images[:IMAGES])
    hook.remove()
    return given[0].flatten(2).mean(2).double() if given[0].dim() > 2 else given[0].double()
