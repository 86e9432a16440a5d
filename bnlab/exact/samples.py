"""Ordinary forwards: of a few images before a walk, to see how the model runs; of whole batches, to check the result.

The check: an ordinary evaluation under the result has to give each layer what it was measured on.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.exact.operations import SAME
from bnlab.exact.task import CALLER, Task, watched
from bnlab.exact.walk import Call, Walk
from bnlab.memory import LiveBytes, Profile
from bnlab.model.batches import count_bytes, count_images, take_images
from bnlab.model.borrow import ForwardSnapshot, borrowed, list_places
from bnlab.model.layers import has_own_forward, join_names
from bnlab.model.reading import Pooled
from bnlab.model.warn import warn
from bnlab.statistics.moments import Moments, compare_moments, fetch
from bnlab.statistics.provenance import Check

_SAMPLE_SIZE = 4  # images of a batch by which a forward is profiled
_SHARE = 8  # one batch of so many is checked


def prepare(task: Task) -> Profile:
    """Prepare a measurement by forwards of a few images of the first batch.

    Sets `task.channels_last` and `task.sample_size` to the fastest with which the model runs; `task.unmeasured` are the
    layers that cannot be measured.

    Returns:
        How much memory a forward holds, by which batches are let wait at a layer. Without batches it is empty.

    Raises:
        ValueError: a layer normalizes with buffers that are not its own.
    """
    if not task.data:
        return Profile({}, 0.0)

    first = task.data[0]
    is_cpu = task.device.type == "cpu"  # where channels that are innermost are faster
    all_images = count_images(first)
    profile = None
    # Some models need whole batches, and some need the layout that the caller gave.
    for channels_last, sample_size in ((is_cpu, _SAMPLE_SIZE), (is_cpu, all_images)):
        with contextlib.suppress(Exception):  # what is wrong with the model itself, the last one raises too
            profile = _profile_forward(task, first, channels_last, sample_size)
            break
    if profile is None:
        profile = _profile_forward(task, first, False, all_images)

    unseen = _list_uncovered(task, [first, task.data[-1]])
    if unseen:
        warn(
            f"{CALLER}: in the forward of {join_names(unseen)} no batch-norm operation of torch's is seen that takes "
            "all channels; they are not measured"
        )
        task.unmeasured = task.unmeasured | {*unseen}
    return profile


def _list_uncovered(task: Task, batches: Sequence[Any]) -> list[str]:
    """List the layers with a forward of their own in which no batch-norm operation is seen, though it is called."""
    own_forwards = {name: layer for name, layer in task.layers.items() if has_own_forward(layer)}
    called: dict[str, None] = {}
    seen = set[str]()
    with borrowed(task.root), contextlib.ExitStack() as undo:
        undo.enter_context(watched(task, own_forwards, lambda name, x: seen.add(name)))
        for name, layer in own_forwards.items():
            undo.callback(layer.register_forward_pre_hook(lambda *_, name=name: called.update({name: None})).remove)
        if own_forwards:  # otherwise there is nothing to run a forward for
            for batch in batches:
                task.evaluate(batch)
    return [name for name in called if name not in seen]


def _profile_forward(task: Task, batch: Any, channels_last: bool, sample_size: int) -> Profile:
    """Set the task's layout and sample size, and find how much memory a forward of so many images holds."""
    task.channels_last = channels_last
    task.sample_size = sample_size
    sample = take_images(batch, sample_size)
    live = LiveBytes([*task.root.parameters(), *task.root.buffers()])
    calls: list[tuple[str, int]] = []
    before = ForwardSnapshot(task.root)
    # What an attempt that has failed left here says nothing about this one.
    task.changed_for_a_while = ""

    def note(name: str, x: Tensor) -> None:
        if not task.changed_for_a_while:
            # Weights are compared at one layer only, as there may be many.
            task.changed_for_a_while = before.find_changed(also_weights=not calls)
        calls.append((name, live.now()))

    with borrowed(task.root), live, watched(task, task.layers, note):  # takes back what a sample leaves in the model
        task.evaluate(sample)
        task.places = list_places(task.root)

    # A batch that holds arrays and no tensors counts 0 bytes, and the profile divides by its bytes.
    return Profile.of(calls, live.peak, max(1, count_bytes(sample)))


def choose_checked(task: Task) -> list[int]:
    """Choose the batches that are checked: the first, the last, and others that are drawn, up to an eighth of all.

    Of few batches one is drawn all the same.
    """
    count = len(task.data)
    if not count:
        return []
    if task.checks_all:
        return list(range(count))
    between = range(1, count - 1)
    drawn = max(1, count // _SHARE - 2)
    # Drawn by a generator of its own: the caller's goes on as if nothing had been measured.
    chosen = random.Random(0).sample(between, min(drawn, len(between)))
    return sorted({0, count - 1, *chosen})


def check_walk(task: Task, walk: Walk, statistics: Mapping[str, Moments]) -> Check | None:
    """Compare the calls that a walk has kept of some batches with ordinary evaluations under its result, `statistics`.

    Whole batches are evaluated: what forwards that take turns can spoil need not show in their first rows. The first of
    them is laid out in memory as the caller gave it, since the walk may have turned it for speed, which a forward that
    counts in strides reads as other pixels.

    Returns:
        The first check that failed, else the one with the largest difference; None if no batch was to be checked.
    """
    as_given = replace(task, channels_last=False)
    checked = [batch for batch in walk.batches if batch.calls is not None]

    def check_all() -> list[Check]:
        checks = []
        for place, batch in enumerate(checked):
            evaluated = as_given if place == 0 else task
            checks.append(_check_batch(evaluated, statistics, batch.index, batch.calls or ()))
        return checks

    of_rank = task.ranks.run_together(check_all)
    checks: list[Check] = []
    for rank_checks in task.ranks.gather(of_rank):
        checks += rank_checks
    failed = [check for check in checks if not check.held]
    if failed:
        return failed[0]
    return max(checks, key=lambda check: check.off, default=None)


def _check_batch(task: Task, statistics: Mapping[str, Moments], index: int, expected: Sequence[Call]) -> Check:
    """Compare the calls of layers in an ordinary evaluation of a batch with those that a walk has kept."""
    calls = _evaluate(task, index)
    # Another order, a missing call and an additional one all mean that the check has failed.
    for call, walked in zip_longest(calls, expected):
        if walked is None:
            return Check(False, call.name, math.inf)
        if call is None or call.name != walked.name:
            return Check(False, walked.name, math.inf)

    offs = _compare_calls(task, statistics, calls, [call.moments for call in expected])
    worst = max(offs, default=0.0)
    failed = [number for number, off in enumerate(offs) if off > SAME]
    if failed and all(offs[number] <= calls[number].rounding for number in failed):
        # Convolutions of another layout in memory add up in another order, and round what they give to half precision.
        # Unlike a random model, they give the same again.
        again = _evaluate(task, index)
        repeated = _compare_calls(task, statistics, calls, [call.moments for call in again])
        failed = [number for number, off in enumerate(repeated) if off > SAME]
    name = calls[failed[0]].name if failed else None
    return Check(name is None, name, worst)


class _Evaluated(NamedTuple):
    """A layer's call in an ordinary evaluation; `rounding` is how far the type of its input may put its moments off."""

    name: str
    moments: Pooled
    rounding: float


def _evaluate(task: Task, index: int) -> list[_Evaluated]:
    """Evaluate a batch, and list the calls of layers."""
    calls: list[_Evaluated] = []

    def note(name: str, x: Tensor) -> None:
        eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
        # The roundings of the layers up to here are independent, and add up to the root of their number.
        rounding = eps * math.sqrt(len(calls) + 1)
        calls.append(_Evaluated(name, task.reader.measure(x), rounding))

    # Takes back what the forward leaves in the model, such as a queue's place.
    with borrowed(task.root), watched(task, task.layers, note):
        task.evaluate(task.data[index])
    return calls


def _compare_calls(
    task: Task, statistics: Mapping[str, Moments], calls: Sequence[_Evaluated], others: Sequence[Pooled]
) -> list[float]:
    """Compute how far the moments of calls are from others, relative to σ and to the variance, each with eps."""
    offs = []
    own = fetch([call.moments for call in calls])
    for call, moments, other in zip(calls, own, fetch(others), strict=True):
        # Of all batches, and with eps, as the layer divides by it: a channel may be constant within one batch, or in
        # all, and what rounding leaves of its variance would then count as a large difference.
        whole = statistics[call.name]
        of_constants = (torch.finfo(torch.float32).eps * whole.mean).square()
        scale = whole.var + task.layers[call.name].eps + of_constants
        offs.append(max(compare_moments(other, moments, scale)))
    return offs
