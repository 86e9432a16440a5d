"""Table `changed_weights`: how a network predicts whose weights are changed after training, under which statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import TrainingState, train
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import measure_statistics, seed_by
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import compare_statistics
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact, Measured, Precise
from bnlab.statistics.network import Statistics

SAMPLES = (32, 128, 512, 2048)  # training images that statistics are of, beside all
PRUNED = 1 / 3  # share of the weights
_BITS = (8, 4)
_OTHER_ORDER = 2**31  # beyond all seeds that `Seeds.of` draws

_ABOUT = """\
How a network predicts whose weights are changed at the end of training, without training it further, and under which
statistics. Weights are those of convolutions and linear layers, without biases and what belongs to norms.

- `none`: as they are.
- `averaged`: the mean of two networks with a common start. The second one goes on from the checkpoint half-way, with
  images in another order and an optimizer that begins again, under the same learning rates, to the same step. All
  parameters are averaged, and for stale statistics the two running averages. Networks with different starts, whose
  channels have to be matched, have a table of their own, `matched_weights`.
- `pruned`: the third that is smallest in magnitude, of all layers together, is 0.
- `rounded:8`, `rounded:4`: each tensor is rounded to 8 or 4 bits, whole multiples from −127 to 127 (−7 to 7) of its
  largest magnitude over 127 (7). Activations stay as they are."""


class ChangedWeights(Measurement):
    """Table `changed_weights`."""

    about_batches: ClassVar[bool] = True
    at_last_step: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "changed_weights"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "change": text("what is done to the weights, as above"),
            "statistics": text(
                "stale, the running averages that training ended with; precise, of images in batches of the training "
                "size that normalize themselves; exact, layer after layer"
            ),
            "images": integer(
                "training images that precise and exact statistics are of: all, or a sample that is the same for all "
                "changes to a network; 0 for stale ones"
            ),
        },
        others={
            **common("epoch"),
            "accuracy": real("share of test images that are predicted right"),
            "accuracy_lost": real("the same under exact statistics of all images of the changed weights, minus that"),
            "mean_gap": real(
                "as in `gaps`, to exact statistics of all images of the changed weights; root mean square over the "
                "deeper layers"
            ),
            "var_gap": real("the same of the variance"),
        },
    )

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the final step and the one half-way to it, from which the second network goes on."""
        steps = []
        for step in run.measured_steps[-1:]:
            steps += [find_start(step), step]
        return steps

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure how changed weights predict: a row for each change, kind of statistics and number of images."""
        (step,) = steps
        rows = []
        for change, model in self.build_models(run, step):
            for measured in _measure_model(run, step, model):
                rows.append({"step": step, "change": change, **measured})
        return pd.DataFrame(rows)

    def build_models(self, run: Run, step: int) -> Iterator[tuple[str, nn.Module]]:
        """Build the networks of a step with changed weights, buffers as they were; each comes with its name."""
        yield "none", run.model_at(step)
        yield "averaged", average(run.model_at(step), train_second(run, step))
        yield "pruned", prune_smallest(run.model_at(step))
        for bits in _BITS:
            yield f"rounded:{bits}", round_weights(run.model_at(step), bits)


def find_start(step: int) -> int:
    """Find the step half-way, from which the second network goes on."""
    # The first checkpoint is that after one update.
    return max(1, step // 2)


def average(model: nn.Module, second: nn.Module) -> nn.Module:
    """Average the parameters and running averages of two networks, in the first one; returns that."""
    others = second.state_dict()
    for name, values in model.state_dict().items():
        # Counts of batches are whole numbers, and stay those of the first network.
        if values.is_floating_point():
            values.lerp_(others[name], 0.5)
    return model


def train_second(run: Run, step: int) -> nn.Module:
    """Train a second network to `step` from the checkpoint half-way, with the images in another order."""
    start = find_start(step)
    model = run.model_at(start)
    # It begins again, because a checkpoint has no state of the optimizer.
    optimizer = run.config.optimizer.build(model.parameters(), run.config.batch_size)
    first = run.batches
    seeds = replace(
        first.seeds, order=first.seeds.order + _OTHER_ORDER, augmentation=first.seeds.augmentation + _OTHER_ORDER
    )
    batches = replace(first, seeds=seeds)
    with torch.random.fork_rng():
        torch.manual_seed(seed_by(f"{run.id} second").initial_seed())  # of dropout and the like
        # By its step the schedule goes on where it was, so that both networks have the same learning rates.
        progress = TrainingState(model, optimizer, run.objective, step=start, precision=run.config.precision)
        for _ in train(progress, batches, run.config.optimizer, run.steps, until=step):
            pass
    return model


def prune_smallest(model: nn.Module, share: float = PRUNED) -> nn.Module:
    """Set a share of the weights to 0 in place, the smallest in magnitude of all layers; returns the model."""
    weights = _list_weights(model)
    # One threshold for all layers, so that those with small weights lose more of them.
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    count = round(share * len(magnitudes))
    largest, _ = magnitudes.kthvalue(count)
    for weight in weights:
        weight[weight.abs() <= largest] = 0
    return model


def round_weights(model: nn.Module, bits: int) -> nn.Module:
    """Round each tensor of weights to so many bits, symmetric about 0, in place; returns the model."""
    # The integer −2^(bits − 1) is left out, so that the range is symmetric about 0.
    most = 2 ** (bits - 1) - 1
    for weight in _list_weights(model):
        unit = weight.abs().max() / most
        if unit > 0:  # weights that are all 0 stay so
            weight.copy_((weight / unit).round() * unit)
    return model


def _list_weights(model: nn.Module) -> list[Tensor]:
    """List the weights of convolutions and linear layers, without gradients: writing into them changes the model."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return [layer.weight.detach() for layer in layers]


def _measure_model(run: Run, step: int, model: nn.Module) -> Iterator[dict[str, Any]]:
    """Evaluate a network under all kinds of statistics: exact ones of all images come first, as the reference."""
    candidates = list(_list_candidates(run, step, model))
    compared = compare_statistics(model, run.dataset.test, [statistics for *_, statistics in candidates])
    for (kind, images, _), values in zip(candidates, compared, strict=True):
        yield {"statistics": kind, "images": images, **values}


def _list_candidates(run: Run, step: int, model: nn.Module) -> Iterator[tuple[str, int, Statistics]]:
    """Measure exact and precise statistics of all training images and of samples; stale ones are what it holds.

    Each comes behind its kind and the number of images that it is of.
    """
    images = run.dataset.train.images
    # One draw for all sizes and changes: a smaller sample is part of the larger ones.
    order = torch.randperm(len(images), generator=seed_by(f"{run.id} {step} changed")).to(images.device)
    kinds: list[Measured] = [Exact(), Precise()]
    for kind in kinds:
        yield kind.name, len(images), measure_statistics(run, kind, model, images)

    yield "stale", 0, bnlab.running_statistics(model)

    for count in SAMPLES:
        if count < len(images):
            sample = images[order[:count]].contiguous(memory_format=torch.channels_last)
            for kind in kinds:
                yield kind.name, count, measure_statistics(run, kind, model, sample)
