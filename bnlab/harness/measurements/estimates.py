"""Statistics of a network at its steps: of frozen weights, computed once and kept with it, and running averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.common.files import digest
from bnlab.estimators import Estimator
from bnlab.harness.artifacts.dataset import Split, augment
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.records import VERSION
from bnlab.harness.statistic_kinds import Exact, Measured
from bnlab.recording.trace import replay_bank
from bnlab.statistics.network import Statistics

# A batch for exact statistics and evaluation: the result does not depend on it; this many 32×32 images fit a cache.
IMAGES_AT_ONCE = 256

EXACT = Subject(Exact())  # of the training split: the reference of every gap


def flat_statistics(run: Run, subjects: Sequence[Subject], steps: list[int]) -> Tensor:
    """Compute every subject's statistics at every step: float64 [subjects, steps, 2, all channels].

    For a rule at inference time these are exact ones. Where exact statistics were frozen, all running averages are
    equal to them from then on.
    """
    layout = run.trace.layout
    values = torch.empty(len(subjects), len(steps), 2, sum(layout.channels), dtype=torch.float64)
    averages: dict[int, Estimator] = {}
    for s, subject in enumerate(subjects):
        if subject.running_average is not None:
            averages[s] = subject.running_average
            continue
        for k, step in enumerate(steps):
            values[s, k] = layout.flatten(measure_at(run, step, subject))
    if not averages:
        return values

    replayed = replay_bank(run.trace, [*averages.values()], steps)
    if run.frozen_from is not None and run.config.freeze_with == "exact":
        # Buffers no longer change once they are frozen, so that any later checkpoint has the frozen ones. The last
        # checkpoint is always kept, while the last step of `evaluate_at` may come before the freezing.
        held = bnlab.running_statistics(run.model_at(max(run.list_checkpoints())))
        is_frozen = [step >= run.frozen_from for step in steps]
        replayed[:, is_frozen] = layout.flatten(held)
    values[[*averages]] = replayed
    return values


def measure_at(run: Run, step: int, subject: Subject) -> Statistics:
    """Measure statistics of the checkpoint at `step`, or read them where the run's folder has them."""
    if subject.is_rule:
        subject = EXACT
    estimator = subject.estimator
    # `averaged` needs no measuring: the checkpoint holds the buffers that were averaged along with its weights.
    if not isinstance(estimator, Measured):
        return bnlab.running_statistics(run.model_at(step))

    images = str(run.limit_at(step) or "all")
    if estimator.images:
        images = f"drawn{estimator.images}"  # other images than the sample of as many that `population_images` measures
    # A file from another training, other images or an earlier version has another name, so that it is never read.
    made_from = digest(run.losses_digest, run.dataset.train.digest, str(VERSION), digits=10)
    name = "-".join([estimator.name, subject.split, images, f"{step:07d}", made_from])
    path = run.folder / "statistics" / f"{name}.safetensors"
    if path.exists():
        return Statistics.load(path)

    batch_size = run.config.batch_size if estimator.depends_on_batch_size else IMAGES_AT_ONCE
    batches = draw_population(run, step, subject, batch_size)
    model = run.model_at(step)
    measured = estimator.measure(model, batches)
    measured.save(path)
    return measured


def draw_population(run: Run, step: int, subject: Subject, batch_size: int) -> list[Tensor]:
    """Draw the images that statistics of frozen weights are of, in batches."""
    is_augmented = subject.split == "train_augmented"
    population = run.dataset.train_augmented if is_augmented else find_population(run, subject)
    count = getattr(subject.estimator, "images", None)
    images = population.images
    if count is None:
        images = population.sample(run.limit_at(step)).images
    elif count < len(images):
        # One sample for all seeds would put its own error into every mean, where no interval shows it.
        generator = seed_by(f"{run.id} {step} {count}")
        order = torch.randperm(len(images), generator=generator)
        chosen = order[:count].to(images.device)
        images = images[chosen].contiguous(memory_format=torch.channels_last)

    if is_augmented:
        data = run.config.data
        generator = torch.Generator().manual_seed(0)  # the same for every checkpoint and estimator
        images = augment(images, generator, shift=data.shift, flip=data.flips)
    return [images[part] for part in in_batches(len(images), batch_size)]


def find_population(run: Run, subject: Subject) -> Split:
    """Find the images that the statistics are of, or drawn from; not augmented."""
    return run.dataset.val if subject.split == "val" else run.dataset.train


def seed_by(name: str) -> torch.Generator:
    """Make a generator of random numbers that are the same for the same name, as of a network and what is drawn."""
    seed = int(digest(name, digits=12), 16)
    return torch.Generator().manual_seed(seed)


def in_batches(count: int, size: int) -> list[slice]:
    """Divide `count` images into batches; a last one alone, which has no variance, joins the batch before it."""
    starts = range(0, max(1, count - 1), size)  # − 1: no batch begins at the last image
    return [slice(start, end) for start, end in pairwise([*starts, count])]


def measure_statistics(run: Run, kind: Measured, model: nn.Module, images: Tensor) -> Statistics:
    """Measure statistics of these images, in batches of the training size where that makes a difference."""
    size = run.config.batch_size if kind.depends_on_batch_size else IMAGES_AT_ONCE
    batches = [images[part] for part in in_batches(len(images), size)]
    return kind.measure(model, batches)


def tabulate(
    subjects: Sequence[Subject], steps: list[int], values: Mapping[str, Any], **axes: Sequence[Any]
) -> pd.DataFrame:
    """Make a table with a row for each step, subject and place on further axes.

    `values` are arrays of the shape [steps, subjects, *axes], or that broadcast to it; along `layer`, the last axis,
    the column `depth` counts from 1.
    """
    coordinates = {"step": steps, "subject": range(len(subjects)), **axes}
    # The rows are in the order of the arrays' axes, so that flat arrays fit them.
    frame = pd.MultiIndex.from_product([*coordinates.values()], names=[*coordinates]).to_frame(index=False)
    described = {
        "estimator": [subject.label for subject in subjects],
        "momentum": np.array([subject.momentum for subject in subjects], dtype=float),
        "statistics_split": [subject.split for subject in subjects],
    }
    frame = frame.join(pd.DataFrame(described), on="subject").drop(columns="subject")

    shape = [len(each) for each in coordinates.values()]
    if "layer" in axes:
        values = {"depth": np.arange(1, shape[-1] + 1), **values}
    for name, value in values.items():
        frame[name] = np.broadcast_to(value, shape).ravel()
    return frame
