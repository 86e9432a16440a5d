"""Measuring the batches that have been read: exactly, by a walk and its check or the slow way, or in one pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnlab.exact.check import check_walk, choose_checked
from bnlab.exact.fixed_point import settle
from bnlab.exact.operations import measure_by_operations
from bnlab.exact.task import CALLER, InterleavingError, Task, looking_at
from bnlab.exact.walk import Walk
from bnlab.model.batches import count_bytes, take_images
from bnlab.model.borrow import measured
from bnlab.model.layers import join_names
from bnlab.model.warn import warn
from bnlab.statistics.moments import Moments, fetch
from bnlab.statistics.network import Statistics
from bnlab.statistics.provenance import Check, Cost

Progress = Callable[[], object]

_SAMPLE_SIZE = 4  # images by which it is tried whether the model runs in another layout


def measure_exactly(task: Task, strategy: str, progress: Progress) -> tuple[dict[str, Moments], Cost, Check | None]:
    """Measure each layer while every earlier one normalizes with its own result: breadth-first, or layer by layer.

    Args:
        task: what is measured.
        strategy: "breadth", which goes on layer by layer if forwards cannot take turns or the check fails; "layerwise".
        progress: called whenever a layer is finished.

    Returns:
        The moments, the cost, and the last check. If the walk failed its check and the slow way held, it is the walk's,
        with `held_layer_by_layer`. None in its place if nothing could be compared.
    """
    cost = Cost(images=0, batches=len(task.data), forwards=0, input_bytes=count_bytes(task.data), passes=0)
    failed_check: Check | None = None
    if strategy == "breadth":
        try:
            statistics, failed_check = _walk_and_check(task, cost, progress)
            if failed_check is None or failed_check.held:
                return statistics, cost, failed_check
            cause = "the model keeps state between its layers, or is random"
            reason = f"an ordinary forward {_describe_difference(failed_check)}: {cause}"
        except InterleavingError as error:
            _run_alone(task, error.batch)
            reason = str(error)
        warn(
            f"{CALLER}: {reason}; measured layer by layer, with forwards of all data up to each of "
            f"{len(task.layers)} layers (strategy='layerwise' does so at once)"
        )

    # The slow, obvious way takes batches in the layout that the caller gave: a forward may count in strides.
    task.channels_last = False
    statistics, check, passes = measure_by_operations(task)
    cost.passes += passes
    cost.forwards += passes * len(task.data)
    if not check.held:
        warn(
            f"{CALLER}: an ordinary forward under the result {_describe_difference(check)}; where the model is random "
            "(dropout, noise), draw it in the batches; observers of quantization can be disabled"
        )
    if failed_check is not None and check.held:
        check = replace(failed_check, held_layer_by_layer=True)
    return statistics, cost, check


def _walk_and_check(task: Task, cost: Cost, progress: Progress) -> tuple[dict[str, Moments], Check | None]:
    """Walk until the statistics that are assumed of layers called several times are those that are measured."""
    checked = choose_checked(task)
    walks: list[tuple[Mapping[str, Moments], Walk]] = []  # the last one, and what it assumed

    def walk(assumed: Mapping[str, Moments]) -> dict[str, Moments]:
        walked = Walk(task, assumed, checked).go(_do_nothing if walks else progress)
        walks[:] = [(assumed, walked)]
        cost.forwards += walked.forwards
        cost.passes += 1
        cost.peak_bytes = max(cost.peak_bytes, walked.room.peak)
        # Another rank may have met a layer twice that this one has met once, and all of them have to search for the
        # same layers.
        names = {*assumed}.union(*task.ranks.gather(walked.revisited))
        return task.fetch({name: pooled for name, pooled in walked.statistics.items() if name in names})

    with measured(task.root):
        task.channels_last = task.ranks.run_together(lambda: _is_faster_turned(task))
    with measured(task.root):
        assumed, of_assumed, _ = settle(walk)
        if not of_assumed.held:
            raise InterleavingError(
                f"the statistics of {join_names(assumed)}, which are called several times, do not settle"
            )
        if walks[0][0] is not assumed:
            walk(assumed)
        # Raises if some are not finite, which the check would blame on the model.
        statistics = task.fetch(walks[0][1].statistics)
    return statistics, check_walk(task, walks[0][1], statistics)


def _is_faster_turned(task: Task) -> bool:
    """Return whether images are turned to channels innermost: on the CPU, if a few of them run through the model so."""
    if task.device.type != "cpu" or not task.data:
        return False
    # What is wrong with the model itself, the walk raises too.
    with contextlib.suppress(Exception):
        replace(task, channels_last=True).evaluate(take_images(task.data[0], _SAMPLE_SIZE))
        return True
    return False


def _do_nothing() -> None:
    """Progress was shown in an earlier pass."""


def _run_alone(task: Task, failed_batch: int | None) -> None:
    """Run the batch that has failed while others waited: what it raises alone is an error of the caller's."""

    def run() -> None:
        if failed_batch is not None:
            with measured(task.root):
                task.evaluate(task.data[failed_batch], is_as_given=True)

    task.ranks.run_together(run)


def _describe_difference(check: Check) -> str:
    if math.isinf(check.off):
        return f"does not call layer {check.layer!r} as often, or gives it values that cannot be compared"
    return f"gives layer {check.layer!r} another input (by {check.off:.2%} of σ or of the variance)"


def measure_under_batches(task: Task, progress: Progress) -> tuple[dict[str, Moments], Cost]:
    """Measure each layer while all of them normalize with their batch's statistics, and pool the batches' moments."""
    parts: dict[str, list[Any]] = {}  # of each layer the moments of its calls, as the reader has them

    def take(name: str, x: Tensor) -> None:
        if x.numel() == x.shape[1]:
            raise ValueError(
                f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                "with; use larger batches or statistic='exact'"
            )
        parts.setdefault(name, []).append(task.reader.measure(x))

    with measured(task.root):
        for layer in task.layers.values():
            # The attribute is set, because `train()` would also change modules inside a layer, such as its dropout.
            layer.training = True
        with looking_at(task, task.layers, take):
            task.ranks.run_together(task.run_all)

    pooled = {}
    # All ranks merge the same layers in the same order, also a layer that none of their own batches has reached.
    names = dict.fromkeys(name for of_rank in task.ranks.gather(list(parts)) for name in of_rank)
    for name in names:
        of_rank = task.reader.pool(parts[name]) if name in parts else None
        pooled[name] = task.ranks.merge(of_rank)
        progress()

    batches = len(task.data)
    cost = Cost(images=0, batches=batches, forwards=batches, input_bytes=count_bytes(task.data))
    return task.fetch(pooled), cost


def measure_errors(task: Task, statistics: Statistics, is_precise: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Estimate standard errors of each layer's mean and variance, float64 [C] each, with batches as independent units.

    It takes one pass of ordinary forwards, under `statistics` or, if these are precise, under those of each batch. The
    statistics of earlier layers are taken as exact, so that their errors are not passed on. A batch contributes the
    difference between its moments and those of all batches, times its share of the values. For B batches the squared
    error is B/(B−1) times the sum of the squared contributions; for fewer than two it is NaN.
    """
    squares = {
        name: torch.zeros(2, len(moments.mean), dtype=torch.float64, device="cpu")
        for name, moments in statistics.items()
    }
    batches = dict.fromkeys(statistics, 0)
    parts: dict[str, list[Any]] = {}

    def take(name: str, x: Tensor) -> None:
        parts.setdefault(name, []).append(task.reader.measure(x))

    def run_all() -> None:
        for batch in task.data:
            parts.clear()
            task.evaluate(batch)
            pooled = {name: task.reader.pool(calls) for name, calls in parts.items()}
            for name, moments in zip(pooled, fetch(pooled.values()), strict=True):
                squares[name] += _compute_contribution(moments, statistics[name]).square()
                batches[name] += 1

    with measured(task.root):
        for name, moments in statistics.items():
            task.write(name, moments)
            task.layers[name].training = is_precise
        with looking_at(task, {name: task.layers[name] for name in statistics}, take):
            task.ranks.run_together(run_all)

    of_ranks = task.ranks.gather((squares, batches))
    errors = {}
    for name in statistics:
        total = sum(rank_squares[name] for rank_squares, _ in of_ranks)
        count = sum(rank_batches[name] for _, rank_batches in of_ranks)
        scale = count / (count - 1) if count > 1 else math.nan
        with torch.inference_mode(False):  # whatever mode the caller is in, the result is his to write into
            mean, var = (total * scale).sqrt()
        errors[name] = (mean, var)
    return errors


def _compute_contribution(batch: Moments, whole: Moments) -> Tensor:
    """Compute what a batch contributes to the mean and variance of the whole, beyond its share of them: [2, C]."""
    # The second moment is taken about the mean of all batches, because its weighted average over batches is
    # then the variance of all.
    offset = batch.mean - whole.mean
    second_moment = batch.var + offset.square()
    return torch.stack((offset, second_moment - whole.var)) * (batch.count / whole.count)


def compute_worst_error(errors: Mapping[str, tuple[Tensor, Tensor]], statistics: Statistics) -> float:
    """Compute the largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    worst = 0.0
    for name, (of_mean, of_var) in errors.items():
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)  # a dead channel has no error
        for relative in (of_mean / var.sqrt(), of_var / var):
            root_mean_square = float(relative.square().mean().sqrt())
            # A comparison with NaN is false, so that an error that is not known would pass for a small one.
            worst = max(worst, math.inf if math.isnan(root_mean_square) else root_mean_square)
    return worst
