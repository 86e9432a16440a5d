"""Table `gaps`: every estimator's distance from exact statistics, by step and layer."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from bnlab.gaps.gap import GAP_COLUMNS, layer_gaps, layer_output_gaps
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.estimates import EXACT, flat_statistics, measure_at, seed_by, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, real
from bnlab.model.borrow import borrowed
from bnlab.recording.block import record
from bnlab.statistics.layout import Layout

_TID_BATCHES = 16  # that distances to single batches are averaged over, at most
_TID_IMAGES = 2048  # in these batches, at most

_ABOUT = """\
How far each estimator's statistics are from exact statistics of the training split: a row for each step, layer and
setting. Networks whose norm has no batch statistics have no rows. All gaps are averages over the layer's channels, and
the layer's `eps` is part of every variance.

With `freeze_at`, the estimator ema at momentum 0.1 is what the network's buffers hold: from that step on the frozen
statistics, even if these are exact. With `averaging`, the averaged network is measured. Its exact and precise
statistics are its own, but running averages are of the batches of the trained network: `stale` is that network's ema at
momentum 0.1, `averaged` the average of its buffers, averaged like its weights. Without averaging, both are the
network's own."""


class Gaps(Measurement):
    """Table `gaps`."""

    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "gaps"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key=common("run step estimator momentum statistics_split layer"),
        others={
            **common("epoch depth channels"),
            "mean_gap": real(
                "root mean square over channels of the mean's distance, in standard deviations of the exact statistics"
            ),
            "var_gap": real("root mean square over channels of the logarithm of the ratio of variances"),
            "kl": real("Kullback–Leibler divergence of the channels' normal distributions, in nats"),
            "output_gap": real(
                "root mean square over channels of how far the layer's output is off for standardized inputs: |γ| "
                "times the distance of mean and standard deviation from exact ones, in standard deviations of the "
                "estimate"
            ),
            "tid_mean": real(
                "distance of the mean from the means of the next single training batches, which normalize themselves, "
                "in their standard deviations"
            ),
            "tid_std": real("the same for the standard deviation: absolute difference relative to the batch's"),
            "var_ratio": real(
                "variance divided by the exact variance, both with eps, averaged over channels; below 1 it is too small"
            ),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose `evaluate_at` for all but rules at inference time, whose statistics differ from input to input."""
        return {each: run.measured_steps for each in subjects if not each.is_rule}

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure the gap to `exact` on the training split: a row for each step, subject and layer."""
        layout = run.trace.layout
        estimates = flat_statistics(run, subjects, steps)
        measured = []
        for k, step in enumerate(steps):
            reference = measure_at(run, step, EXACT)
            exact = layout.flatten(reference)
            estimate = estimates[:, k]
            gaps = layer_gaps(layout, exact, estimate)
            output_gaps = layer_output_gaps(layout, exact, estimate, reference.weights)

            # Distances to single batches (2210.05153).
            distances = _measure_distances(run, step, layout, estimate)

            ratio = (estimate[:, 1] + layout.channel_eps) / (exact[1] + layout.channel_eps)
            others = [output_gaps, *distances, layout.layer_means(ratio)]
            measured.append(torch.stack([*gaps, *others]))

        names = (*GAP_COLUMNS, "output_gap", "tid_mean", "tid_std", "var_ratio")
        columns = torch.stack(measured, dim=1).numpy()  # each [steps, subjects, layers]
        values: dict[str, Any] = dict(zip(names, columns, strict=True))
        values["channels"] = layout.channels
        return tabulate(subjects, steps, values, layer=layout.names)


def _measure_distances(run: Run, step: int, layout: Layout, estimates: Tensor) -> Tensor:
    """Measure |μ − μ_B|/σ_B and |σ/σ_B − 1|, averaged over the next batches; σ_B with eps, ddof 0.

    Estimates are float64 [subjects, 2, all channels], distances float64 [2, subjects, layers].
    """
    model = run.model_at(step)
    count = min(_TID_BATCHES, max(2, _TID_IMAGES // run.config.batch_size))
    batches = islice(run.batches.from_step(step), count)
    with borrowed(model), torch.no_grad(), record(model) as trace:
        torch.manual_seed(seed_by(f"{run.id} {step}").initial_seed())  # of dropout: all estimators get the same batches
        model.train()
        for images, _ in batches:
            model(images)

    measured = []
    for name, estimate in zip(layout.names, estimates.split(layout.channels, dim=-1), strict=True):
        layer = trace.layers[name]
        counts = torch.tensor(layer.counts, dtype=torch.float64).unsqueeze(1)
        batch_mean, batch_var = layer.moments.double().unbind(1)
        # Traces hold the unbiased variances that torch averages, but a batch normalizes itself by the biased one.
        biased_var = batch_var * (counts - 1) / counts
        batch_std = (biased_var + layer.eps).sqrt()

        mean, var = estimate.unsqueeze(1).unbind(2)  # each [subjects, 1, C], against the batches
        # An estimator may give a variance below −eps.
        std = (var + layer.eps).clamp(min=0).sqrt()
        mean_distance = (mean - batch_mean).abs() / batch_std
        std_distance = (std / batch_std - 1).abs()
        measured.append(torch.stack((mean_distance.mean((1, 2)), std_distance.mean((1, 2)))))
    return torch.stack(measured, dim=-1)
