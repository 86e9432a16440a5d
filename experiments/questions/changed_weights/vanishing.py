"""Table `vanishing`: how much the outputs of each layer vary in merged and pruned networks, under which statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import measure_statistics
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact
from bnlab.model.layers import BatchNorm
from bnlab.statistics.network import Statistics, using
from experiments.questions.changed_weights.changed import prune_smallest
from experiments.questions.changed_weights.matched import IMAGES, MatchedWeights

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95)

_ABOUT = """\
How much the outputs of each norm vary in merged and pruned networks, without training them further. `none`, `apart` and
`matched` are the networks of `matched_weights`. In `pruned:0.9` nine in ten weights are 0, those that are smallest in
magnitude of all layers together; other shares likewise."""


class Vanishing(MatchedWeights):
    """Table `vanishing`."""

    name: ClassVar[str] = "vanishing"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "change": text("what is done to the weights, as above"),
            "statistics": text(
                "stale, the running averages that training ended with, those of two networks averaged as the weights "
                "are; exact, of all training images"
            ),
            **common("layer"),
        },
        others={
            **common("epoch depth"),
            "layers": integer("norms of the network"),
            "variance_ratio": real(
                f"variance of the norm's outputs over {IMAGES} training images and their pixels, averaged over "
                "channels, relative to that of the unchanged network under exact statistics"
            ),
            "accuracy": real("share of test images that are predicted right; the same in the rows of all layers"),
            "accuracy_lost": real("the same of the unchanged network under exact statistics, minus that"),
        },
    )

    def build_models(self, run: Run, step: int) -> Iterator[tuple[str, nn.Module]]:
        """Build the network of a step, merged with one trained apart, and pruned; the unchanged one comes first."""
        yield from super().build_models(run, step)
        for share in SHARES:
            yield f"pruned:{share}", prune_smallest(run.model_at(step), share)

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure every changed network: a row for each kind of statistics and layer."""
        (step,) = steps
        frames = []
        for change, model in self.build_models(run, step):
            exact = measure_statistics(run, Exact(), model, run.dataset.train.images)
            for name, statistics in (("exact", exact), ("stale", bnlab.running_statistics(model))):
                frame = _measure_layers(run, model, statistics)
                frames.append(frame.assign(change=change, statistics=name))

        measured = pd.concat(frames, ignore_index=True)
        # The first frame is the reference of all rows: the unchanged network under exact statistics.
        unchanged = frames[0].set_index("layer")
        variance = measured["layer"].map(unchanged["variance"])
        return measured.assign(
            step=step,
            variance_ratio=measured.pop("variance") / variance,
            accuracy_lost=unchanged["accuracy"].iloc[0] - measured["accuracy"],
        )


def _measure_layers(run: Run, model: nn.Module, statistics: Statistics) -> pd.DataFrame:
    """Measure the variance of each norm's outputs and the accuracy of a network: a row for each layer."""
    accuracy = measure_accuracy(model, run.dataset.test, statistics)
    variances = measure_variances(model, statistics, run.dataset.train.images[:IMAGES])
    rows: list[dict[str, Any]] = []
    for depth, (layer, variance) in enumerate(variances.items(), start=1):
        rows.append({"layer": layer, "depth": depth, "variance": variance})
    return pd.DataFrame(rows).assign(layers=len(rows), accuracy=accuracy)


@torch.no_grad()
def measure_variances(model: nn.Module, statistics: Statistics, images: Tensor) -> dict[str, float]:
    """Measure the variance (ddof 0) of each norm's outputs over images and pixels, averaged over channels, by layer."""
    variances: dict[str, float] = {}
    outputs = images
    with using(model, statistics):
        for name, layer in model.named_children():
            outputs = layer(outputs)
            # Read at once, because the ReLU behind a norm overwrites its outputs in place.
            if isinstance(layer, BatchNorm):
                of_channels = outputs.double().var((0, 2, 3), correction=0)
                variances[name] = of_channels.mean().item()
    return variances
