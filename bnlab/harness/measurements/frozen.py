"""Statistics of a checkpoint's frozen weights, computed once and kept with the run."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import bnlab
from bnlab.estimators import Cumulative, WeightedCumulative
from bnlab.files import digest
from bnlab.harness.artifacts.cores import share_of_memory
from bnlab.harness.artifacts.data import Split, augment
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.sources import FrozenWeights
from bnlab.recording.frozen import record_frozen
from bnlab.recording.trace import replay
from bnlab.statistics import Statistics

# A batch for exact statistics and evaluation: the result does not depend on it; this many 32×32 images fit a cache.
IMAGES_AT_ONCE = 256
_UPSTREAM = {"exact": "population", "precise": "batch"}
_AVERAGES = {"update_bn": Cumulative(), "swa": WeightedCumulative()}

VERSION = 4  # of all that is measured: what was cached under another one counts as missing
EXACT = FrozenWeights("exact", None, "train")  # the reference of every gap


def frozen_statistics(run: Run, step: int, source: FrozenWeights) -> Statistics:
    """The source's statistics of the checkpoint at `step`, from the run's folder if they are there."""
    if source.statistic == "averaged":
        return bnlab.running_statistics(run.model_at(step))
    drawn = f"drawn{source.images}" if source.images else run.limit_at(step) or "all"  # of one number other images
    of = f"{source.statistic}-{source.split}-{drawn}"
    made_from = digest(run.training, run.dataset.train.digest, str(VERSION), digits=10)
    path = run.folder / "statistics" / f"{of}-{step:07d}-{made_from}.safetensors"
    if path.exists():
        return Statistics.load(path)
    size = IMAGES_AT_ONCE if source.statistic == "exact" else run.config.batch_size
    model, batches = run.model_at(step), draw_population(run, step, source, size)
    if source.statistic in _UPSTREAM:
        memory = share_of_memory(run.device)
        found = bnlab.population_statistics(model, batches, upstream=_UPSTREAM[source.statistic], memory=memory)
    else:
        trace = record_frozen(model, batches)
        found = replay(trace, _AVERAGES[source.statistic], [trace.last_step])[trace.last_step]
    found.save(path)
    return found


def draw_population(run: Run, step: int, source: FrozenWeights, batch_size: int) -> list[Tensor]:
    """The source's images in batches; as many as an estimator names are others for each network, step and number."""
    limit = run.limit_at(step) if source.images is None else None
    population = find_population(run, source)
    if source.split == "train_augmented":
        population = run.dataset.train_augmented
    images, data = population.sample(limit).images, run.config.data
    if source.images is not None and source.images < len(images):
        # One sample for all seeds would put its own error into every mean, where no interval shows it.
        chosen = torch.randperm(len(images), generator=seed_by(f"{run.id} {step} {source.images}"))[: source.images]
        images = images[chosen.to(images.device)].contiguous(memory_format=torch.channels_last)
    if source.split == "train_augmented":  # the same for every checkpoint and estimator
        images = augment(images, torch.Generator().manual_seed(0), shift=data.shift, flip=data.flips)
    return [images[part] for part in in_batches(len(images), batch_size)]


def seed_by(name: str) -> torch.Generator:
    """A generator of random numbers, the same for the same name, such as that of a network and what is drawn for it."""
    return torch.Generator().manual_seed(int(digest(name, digits=12), 16))


def in_batches(count: int, size: int) -> list[slice]:
    """`count` images in batches; a last one alone joins the batch before it (it has no variance of its own)."""
    return [slice(*ends) for ends in pairwise([*range(0, max(1, count - 1), size), count])]


def find_population(run: Run, source: FrozenWeights) -> Split:
    """The images that the source's statistics are of, or drawn from; not augmented."""
    return run.dataset.val if source.split == "val" else run.dataset.train
