"""Statistics of a checkpoint's frozen weights, computed once and kept with the run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import bnlab
from bnlab.files import digest
from bnlab.harness.artifacts.data import Split, augment
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.sources import FrozenWeights
from bnlab.harness.statistics import Exact, Measured
from bnlab.statistics import Statistics

# A batch for exact statistics and evaluation: the result does not depend on it; this many 32×32 images fit a cache.
IMAGES_AT_ONCE = 256

VERSION = 5  # of all measurements: rows and statistics that were cached under another one count as missing
EXACT = FrozenWeights.of(Exact(), "train")  # the reference of every gap


def frozen_statistics(run: Run, step: int, source: FrozenWeights) -> Statistics:
    """Measure the source's statistics of the checkpoint at `step`, or read them where the run's folder has them."""
    statistic = source.statistic
    if not isinstance(statistic, Measured):
        return bnlab.running_statistics(run.model_at(step))

    path = _find_path(run, step, source)
    if path.exists():
        return Statistics.load(path)

    batch_size = run.config.batch_size if statistic.depends_on_batch_size else IMAGES_AT_ONCE
    batches = draw_population(run, step, source, batch_size)
    measured = statistic.measure(run.model_at(step), batches, run.memory)
    measured.save(path)
    return measured


def _find_path(run: Run, step: int, source: FrozenWeights) -> Path:
    """Name the file of these statistics by all that they depend on."""
    images = str(run.limit_at(step) or "all")
    if source.images:
        images = f"drawn{source.images}"  # other images than the sample of as many that `population_images` measures

    data = run.dataset.train.digest
    made_from = digest(run.training, data, str(VERSION), digits=10)
    parts = [
        source.statistic.name,
        source.split,
        images,
        f"{step:07d}",
        made_from,
    ]
    name = "-".join(parts)
    return run.folder / "statistics" / f"{name}.safetensors"


def draw_population(run: Run, step: int, source: FrozenWeights, batch_size: int) -> list[Tensor]:
    """Draw the source's images, in batches.

    Where the estimator names a number of images, each network, step and number has a sample of its own.
    """
    is_augmented = source.split == "train_augmented"
    population = run.dataset.train_augmented if is_augmented else find_population(run, source)
    if source.images is None:
        images = population.sample(run.limit_at(step)).images
    else:
        # One sample for all seeds would put its own error into every mean, where no interval shows it.
        generator = seed_by(f"{run.id} {step} {source.images}")
        images = _draw_sample(population.images, source.images, generator)

    if is_augmented:
        data = run.config.data
        generator = torch.Generator().manual_seed(0)  # the same for every checkpoint and estimator
        images = augment(images, generator, shift=data.shift, flip=data.flips)
    return [images[part] for part in in_batches(len(images), batch_size)]


def _draw_sample(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw so many of the images, or return all of them if there are no more."""
    if count >= len(images):
        return images
    order = torch.randperm(len(images), generator=generator)
    chosen = order[:count].to(images.device)
    return images[chosen].contiguous(memory_format=torch.channels_last)


def seed_by(name: str) -> torch.Generator:
    """Make a generator of random numbers that are the same for the same name, as of a network and what is drawn."""
    seed = int(digest(name, digits=12), 16)
    return torch.Generator().manual_seed(seed)


def in_batches(count: int, size: int) -> list[slice]:
    """Divide `count` images into batches; a last one alone, which has no variance, joins the batch before it."""
    starts = range(0, max(1, count - 1), size)
    return [slice(start, end) for start, end in pairwise([*starts, count])]


def find_population(run: Run, source: FrozenWeights) -> Split:
    """Find the images that the source's statistics are of, or drawn from; not augmented."""
    return run.dataset.val if source.split == "val" else run.dataset.train
