"""Statistics of a checkpoint's frozen weights, computed once and kept with the run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

import bnlab
from bnlab.estimators import Cumulative, WeightedCumulative
from bnlab.harness.data import Split, augment
from bnlab.harness.measurements.sources import Setting
from bnlab.harness.runs import Run
from bnlab.layers import borrowed
from bnlab.statistics import Statistics
from bnlab.storage import set_aside
from bnlab.trace import MomentTrace, record, record_frozen, replay

# A batch for exact statistics and evaluation: the result does not depend on it; this many 32×32 images fit a cache.
IMAGES_AT_ONCE = 256
_TID_BATCHES, _TID_IMAGES = 16, 2048  # so many batches or images the distance to batch statistics is averaged over
_UPSTREAM = {"exact": "population", "precise": "batch"}
_AVERAGES = {"update_bn": Cumulative(), "swa": WeightedCumulative()}

VERSION = 2  # of all that is measured: what was cached under another one counts as missing
EXACT = Setting("exact", None, "train")  # the reference of every gap


def frozen_statistics(run: Run, step: int, setting: Setting) -> Statistics:
    """The setting's statistics of the checkpoint at `step`, from the run's folder if they are there."""
    name = f"{setting.kind}-{setting.split}-{setting.images or 'all'}-{step:07d}-v{VERSION}.safetensors"
    path = run.folder / "statistics" / name
    try:
        return Statistics.load(path)
    except FileNotFoundError:
        pass
    except ValueError as error:
        set_aside(path, error, "measured again")
    found = _measure(run, step, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def _measure(run: Run, step: int, setting: Setting) -> Statistics:
    size = IMAGES_AT_ONCE if setting.kind == "exact" else run.config.batch_size
    model, batches = run.model_at(step), [images for images, _ in population(run, setting, size)]
    if setting.kind in _UPSTREAM:
        return bnlab.population_statistics(model, batches, upstream=_UPSTREAM[setting.kind])
    trace = record_frozen(model, batches)
    return replay(trace, _AVERAGES[setting.kind], [trace.last_step])[trace.last_step]


def population(run: Run, setting: Setting, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The setting's images and labels in batches."""
    split, data = population_split(run, setting), run.config.data
    # Fixed draws: the augmented population is the same for every checkpoint and estimator.
    generator = torch.Generator().manual_seed(0)
    count = min(setting.images or len(split.labels), len(split.labels))
    images = split.images[:count]
    if setting.split == "train_augmented":
        images = augment(images, generator, shift=data.shift, flip=data.flip)
    for index in in_batches(count, batch_size):
        yield images[index], split.labels[index]


def in_batches(count: int, size: int) -> list[slice]:
    """`count` images in batches; a last one alone joins the batch before it (it has no variance of its own)."""
    return [slice(*ends) for ends in pairwise([*range(0, max(1, count - 1), size), count])]


def population_split(run: Run, setting: Setting) -> Split:
    return run.dataset.val if setting.split == "val" else run.dataset.train


def batch_moments(run: Run, step: int) -> MomentTrace:
    """Moments of a few batches of the training batch size at the checkpoint, normalized as in training."""
    model = run.model_at(step)
    enough = min(_TID_BATCHES, max(2, _TID_IMAGES // run.config.batch_size))
    with borrowed(model), torch.no_grad(), record(model) as trace:
        model.train()
        for number, (images, _) in enumerate(run.batches.from_step(step)):
            if number == enough:
                break
            model(images)
    return trace
