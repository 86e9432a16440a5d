"""Exact statistics of a model's data: see how a forward runs, walk until nothing changes, and check the result.

Most networks need one walk. The statistics of layers that are called several times in a forward depend on themselves:
they are a fixed point, and a walk that assumes them measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bnlab.exact.operations import measure_by_operations
from bnlab.exact.samples import check_walk, choose_checked, prepare
from bnlab.exact.task import CALLER, InterleavingError, Task, watched
from bnlab.exact.walk import Walk
from bnlab.memory import Budget, Growth, Profile
from bnlab.model.batches import count_bytes
from bnlab.model.borrow import measured
from bnlab.model.layers import join_names
from bnlab.model.reading import Pooled
from bnlab.model.warn import warn
from bnlab.statistics.moments import Moments, compare_moments, fetch
from bnlab.statistics.network import Statistics
from bnlab.statistics.provenance import Check, Cost

Progress = Callable[[], object]

# Differences between assumed and measured statistics: of means in σ, of variances relative.
_SETTLED = 1e-6  # the search ends here
_SMALL = 0.1  # up to here a remainder is warned of; a larger one is refused

# Plain iteration settles a chain of n such layers in n trials. It gets so many more before steps are made smaller.
_PLAIN_TRIALS = 4
_MOST_TRIALS = 300
_PATIENCE = 30  # trials without an improvement before the search is given up
# Steps by a share d converge if measured statistics respond to assumed ones with a slope between 1 − 2/d and 1:
# from −5.7 for 0.3, and from −99 for 0.02.
_FIRST_STEP = 0.3  # share of each change that is made, once plain iteration has not settled
_SMALLEST_STEP = 0.02


def measure_exactly(
    task: Task, strategy: str, limit: int, progress: Progress
) -> tuple[dict[str, Moments], Cost, Check | None]:
    """Measure each layer while every earlier one normalizes with its own result: breadth-first, or layer by layer.

    Args:
        task: what is measured.
        strategy: "breadth", which goes on layer by layer if forwards cannot take turns or the check fails; "layerwise".
        limit: bytes of activations that may be alive.
        progress: called whenever a layer is finished.

    Returns:
        The moments, the cost, and the last check; the first one, with `held_layer_by_layer`, if that alone failed. None
        if nothing could be compared.
    """
    # A batch that holds arrays and no tensors counts 0 bytes. As 1 byte it is budgeted with what the profiled
    # forward held, because the profile counts its sample as 1 byte, too.
    sizes = [max(1, count_bytes(batch)) for batch in task.data]
    cost = Cost(images=0, batches=len(task.data), forwards=0, input_bytes=sum(sizes), passes=0)
    failed_check: Check | None = None
    with measured(task.root):
        # The layer-by-layer measurement needs this, too: it leaves out the layers that are not batch norms.
        profile = _prepare(task)
        if strategy == "breadth":
            # What the process holds on the host says nothing about the memory of an accelerator.
            growth = Growth() if task.device.type == "cpu" else None
            # A batch may be too large for the memory of one rank. Then all ranks have to raise.
            budget = task.ranks.run_together(lambda: Budget(sizes, profile, limit, growth))
            try:
                _require_interruptible(task)
                statistics, failed_check = _settle_and_check(task, budget, cost, progress)
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
    # The model is lent again: forwards that were interrupted may have left something in it.
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


def _prepare(task: Task) -> Profile:
    """Prepare this rank's measurement, and leave out the layers that some rank has found not to be batch norms."""
    profile: Profile = task.ranks.run_together(lambda: prepare(task))
    task.leave_out(set().union(*task.ranks.gather(task.unmeasured)))
    return profile


def _require_interruptible(task: Task) -> None:
    """Raise InterleavingError where forwards change for a while what forwards of other batches would run with."""
    changed = [of_rank for of_rank in task.ranks.gather(task.changed_for_a_while) if of_rank]
    if changed:
        raise InterleavingError(f"its forward changes {changed[0]} for a while, which other forwards would run with")


def _do_nothing() -> None:
    """Progress was shown in an earlier pass."""


def _run_alone(task: Task, failed_batch: int | None) -> None:
    """Run the batch that has failed while others waited: what it raises alone is an error of the caller's."""

    def run() -> None:
        if failed_batch is not None:
            task.evaluate(task.data[failed_batch])

    task.ranks.run_together(run)


def _settle_and_check(
    task: Task, budget: Budget, cost: Cost, progress: Progress
) -> tuple[dict[str, Moments], Check | None]:
    walk = _settle(task, budget, cost, progress)
    cost.peak_bytes = max(cost.peak_bytes, budget.peak)
    statistics = task.fetch(walk.statistics)  # raises if some are not finite, which the check would blame on the model
    return statistics, check_walk(task, walk, statistics)


def _describe_difference(check: Check) -> str:
    if math.isinf(check.off):
        return f"does not call layer {check.layer!r} in its turn, or gives it values that cannot be compared"
    return f"gives layer {check.layer!r} another input (by {check.off:.2%} of σ or of the variance)"


@dataclass
class _Trial:
    """One walk of the search for a fixed point.

    Attributes:
        remainder: the largest difference between `assumed` and `measured`.
        assumed: statistics of layers that are called several times, which the walk has assumed.
        measured: what the walk has measured of these layers.
        walk: the walk.
    """

    remainder: float
    assumed: Mapping[str, Moments]
    measured: Mapping[str, Moments]
    walk: Walk

    def mix(self, step: float) -> dict[str, Moments]:
        """Go a share `step` of the way from what was assumed to what was measured."""
        mixed = {}
        for name, moments in self.measured.items():
            assumed = self.assumed[name]
            mean = assumed.mean + step * (moments.mean - assumed.mean)
            var = assumed.var + step * (moments.var - assumed.var)
            mixed[name] = Moments(moments.count, mean, var)
        return mixed


def _settle(task: Task, budget: Budget, cost: Cost, progress: Progress) -> Walk:
    """Walk until the statistics that are assumed of layers called several times are those that the walk measures.

    Without such layers one walk is enough. With some, each walk assumes what the walk before has measured. If that does
    not settle, steps are made smaller: a walk assumes a value between what was assumed before and what was measured.
    Whenever the remainder grows, the steps become smaller again.

    Args:
        task, budget: see `Walk`.
        cost: its passes and forwards are counted up.
        progress: called whenever a layer is finished in the first pass.

    Raises:
        ValueError: there seems to be no fixed point.

    Warns:
        RuntimeWarning: a small remainder is left.
    """
    checked = choose_checked(task)
    assumed: dict[str, Moments] = {}
    best: _Trial | None = None
    step = 1.0
    # Walks since a layer was last added to `assumed`, and since the best of them.
    trials = 0
    since_best = 0
    for _ in range(_MOST_TRIALS):
        walk = Walk(task, budget, assumed, checked).go(progress)
        cost.forwards += walk.forwards
        cost.passes += 1
        progress = _do_nothing

        measured = _fetch_revisited(task, walk, assumed)
        if assumed.keys() != measured.keys():  # the walk has shown further layers that are called several times
            assumed = measured
            best = None
            step = 1.0
            trials = 0
            continue

        # If no layer is called several times, the remainder is 0 and the first walk is the result.
        differences = [max(compare_moments(assumed[name], measured[name])) for name in measured]
        remainder = max(differences, default=0.0)
        trial = _Trial(remainder, assumed, measured, walk)
        if remainder < _SETTLED:
            return walk
        trials += 1
        since_best += 1
        if best is None or remainder < best.remainder:
            best = trial
            since_best = 0

        is_plain = trials < len(measured) + _PLAIN_TRIALS
        next_step = _choose_step(step, is_plain, remainder, best.remainder)
        if next_step < step:
            # Larger steps may have run away by now, so that the search goes on from the best trial and not from the
            # last.
            assumed = best.mix(next_step)
        elif since_best > _PATIENCE and not is_plain:
            break
        else:
            assumed = trial.mix(next_step)
        step = next_step
    return _take_remainder(task, best, assumed)


def _fetch_revisited(task: Task, walk: Walk, assumed: Mapping[str, Moments]) -> dict[str, Moments]:
    """Fetch what a walk has measured of the layers that are called several times: those of `assumed`, and new ones."""
    # Another rank may have met a layer twice that this one has met once, and all of them have to search for the same
    # layers.
    names = set().union(assumed, *task.ranks.gather(walk.revisited))
    revisited = {}
    for name, pooled in walk.statistics.items():
        if name in names:
            revisited[name] = pooled
    return task.fetch(revisited)


def _choose_step(step: float, is_plain: bool, remainder: float, best_remainder: float) -> float:
    """Choose the share of the next change that is made.

    Args:
        step: the share of the last change.
        is_plain: whether all of each change is made as yet.
        remainder: that of the last walk.
        best_remainder: the smallest so far.
    """
    if is_plain:
        return 1.0
    if step == 1.0:
        return _FIRST_STEP
    # Steps of this size do not converge.
    if remainder > 1.5 * best_remainder:
        return max(_SMALLEST_STEP, step / 2)
    return step


def _take_remainder(task: Task, best: _Trial | None, names: Collection[str]) -> Walk:
    """Take the walk with the smallest remainder, and as its statistics those that it has assumed.

    Warns of the remainder, or raises ValueError if it is large.
    """
    if best is None or best.remainder > _SMALL:
        raise ValueError(
            f"{CALLER}: the statistics of {join_names(names)}, which are called several times, do not settle; measure "
            "the others: name them in layers= of population_statistics or recalibrate"
        )
    warn(
        f"{CALLER}: the statistics of {join_names(names)}, which are called several times, do not settle fully: an "
        f"evaluation under them gives others, by {best.remainder:.2%} of σ or of the variance"
    )
    for name, moments in best.assumed.items():  # all other layers were measured under these
        best.walk.statistics[name] = Pooled(best.walk.statistics[name].count, moments.mean, moments.var)
    # Later trials have left other statistics in the buffers, and the check evaluates the model under the buffers.
    for name, pooled in best.walk.statistics.items():
        task.write(name, pooled)
    return best.walk


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
        _prepare(task)
        task.channels_last = False  # there is no check, which would tell a forward that counts in strides
        for layer in task.layers.values():
            # The attribute is set, because `train()` would also change modules inside a layer, such as its dropout.
            layer.training = True
        with watched(task, task.layers, take):
            task.ranks.run_together(task.run_all)

    pooled = {}
    # All ranks merge the same layers in the same order, also a layer that none of their own batches has reached.
    names = dict.fromkeys(name for of_rank in task.ranks.gather(list(parts)) for name in of_rank)
    for name in names:
        of_rank = task.reader.pool(parts[name], []) if name in parts else None
        pooled[name] = task.ranks.merge(of_rank)
        progress()

    batches = len(task.data)
    cost = Cost(images=0, batches=batches, forwards=batches, input_bytes=count_bytes(task.data))
    return task.fetch(pooled), cost


def measure_errors(task: Task, statistics: Statistics, is_precise: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Estimate standard errors of each layer's mean and variance, float64 [C] each, with batches as independent units.

    One pass of ordinary forwards under the statistics, or where these are precise under those of each batch. They are
    taken as they are: the errors do not contain those of earlier layers. A batch contributes its share in the
    difference from the statistics of all; of B batches the squared error is B/(B−1) times the sum of the squared
    contributions, NaN for fewer than two.
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
            pooled = {name: task.reader.pool(calls, []) for name, calls in parts.items()}
            for name, moments in zip(pooled, fetch(pooled.values()), strict=True):
                squares[name] += _compute_contribution(moments, statistics[name]).square()
                batches[name] += 1

    with measured(task.root):
        for name, moments in statistics.items():
            task.write(name, moments)
            task.layers[name].training = is_precise
        with watched(task, {name: task.layers[name] for name in statistics}, take):
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
