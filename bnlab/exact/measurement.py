"""Exact statistics of a model's data: profiled first, walked, and checked by an ordinary evaluation at the end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from bnlab.batches import count_bytes, count_images, list_tensors, take_images
from bnlab.borrow import measured
from bnlab.exact.breadth import Walk
from bnlab.exact.ranks import Interleaved
from bnlab.exact.task import CALLER, Task, check_moments, watched
from bnlab.layers import check_input, join_names
from bnlab.memory import Budget, LiveBytes, Profile
from bnlab.moments import Moments, compare_moments
from bnlab.statistics import Check, Cost

_FEW = 4  # images of a batch that stand for it where it is profiled and checked
_SAME = 1e-4  # two evaluations of the same images: means differ by less of σ, variances of the variance
_SETTLED = 1e-6  # the same, of a shared layer's statistics in two passes


def measure_exactly(
    task: Task, strategy: str, limit: int, progress: Callable[[], object]
) -> tuple[dict[str, Moments], Cost, Check | None]:
    """Moments of each layer, every earlier layer normalizing with its own: breadth-first, or as slow as it takes."""
    sizes = [max(1, count_bytes(batch)) for batch in task.data]
    cost, check = Cost(sum(map(count_images, task.data)), len(task.data), 0, sum(sizes)), None
    if strategy == "breadth":
        try:
            with measured(task.model):
                profile = task.ranks.together(lambda: profile_forward(task))
                budget = task.ranks.together(lambda: Budget(sizes, profile, limit))
                walk, cost.peak_bytes = _settle(task, budget, cost, progress), budget.peak
                check = _check(task, walk)
            if check is None or check.held:
                return walk.statistics, cost, check
            reason = f"an ordinary forward gives layer {check.layer!r} another input (off by {check.off:.1e} σ): the "
            reason += "model keeps state between its layers, or is random"
        except Interleaved as error:
            reason, failed = str(error), error.batch
            if failed is not None:
                with measured(task.model):
                    task.run(failed)  # alone: what it raises is the caller's
        warnings.warn(
            f"{CALLER}: {reason}; measured layer by layer, with forwards of all data up to each of {len(task.layers)} "
            "layers (strategy='layerwise' does so at once)",
            RuntimeWarning,
            stacklevel=4,
        )
    with measured(task.model):
        walk = _settle(task, Budget(sizes, None, limit), cost, progress)
    return walk.statistics, cost, check


def profile_forward(task: Task) -> Profile:
    """What a forward of a few images of the first batch holds; also finds out how batches can be laid out."""
    if not task.data:
        return Profile({}, 0.0)
    images, is_cpu = count_images(task.data[0]), task.device.type == "cpu"
    *attempts, last = (is_cpu, _FEW), (is_cpu, images), (False, images)
    for task.channels_last, task.few in [*attempts, last]:
        try:
            return _profile(task, take_images(task.data[0], task.few))
        except Exception:
            if (task.channels_last, task.few) == last:
                raise
    raise AssertionError("the last attempt returns or raises")


def _profile(task: Task, batch: Any) -> Profile:
    live, calls = LiveBytes([*task.model.parameters(), *task.model.buffers()]), list[tuple[str, int]]()

    def note(name: str, x: Tensor) -> None:
        check_input(name, task.layers[name], x, CALLER)
        calls.append((name, live.now()))

    with live, watched(task.layers, note):
        task.evaluate(batch)
    return Profile.of(calls, live.peak, max(1, count_bytes(batch)))


def _settle(task: Task, budget: Budget, cost: Cost, progress: Callable[[], object]) -> Walk:
    """Walk, and again where layers are called several times, with what was found given, until it is what is found."""
    shapes = [[tensor.shape[1:] for tensor in list_tensors(batch)] for batch in task.data]
    others = [index for index, shape in enumerate(shapes) if shape != shapes[0]]
    noted = sorted({0, len(task.data) // 2, *others[:1]}) if len(task.data) > 1 else []  # one is not interrupted
    given: dict[str, Moments] = {}
    for cost.passes in range(1, 2 * len(task.layers) + 10):
        walk = Walk(task, budget, given, noted).go(progress)
        cost.forwards += walk.forwards
        again = set().union(given, *task.ranks.gather(walk.revisited))
        shared = {name: moments for name, moments in walk.statistics.items() if name in again}
        if given.keys() == shared.keys() and all(
            max(compare_moments(given[name], moments)) < _SETTLED for name, moments in shared.items()
        ):
            return walk
        given, progress = shared, lambda: None
    raise ValueError(
        f"{CALLER}: the statistics of {join_names(given)}, which are called several times or skipped, do not settle; "
        "leave them out with layers="
    )


def _check(task: Task, walk: Walk) -> Check | None:
    """Evaluate what was noted in the ordinary way: a few images of it, and all where these show a difference."""

    def work() -> list[Check]:
        checks = []
        for index, calls in walk.list_notes():
            expected = [[(name, few) for name, _, few in calls], [(name, moments) for name, moments, _ in calls]]
            batch = task.data[index]
            few = _compare(task, walk, take_images(batch, task.few), expected[0])
            checks.append(few if few.held else _compare(task, walk, batch, expected[1]))
        return checks

    checks = [check for own in task.ranks.gather(task.ranks.together(work)) for check in own]
    return next((check for check in checks if not check.held), max(checks, key=lambda c: c.off, default=None))


def _compare(task: Task, walk: Walk, batch: Any, expected: list[tuple[str, Moments]]) -> Check:
    calls: list[tuple[str, Moments]] = []
    with watched(task.layers, lambda name, x: calls.append((name, Moments.of(x)))):
        task.evaluate(batch)
    names = [name for name, _ in calls]
    if names != [name for name, _ in expected]:
        return Check(False, next(iter([*names, *(name for name, _ in expected)])), math.inf)
    off = {
        name: max(compare_moments(own, moments, walk.statistics[name].var))
        for (name, own), (_, moments) in zip(expected, calls, strict=True)
    }
    worst = max(off.values(), default=0.0)
    return Check(worst <= _SAME, next((name for name, value in off.items() if value > _SAME), None), worst)


def measure_under_batches(task: Task, progress: Callable[[], object]) -> tuple[dict[str, Moments], Cost]:
    """Every measured layer normalizes with its batch's statistics; moments are pooled."""
    own: dict[str, Moments] = {}
    merged: dict[str, Moments] = {}

    def take(name: str, x: Tensor) -> None:
        check_input(name, task.layers[name], x, CALLER)
        if x.numel() == x.shape[1]:
            raise ValueError(
                f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                "with; use larger batches or upstream='population'"
            )
        own[name] = own[name].merge(Moments.of(x)) if name in own else Moments.of(x)

    with measured(task.model):
        task.ranks.together(lambda: profile_forward(task))
        for layer in task.layers.values():
            layer.training = True
        with watched(task.layers, take):
            task.ranks.together(task.run_all)
    for name in dict.fromkeys(name for names in task.ranks.gather(list(own)) for name in names):
        merged[name] = task.ranks.merge(own.get(name))
        check_moments(name, merged[name], task.layers[name])
        progress()
    images, batches = sum(map(count_images, task.data)), len(task.data)
    return merged, Cost(images, batches, batches, count_bytes(task.data))
