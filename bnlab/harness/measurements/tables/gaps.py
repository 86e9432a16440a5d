"""Table `gaps`: every estimator's distance from exact statistics, by step and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import bnlab
from bnlab.borrow import borrowed
from bnlab.estimators import Stream
from bnlab.gaps import GAP_COLUMNS, layer_gaps, layer_output_gaps
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, seed_by
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, Source
from bnlab.harness.schema import Table, common, real
from bnlab.layout import Layout
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace, replay_bank

_TID_BATCHES = 16  # that distances to single batches are averaged over, at most
_TID_IMAGES = 2048  # in these batches, at most

_ABOUT = """\
How far each estimator's statistics are from exact ones of the training split: a row for each step, layer and setting;
none for networks whose norm has no statistics of the batch. All gaps are averages over the layer's channels; `eps` of
the layer is part of every variance.

With `freeze_at` the estimator ema, at momentum 0.1, is what the network's buffers hold: from that step on the
frozen statistics, also where these are exact. With `averaging` the averaged network is measured, under exact and
precise statistics of its own; running averages are of the batches of the network that was trained. `stale` is its
ema at momentum 0.1, `averaged` the average of its buffers, made as that of its weights. Without averaging both are
the network's own."""


@component
@dataclass(unsafe_hash=True)
class Gaps(Measurement):
    """Table `gaps`."""

    name: str = "gaps"
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
                "distance of the mean from that of single training batches, the next ones, which normalize "
                "themselves; in their standard deviations"
            ),
            "tid_std": real("the same of the standard deviation, relative to that of the batch, minus 1, without sign"),
            "var_ratio": real(
                "variance over that of exact statistics, both with eps, averaged over channels; below 1 it is too small"
            ),
        },
    )

    def scope(self, run: Run, sources: list[Source]) -> dict[Source, list[int]]:
        """Choose `evaluate_at` for all but rules at inference time, whose statistics differ from input to input."""
        return {source: run.wanted for source in sources if not isinstance(source, InferenceRule)}

    def measure(self, run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
        """Measure the gap to `exact` on the training split: a row for each step, source and layer."""
        layout = run.trace.layout
        estimates = flat_statistics(run, sources, steps)
        measured = []
        for k, step in enumerate(steps):
            reference = frozen_statistics(run, step, EXACT)
            exact = layout.flatten(reference)
            estimate = estimates[:, k]
            gaps = layer_gaps(layout, exact, estimate)
            output_gaps = layer_output_gaps(layout, exact, estimate, reference.weights).unsqueeze(0)
            distances = _measure_tid(run, step, layout, estimate)
            ratios = _compare_variances(layout, exact, estimate)
            measured.append(torch.cat((gaps, output_gaps, distances, ratios)))

        names = (*GAP_COLUMNS, "output_gap", "tid_mean", "tid_std", "var_ratio")
        columns = torch.stack(measured, dim=1).numpy()  # each [steps, sources, layers]
        values: dict[str, Any] = dict(zip(names, columns, strict=True))
        values["channels"] = layout.channels
        return tabulate(run, sources, steps, values, layer=layout.names)


def _compare_variances(layout: Layout, exact: Tensor, estimate: Tensor) -> Tensor:
    """Measure `var_ratio`: [1, sources, layers]."""
    exact_var = exact[1] + layout.channel_eps
    var = estimate[:, 1] + layout.channel_eps
    means = layout.layer_means(var / exact_var)
    return means.unsqueeze(0)


def flat_statistics(run: Run, sources: list[Source], steps: list[int]) -> Tensor:
    """Compute every source's statistics at every step: float64 [sources, steps, 2, all channels].

    For a rule at inference time these are exact ones, from which it starts. Where exact statistics were frozen, all
    running averages are equal to them from then on.
    """
    layout = run.trace.layout
    channels = sum(layout.channels)
    values = torch.empty(len(sources), len(steps), 2, channels, dtype=torch.float64)

    running = {}
    for i, source in enumerate(sources):
        if isinstance(source, RunningAverage):
            running[i] = source.average
            continue
        frozen = source if isinstance(source, FrozenWeights) else EXACT
        for k, step in enumerate(steps):
            statistics = frozen_statistics(run, step, frozen)
            values[i, k] = layout.flatten(statistics)

    if running:
        places = [*running]
        values[places] = replay_bank(run.trace, [*running.values()], steps)
        _overwrite_frozen(run, values, places, steps)
    return values


def _overwrite_frozen(run: Run, values: Tensor, running: list[int], steps: list[int]) -> None:
    """Overwrite running averages by exact statistics from the step on at which these were frozen, if they were."""
    if run.config.freeze_with != "exact" or run.frozen_from is None:
        return
    last = run.model_at(run.wanted[-1])
    held = run.trace.layout.flatten(bnlab.running_statistics(last))
    is_frozen = [step >= run.frozen_from for step in steps]
    for i in running:
        values[i, is_frozen] = held


def tabulate(
    run: Run, sources: Sequence[Source], steps: list[int], values: Mapping[str, Any], **axes: Sequence[Any]
) -> pd.DataFrame:
    """Make a table: a row for each step, source and place on further axes, with the columns that describe them.

    Args:
        run: the network.
        sources: of the statistics.
        steps: updates before the measurement.
        values: by column; arrays of the shape [steps, sources, *axes], or that broadcast to it.
        axes: by column, what is at each place; along `layer` the column `depth` counts from 1.
    """
    lengths = [len(each) for each in axes.values()]
    shape = (len(steps), len(sources), *lengths)
    indices = np.indices(shape).reshape(len(shape), -1)
    step, source, *places = indices  # of each row
    columns = {
        "estimator": np.array([each.estimator for each in sources], dtype=object),
        "momentum": np.array([each.momentum for each in sources], dtype=float),
        "statistics_split": np.array([each.split for each in sources], dtype=object),
    }

    frame = pd.DataFrame({"run": run.id, "step": np.array(steps)[step]})
    for name, of_sources in columns.items():
        frame[name] = of_sources[source]
    frame["epoch"] = frame["step"] / run.batches.per_epoch

    for name, place in zip(axes, places, strict=True):
        on_axis = np.array(axes[name])
        frame[name] = on_axis[place]
        if name == "layer":
            frame["depth"] = place + 1

    for name, value in values.items():
        of_all = np.broadcast_to(value, shape)
        frame[name] = of_all.ravel()
    return frame


def _measure_tid(run: Run, step: int, layout: Layout, estimates: Tensor) -> Tensor:
    """Measure `tid_mean` and `tid_std` (2210.05153): [2, sources, layers], of frozen layers too."""
    parts = estimates.split(layout.channels, dim=-1)
    by_layer = dict(zip(layout.names, parts, strict=True))
    trace = _record_next_batches(run, step)

    distances: dict[str, Tensor] = {}
    # There are several streams where a model calls some layers more often than others.
    for names, stream in trace.streams():
        of_stream = [by_layer[name] for name in names]
        measured = _measure_distances(torch.cat(of_stream, dim=-1), stream)
        of_layers = measured.split(stream.layers, dim=-1)
        distances.update(zip(names, of_layers, strict=True))

    in_order = [distances[name] for name in layout.names]
    of_all = torch.cat(in_order, dim=-1)
    return layout.layer_means(of_all)


def _record_next_batches(run: Run, step: int) -> MomentTrace:
    """Record the moments of the batches after a step, without training."""
    model = run.model_at(step)
    enough = max(2, _TID_IMAGES // run.config.batch_size)
    batches = islice(run.batches.from_step(step), min(_TID_BATCHES, enough))
    generator = seed_by(f"{run.id} {step}")

    with borrowed(model), torch.no_grad(), record(model) as trace:
        torch.manual_seed(generator.initial_seed())  # of dropout: all estimators get the same batches
        model.train()
        for images, _ in batches:
            model(images)
    return trace


def _measure_distances(estimate: Tensor, stream: Stream) -> Tensor:
    """Measure |μ − μ_B|/σ_B and |σ/σ_B − 1|, averaged over batches; σ_B with eps, ddof 0.

    Args:
        estimate: float64 [sources, 2, C].
        stream: the batches.

    Returns:
        float64 [2, sources, C].
    """
    batch_mean, batch_var = stream.batches.unbind(1)
    biased_var = batch_var * (stream.counts - 1) / stream.counts
    batch_std = (biased_var + stream.eps).sqrt()

    mean, var = estimate.unsqueeze(1).unbind(2)  # each [sources, 1, C], against the batches
    std = (var + stream.eps).clamp(min=0).sqrt()
    ratio = std / batch_std

    mean_distance = (mean - batch_mean).abs() / batch_std
    std_distance = (ratio - 1).abs()
    return torch.stack((mean_distance.mean(1), std_distance.mean(1)))


def frozen_checkpoint(run: Run, sources: list[Source]) -> list[int]:
    """List the checkpoint from which `flat_statistics` takes running averages where exact statistics were frozen."""
    has_running = any(isinstance(source, RunningAverage) for source in sources)
    is_frozen = run.frozen_from is not None and run.config.freeze_with == "exact"
    return run.wanted[-1:] if has_running and is_frozen else []
