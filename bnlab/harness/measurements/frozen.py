"""Statistics of a checkpoint's frozen weights, computed once and kept with the run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

import bnlab
from bnlab.borrow import borrowed
from bnlab.estimators import Cumulative, WeightedCumulative
from bnlab.files import digest, reading
from bnlab.harness.artifacts.data import Split, augment
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.sources import FrozenWeights
from bnlab.recording.block import record
from bnlab.recording.frozen import record_frozen
from bnlab.recording.trace import MomentTrace, replay
from bnlab.statistics import Statistics

# A batch for exact statistics and evaluation: the result does not depend on it; this many 32×32 images fit a cache.
IMAGES_AT_ONCE = 256
_TID_BATCHES, _TID_IMAGES = 16, 2048  # so many batches or images the distance to batch statistics is averaged over
_UPSTREAM = {"exact": "population", "precise": "batch"}
_AVERAGES = {"update_bn": Cumulative(), "swa": WeightedCumulative()}

VERSION = 4  # of all that is measured: what was cached under another one counts as missing
EXACT = FrozenWeights("exact", None, "train")  # the reference of every gap


def frozen_statistics(run: Run, step: int, source: FrozenWeights) -> Statistics:
    """The source's statistics of the checkpoint at `step`, from the run's folder if they are there."""
    if source.statistic == "averaged":
        return bnlab.running_statistics(run.model_at(step))
    of = f"{source.statistic}-{source.split}-{source.images or 'all'}"
    made_from = digest(run.training, run.dataset.train.digest, str(VERSION), digits=10)
    path = run.folder / "statistics" / f"{of}-{step:07d}-{made_from}.safetensors"
    if path.exists():
        with reading(path):
            return Statistics.load(path)
    found = _measure(run, step, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def _measure(run: Run, step: int, source: FrozenWeights) -> Statistics:
    size = IMAGES_AT_ONCE if source.statistic == "exact" else run.config.batch_size
    model, batches = run.model_at(step), [images for images, _ in population(run, step, source, size)]
    if source.statistic in _UPSTREAM:
        return bnlab.population_statistics(model, batches, upstream=_UPSTREAM[source.statistic])
    trace = record_frozen(model, batches)
    return replay(trace, _AVERAGES[source.statistic], [trace.last_step])[trace.last_step]


def population(run: Run, step: int, source: FrozenWeights, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The source's images and labels in batches; fewer than all are others for each network, step and number."""
    split, data = population_split(run, source), run.config.data
    # Fixed draws: the augmented population is the same for every checkpoint and estimator.
    generator = torch.Generator().manual_seed(0)
    images, labels = split.images, split.labels
    if source.images is not None and source.images < len(labels):
        # One sample for all seeds would put its own error into every mean, where no interval shows it.
        draw = seed_by(f"{run.id} {step} {source.images}")
        chosen = torch.randperm(len(labels), generator=draw)[: source.images].to(labels.device)
        images, labels = images[chosen].contiguous(memory_format=torch.channels_last), labels[chosen]
    if source.split == "train_augmented":
        images = augment(images, generator, shift=data.shift, flip=data.flips)
    for index in in_batches(len(labels), batch_size):
        yield images[index], labels[index]


def seed_by(name: str) -> torch.Generator:
    """A generator of random numbers, the same for the same name, such as that of a network and what is drawn for it."""
    return torch.Generator().manual_seed(int(digest(name, digits=12), 16))


def in_batches(count: int, size: int) -> list[slice]:
    """`count` images in batches; a last one alone joins the batch before it (it has no variance of its own)."""
    return [slice(*ends) for ends in pairwise([*range(0, max(1, count - 1), size), count])]


def population_split(run: Run, source: FrozenWeights) -> Split:
    return run.dataset.val if source.split == "val" else run.dataset.train


def batch_moments(run: Run, step: int) -> MomentTrace:
    """Moments of the next few training batches at the checkpoint; they normalize themselves, also in frozen layers."""
    model = run.model_at(step)
    enough = min(_TID_BATCHES, max(2, _TID_IMAGES // run.config.batch_size))
    with borrowed(model), torch.no_grad(), record(model) as trace:
        torch.manual_seed(seed_by(f"{run.id} {step}").initial_seed())  # of dropout: all estimators get the same batches
        model.train()
        for number, (images, _) in enumerate(run.batches.from_step(step)):
            if number == enough:
                break
            model(images)
    return trace
