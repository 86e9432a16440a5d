"""Table `averaged_weights`: how averages of the weights predict, over windows of several lengths of one training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import measure_statistics, seed_by
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import compare_statistics
from bnlab.harness.schema import Table, common, real, text
from bnlab.harness.statistic_kinds import Exact
from bnlab.statistics.network import Statistics

WINDOWS = (0.0064, 0.0128, 0.0256, 0.051, 0.102, 0.2)
IMAGES = 2048  # of the training split, that statistics are recomputed on

_ABOUT = """\
How exponential averages of the weights of one training predict. After each update
new = decay·old + (1 − decay)·weights, from the first update on, and likewise for the running averages, of momentum
0.1."""


class AveragedWeights(Measurement):
    """Table `averaged_weights`."""

    about_batches: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "averaged_weights"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "window": real(
                "updates that the average reaches back, 1 / (1 - decay), at least one, as a share of all updates; 0 is "
                "the trained network"
            ),
            "statistics": text(
                "kept, the trained network's running averages; averaged, the average of these; recomputed, exact, of "
                f"{IMAGES:,} training images that are drawn for each network"
            ),
        },
        others={
            **common("epoch"),
            "accuracy": real("share of test images that are predicted right"),
            "accuracy_lost": real("the same under recomputed statistics, minus that"),
            "mean_gap": real("as in `gaps`, to recomputed statistics; root mean square over the deeper layers"),
            "var_gap": real("the same of the variance"),
        },
    )

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List all steps, each of which is averaged."""
        return [*range(1, run.measured_steps[-1] + 1)] if run.measured_steps else []

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Average the checkpoints over every window: a row for each step, window and kind of statistics."""
        rows = []
        for step, averages in average_checkpoints(run, WINDOWS, steps):
            for window, state in averages.items():
                for row in _measure_average(run, step, state):
                    rows.append({"step": step, "window": window, **row})
        return pd.DataFrame(rows)


def average_checkpoints(
    run: Run, windows: Sequence[float], steps: Sequence[int]
) -> Iterator[tuple[int, Mapping[float, dict[str, Tensor]]]]:
    """Average weights and buffers over several windows at once, and yield them at each of these steps.

    Each comes with the state of the trained network, as window 0. The averages go on to grow in place.
    """
    # Each average is changed in place, and needs tensors of its own.
    averages = {window: run.load_checkpoint(1) for window in windows}
    for step in range(1, max(steps) + 1):
        newest = run.load_checkpoint(step)
        for window, average in averages.items():
            # In a short training a window may be shorter than an update. A weight above 1 would overshoot the
            # newest weights.
            updates = max(1.0, window * run.steps)
            for name, values in average.items():
                # Counts of batches are whole numbers, which `lerp_` does not take.
                if values.is_floating_point():
                    values.lerp_(newest[name], 1 / updates)
        if step in steps:
            yield step, {0.0: newest, **averages}


def _measure_average(run: Run, step: int, state: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Evaluate averaged weights under recomputed statistics, those of the trained network, and averaged ones."""
    model = run.model_at(step)
    # The buffers of the trained network, before those of the average take their place.
    kept = bnlab.running_statistics(model)

    model.load_state_dict(state)
    averaged = bnlab.running_statistics(model)
    recomputed = _recompute(run, model)

    # Recomputed statistics come first, because `compare_statistics` takes the first ones as the reference.
    candidates = {"recomputed": recomputed, "kept": kept, "averaged": averaged}
    compared = compare_statistics(model, run.dataset.test, list(candidates.values()))
    for name, values in zip(candidates, compared, strict=True):
        yield {"statistics": name, **values}


def _recompute(run: Run, model: nn.Module) -> Statistics:
    """Measure exact statistics of training images that are drawn for each network."""
    images = run.dataset.train.images
    order = torch.randperm(len(images), generator=seed_by(f"{run.id} recomputed"))
    chosen = order[:IMAGES].to(images.device)
    sample = images[chosen].contiguous(memory_format=torch.channels_last)

    return measure_statistics(run, Exact(), model, sample)
