"""Table `matched_weights`: how the average predicts of two networks that were trained apart, under which statistics.

The order of a layer's channels is arbitrary: a network computes the same if they are permuted together with the weights
that read them. So two networks can have learnt nearly the same in different orders (Li et al. 2015, Convergent
learning), and are matched before they are averaged (Jordan et al. 2023, REPAIR).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bnlab.harness.artifacts.models import Cnn
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import train
from bnlab.harness.artifacts.training_runner import start_training
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table
from bnlab.model.borrow import keep_random_state
from bnlab.model.layers import BatchNorm
from experiments.questions.changed_weights.changed import ChangedWeights, average

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


class MatchedWeights(ChangedWeights):
    """Table `matched_weights`."""

    name: ClassVar[str] = "matched_weights"
    table: ClassVar[Table] = replace(ChangedWeights.table, about=_ABOUT)

    def scope(self, run: Run, subjects: list[Subject]) -> Mapping[Any, list[int]]:
        """Choose the final step, without an estimator, of networks whose layers form a chain."""
        return super().scope(run, subjects) if isinstance(run.config.model, Cnn) else {}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the final step."""
        return run.measured_steps[-1:]

    def build_models(self, run: Run, step: int) -> Iterator[tuple[str, nn.Module]]:
        """Build the network of a step, its average with one trained apart, and that after matching."""
        yield "none", run.model_at(step)

        second = train_apart(run, step)
        # Built before the channels are matched, which permutes `second` in place.
        yield "apart", average(run.model_at(step), second)

        first = run.model_at(step)
        match_channels(first, second, run.dataset.train.images[:IMAGES])
        yield "matched", average(run.model_at(step), second)


def train_apart(run: Run, step: int) -> nn.Module:
    """Train a second network to `step` from other initial weights, with the images in another order."""
    config = replace(run.config, seed=run.config.seed + OTHER_START)
    second = Run(config)
    # The images do not depend on the seed, and need not be loaded a second time.
    second.dataset = run.dataset
    # `start_training` sets the random states of torch, numpy and Python. They are put back at the end of the block.
    with torch.random.fork_rng(), keep_random_state():
        progress = start_training(second)
        for _ in train(progress, second.batches, config.optimizer, second.steps, until=step):
            pass
    return progress.model


@torch.no_grad()
def match_channels(first: nn.Module, second: nn.Module, images: Tensor) -> None:
    """Permute the channels of `second` in place, layer by layer, so that they correlate best with those of `first`.

    Both are chains of convolutions, each with a batch norm behind it, and a linear head. `second` predicts as before.
    """
    # A layer's outputs stay as they are when channels before it are permuted together with the weights that
    # read them. So all correlations can be computed before the first permutation.
    correlations = correlate_channels(first, second, images)

    # Each norm lies between the layer that writes its channels and the next one, which reads them. Pooling
    # leaves the head one value a channel, so that it is permuted as a convolution is.
    norms = [layer for layer in second.children() if isinstance(layer, BatchNorm)]
    weighted = [layer for layer in second.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for norm, correlation, (writer, reader) in zip(norms, correlations, pairwise(weighted), strict=True):
        # Rows are channels of `first`: `order` has for each the channel of `second` that takes its place.
        _, order = linear_sum_assignment(correlation.numpy(), maximize=True)
        chosen = torch.as_tensor(order, device=images.device)

        # A convolution before a batch norm has no bias that would have to be permuted.
        writer.weight.copy_(writer.weight[chosen])
        reader.weight.copy_(reader.weight[:, chosen])
        for values in norm.state_dict().values():
            if values.dim() == 1:  # not the count of batches
                values.copy_(values[chosen])


@torch.no_grad()
def correlate_channels(first: nn.Module, second: nn.Module, images: Tensor) -> list[Tensor]:
    """Correlate the outputs of each norm over images and pixels, under running averages: float64 [C, C] for each."""
    first.eval()
    second.eval()
    correlations = []
    ours = theirs = images
    for layer, other in zip(first.children(), second.children(), strict=True):
        ours = layer(ours)
        theirs = other(theirs)
        # Read at once, because the ReLU behind a norm overwrites its outputs in place.
        if isinstance(layer, BatchNorm):
            channels = ours.shape[1]
            both = torch.cat([_list_values(ours), _list_values(theirs)])
            correlations.append(both.corrcoef()[:channels, channels:].cpu())
    return correlations


def _list_values(outputs: Tensor) -> Tensor:
    """Reshape [N, C, H, W] to float64 [C, N * H * W]."""
    return outputs.transpose(0, 1).flatten(1).double()
