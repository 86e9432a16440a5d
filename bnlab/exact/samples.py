"""Ordinary forwards of a few images: before a walk, to see how the model runs, and after it, to check the result.

The check: an ordinary evaluation under the result has to give each layer what it was measured on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from bnlab.exact.probe import require_inputs_normalized
from bnlab.exact.task import Task, watched
from bnlab.exact.walk import Note, Walk
from bnlab.memory import LiveBytes, Profile
from bnlab.model.batches import count_bytes, count_images, list_tensors, take_images
from bnlab.model.borrow import borrowed
from bnlab.model.layers import has_own_forward
from bnlab.model.reading import Pooled
from bnlab.statistics.moments import Moments, compare_moments, fetch
from bnlab.statistics.provenance import Check

_SAMPLE_SIZE = 4  # images of a batch that are evaluated in place of all

# Moments of the same images in two evaluations count as the same if they differ by no more: means in σ, variances
# relative.
SAME = 1e-4


def prepare(task: Task) -> Profile:
    """Prepare a measurement by forwards of a few images of the first batch.

    Sets `task.channels_last` and `task.sample_size` to the fastest with which the model runs, and asks layers with a
    forward of their own what they normalize.

    Returns:
        How much memory a forward holds, by which batches are let wait at a layer. Without batches it is empty.

    Raises:
        ValueError: a layer does not normalize its input, and `inputs=` does not say what it normalizes; or it
            normalizes with buffers that are not its own.
    """
    if not task.data:
        return Profile({}, 0.0)

    first = task.data[0]
    is_cpu = task.device.type == "cpu"  # where channels that are innermost are faster
    all_images = count_images(first)
    profile = None
    for channels_last, sample_size in ((is_cpu, _SAMPLE_SIZE), (is_cpu, all_images)):
        with contextlib.suppress(Exception):  # what is wrong with the model itself, the last one raises too
            profile = _profile_forward(task, first, channels_last, sample_size)
            break
    if profile is None:
        profile = _profile_forward(task, first, False, all_images)

    unknown = {}
    for name, layer in task.layers.items():
        if has_own_forward(layer):
            unknown[name] = layer
    if unknown:
        with borrowed(task.model):
            require_inputs_normalized(task, unknown, first)
    return profile


def _profile_forward(task: Task, batch: Any, channels_last: bool, sample_size: int) -> Profile:
    """Set the task's layout and sample size, and find how much memory a forward of so many images holds."""
    task.channels_last = channels_last
    task.sample_size = sample_size
    sample = take_images(batch, sample_size)
    live = LiveBytes([*task.model.parameters(), *task.model.buffers()])
    calls: list[tuple[str, int]] = []

    def note(name: str, x: Tensor) -> None:
        calls.append((name, live.now()))

    with borrowed(task.model), live, watched(task, task.layers, note):  # takes back what a sample leaves in the model
        task.evaluate(sample)
    return Profile.of(calls, live.peak, max(1, count_bytes(sample)))


def choose_noted(task: Task) -> Collection[int]:
    """Choose the batches that are checked: the first, one in the middle, another one, and the first of another shape.

    The number of the third is no multiple of 2 or 3: where two or three kinds of batches come in turn, it is not of the
    first one's kind.
    """
    if not task.data:
        return ()
    noted = {0, len(task.data) // 2}
    others = [index for index in range(1, len(task.data)) if index % 2 and index % 3]
    noted.update(others[len(others) // 2 :][:1])
    usual = None
    for index, batch in enumerate(task.data):
        shapes = [tensor.shape[1:] for tensor in list_tensors(batch)]
        if usual is None:
            usual = shapes
        elif shapes != usual:
            noted.add(index)
            break
    return noted


def check_walk(task: Task, walk: Walk, statistics: Mapping[str, Moments]) -> Check | None:
    """Compare what a walk has noted of some batches with ordinary evaluations of them under its result, `statistics`.

    Returns:
        The first check that failed, else the one with the largest difference; None if nothing was noted.
    """
    noted = [batch for batch in walk.batches if batch.notes is not None]
    of_rank = task.ranks.run_together(
        lambda: [_check_batch(task, statistics, batch.index, batch.notes or ()) for batch in noted]
    )
    checks: list[Check] = []
    for rank_checks in task.ranks.gather(of_rank):
        checks += rank_checks
    failed = [check for check in checks if not check.held]
    if failed:
        return failed[0]
    return max(checks, key=lambda check: check.off, default=None)


def _check_batch(task: Task, statistics: Mapping[str, Moments], index: int, notes: Sequence[Note]) -> Check:
    """Check a sample of a batch's images, and all of them if the sample shows a difference.

    The sample may show one where there is none: the first rows of a layer's input need not be of the first images.
    """
    batch = task.data[index]
    sample = take_images(batch, task.sample_size)
    names = [note.name for note in notes]
    check = _compare(task, statistics, sample, names, [note.sample_moments for note in notes])
    if check.held:
        return check
    return _compare(task, statistics, batch, names, [note.moments for note in notes])


def _compare(
    task: Task, statistics: Mapping[str, Moments], batch: Any, expected_names: list[str], expected: Sequence[Pooled]
) -> Check:
    """Compare the calls of layers in an ordinary evaluation of a batch with those that a walk has noted."""
    names: list[str] = []
    pooled: list[Pooled] = []

    def note(name: str, x: Tensor) -> None:
        names.append(name)
        pooled.append(task.reader.measure(x))

    # Takes back what a sample leaves in the model, such as a queue's place.
    with borrowed(task.model), watched(task, task.layers, note):
        task.evaluate(batch)
    for name, expected_name in zip_longest(names, expected_names):
        if name != expected_name:
            return Check(False, expected_name or name, math.inf)

    worst = 0.0
    failed = None
    for name, measured, noted in zip(names, fetch(pooled), fetch(expected), strict=True):
        off = max(compare_moments(noted, measured, statistics[name].var))
        worst = max(worst, off)
        if off > SAME and failed is None:
            failed = name
    return Check(failed is None, failed, worst)
