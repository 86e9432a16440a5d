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
from bnlab.gaps import GAP_COLUMNS, layer_gaps
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.components import component
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, seed_by
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, Source
from bnlab.harness.schema import Table, common, real
from bnlab.layout import Layout
from bnlab.recording.block import record
from bnlab.recording.trace import replay_bank

_TID_BATCHES, _TID_IMAGES = 16, 2048  # so many batches or images `_tid` averages over

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
        """All but rules at inference time, whose statistics differ from input to input; all steps of `evaluate_at`."""
        return {source: run.wanted for source in sources if not isinstance(source, InferenceRule)}

    def measure(self, run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
        """One row for each step, source and layer; `exact` on the training split is the reference."""
        layout = run.trace.layout
        estimates = flat_statistics(run, sources, steps)
        measured = []
        for k, step in enumerate(steps):
            reference = layout.flatten(frozen_statistics(run, step, EXACT))
            estimate = estimates[:, k]
            ratio = layout.layer_means((estimate[:, 1] + layout.channel_eps) / (reference[1] + layout.channel_eps))
            parts = layer_gaps(layout, reference, estimate), _tid(run, step, layout, estimate), ratio[None]
            measured.append(torch.cat(parts))
        names = (*GAP_COLUMNS, "tid_mean", "tid_std", "var_ratio")
        values = dict(zip(names, torch.stack(measured, dim=1).numpy(), strict=True))  # each [steps, sources, layers]
        return tabulate(run, sources, steps, {**values, "channels": layout.channels}, layer=layout.names)


def flat_statistics(run: Run, sources: list[Source], steps: list[int]) -> Tensor:
    """Every source's statistics at every step: float64 [sources, steps, 2, all channels].

    Those of a rule at inference time are what it starts from: exact. Where exact statistics were frozen, all running
    averages are these from then on.
    """
    layout = run.trace.layout
    found = torch.empty(len(sources), len(steps), 2, sum(layout.channels), dtype=torch.float64)
    running = {i: s.average for i, s in enumerate(sources) if isinstance(s, RunningAverage)}
    if running:
        found[[*running]] = replay_bank(run.trace, [*running.values()], steps)
    for i, source in enumerate(sources):
        if not isinstance(source, RunningAverage):
            frozen = source if isinstance(source, FrozenWeights) else EXACT
            for k, step in enumerate(steps):
                found[i, k] = layout.flatten(frozen_statistics(run, step, frozen))
    if running and run.config.freeze_with == "exact" and run.frozen_from is not None:
        held = layout.flatten(bnlab.running_statistics(run.model_at(run.wanted[-1])))
        for i in running:
            found[i, [step >= run.frozen_from for step in steps]] = held
    return found


def tabulate(
    run: Run, sources: Sequence[Source], steps: list[int], values: Mapping[str, Any], **axes: Sequence[Any]
) -> pd.DataFrame:
    """One row for each step, source and place on further axes, with the columns that say what it is about.

    Args:
        values: by column; arrays of the shape [steps, sources, *axes], or that broadcast to it.
        axes: by column, what is at each place; along `layer` the column `depth` counts from 1.
    """
    index = np.indices((len(steps), len(sources), *map(len, axes.values())))
    step, source, *places = index.reshape(len(index), -1)
    frame = pd.DataFrame({"run": run.id, "step": np.array(steps)[step]})
    frame["estimator"] = np.array([s.estimator for s in sources], dtype=object)[source]
    frame["momentum"] = np.array([s.momentum for s in sources], dtype=float)[source]
    frame["statistics_split"] = np.array([s.split for s in sources], dtype=object)[source]
    frame["epoch"] = frame["step"] / run.batches.per_epoch
    for (name, each), place in zip(axes.items(), places, strict=True):
        frame[name] = np.array(each)[place]
        if name == "layer":
            frame["depth"] = place + 1
    for name, value in values.items():
        frame[name] = np.broadcast_to(value, index.shape[1:]).ravel()
    return frame


def _tid(run: Run, step: int, layout: Layout, estimates: Tensor) -> Tensor:
    """`tid_mean` and `tid_std` (2210.05153): [2, sources, layers], of frozen layers too.

    mean_c |μ − μ_B|/σ_B and mean_c |σ/σ_B − 1|, averaged over the next training batches; σ_B with eps, ddof 0.
    """
    model = run.model_at(step)
    enough = min(_TID_BATCHES, max(2, _TID_IMAGES // run.config.batch_size))
    with borrowed(model), torch.no_grad(), record(model) as trace:
        torch.manual_seed(seed_by(f"{run.id} {step}").initial_seed())  # of dropout: all estimators get the same batches
        model.train()
        for images, _ in islice(run.batches.from_step(step), enough):
            model(images)
    by_layer = dict(zip(layout.names, estimates.split(layout.channels, dim=-1), strict=True))
    found: dict[str, Tensor] = {}
    for names, stream in trace.streams():  # several where a model calls some layers more often than others
        estimate = torch.cat([by_layer[name] for name in names], dim=-1)
        mean, var = stream.batches.unbind(1)
        std = (var * (stream.counts - 1) / stream.counts + stream.eps).sqrt()
        estimated = (estimate[:, 1] + stream.eps).clamp(min=0).sqrt()
        tid_mean = ((estimate[:, None, 0] - mean).abs() / std).mean(1)
        tid_std = (estimated[:, None] / std - 1).abs().mean(1)
        of_layers = torch.stack((tid_mean, tid_std)).split(stream.layers, dim=-1)
        found.update(zip(names, of_layers, strict=True))
    return layout.layer_means(torch.cat([found[name] for name in layout.names], dim=-1))


def frozen_checkpoint(run: Run, sources: list[Source]) -> list[int]:
    """List the checkpoint from which `flat_statistics` takes running averages where exact statistics were frozen."""
    has_running = any(isinstance(source, RunningAverage) for source in sources)
    is_frozen = run.frozen_from is not None and run.config.freeze_with == "exact"
    return run.wanted[-1:] if has_running and is_frozen else []
