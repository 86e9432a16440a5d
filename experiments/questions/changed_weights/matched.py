"""Table `matched_weights`: how the average predicts of two networks that were trained apart, under which statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from bnlab.harness.artifacts.models.cnn import Cnn
from bnlab.harness.artifacts.producing import start_training
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import train
from bnlab.harness.measurements.sources import Source
from bnlab.harness.schema import Table
from experiments.questions.changed_weights.changed import ChangedWeights, average
from experiments.questions.changed_weights.matching import match_channels

OTHER_START = 1000  # added to the seed
IMAGES = 512  # of the training split, on which channels are matched

_ABOUT = f"""\
How the average predicts of two networks that were trained apart, without training it further, and under which
statistics. The second network has the settings of the first, and its seed plus {OTHER_START:,}: other initial weights,
another order of images. All parameters are averaged, and for stale statistics the two running averages. Networks other
than `cnn` have no rows.

- `none`: the first network as it is.
- `apart`: the mean of both as they are.
- `matched`: the mean after each layer's channels of the second were put into the order in which the outputs of its norm
  correlate best with those of the first, over {IMAGES} training images (the assignment with the largest sum)."""


@dataclass(unsafe_hash=True)
class MatchedWeights(ChangedWeights):
    """Table `matched_weights`."""

    name: str = "matched_weights"
    table: ClassVar[Table] = replace(ChangedWeights.table, about=_ABOUT)

    def scope(self, run: Run, sources: list[Source]) -> dict[None, list[int]]:
        """Choose the final step, without an estimator, of networks whose layers form a chain."""
        return super().scope(run, sources) if isinstance(run.config.model, Cnn) else {}

    def reads(self, run: Run, sources: list[Source]) -> list[int]:
        """List the final step."""
        return run.wanted[-1:]

    def build_models(self, run: Run, step: int) -> Iterator[tuple[str, nn.Module]]:
        """Build the network of a step, its average with one trained apart, and that after matching."""
        yield "none", run.model_at(step)

        second = train_apart(run, step)
        yield "apart", average(run.model_at(step), second)

        first = run.model_at(step)
        match_channels(first, second, run.dataset.train.images[:IMAGES])
        yield "matched", average(run.model_at(step), second)


def train_apart(run: Run, step: int) -> nn.Module:
    """Train a second network to `step` from other initial weights, with the images in another order."""
    config = replace(run.config, seed=run.config.seed + OTHER_START)
    second = Run(config)
    second.dataset = run.dataset
    with torch.random.fork_rng():
        progress = start_training(second)
        for _ in train(progress, second.batches, config.optimizer, second.steps, until=step):
            pass
    return progress.model
