"""Without labels: how often running averages and exact statistics lead to different classes, and what that may cost.

Under exact statistics the network gives each class a probability. Where running averages lead to another class, they
cost the difference of the two probabilities; where they lead to the same, nothing. Exact statistics of few images are
noisy too: what the statistics of one half of the images cost against those of the other is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.common.scores import Difference, average_by_image, bound_unchanged, estimate_mean
from bnlab.doctor.evidence.case import read_all_buffers, read_moments
from bnlab.doctor.evidence.labels import find_logits
from bnlab.doctor.evidence.sample import split_halves, take_sample
from bnlab.doctor.evidence.scores import Decisions
from bnlab.doctor.evidence.setup import measure
from bnlab.doctor.thresholds import NAMES_CLASSES, WORTH
from bnlab.doctor.undo import write_averages
from bnlab.exact.task import Task
from bnlab.model.batches import count_images
from bnlab.model.borrow import measured
from bnlab.statistics.network import Statistics


class _Compared(NamedTuple):
    """The classes that two outputs name for each image, float64 [N] each; of positions the mean.

    Attributes:
        named: number of the class that the first output names.
        probability: what it gives to this class.
        cost: that, less what it gives to the class that the other output names; at most 1, also where it is not finite.
        differs: whether these are two classes.
        holds_probabilities: 1 where the first output holds probabilities, else 0.
        level: its mean over the classes, without sign.
        spread: its standard deviation over the classes (ddof 0).
        positions: number of positions at which a class is named.
    """

    named: Tensor
    probability: Tensor
    cost: Tensor
    differs: Tensor
    holds_probabilities: Tensor
    level: Tensor
    spread: Tensor
    positions: Tensor


def compare_decisions(task: Task, exact: Statistics) -> Decisions | None:
    """Compare the classes of at most 1,000 images under running averages and exact statistics.

    Returns:
        None where outputs name no classes.
    """
    sample = take_sample(task.data)
    # Exact statistics come first, because the probabilities under these say what another class costs.
    compared = _compare(task, sample, read_moments(exact), read_all_buffers(task.layers))
    if compared is None or not _name_classes(compared):
        return None

    differing = float(compared.differs.mean())
    cost = _estimate_cost(compared.cost)
    # Chance is estimated only where the cost may matter, because that takes two further measurements.
    if cost.high > WORTH:
        by_chance = _compare_halves(task, sample)
        if by_chance is None:  # nobody knows what chance explains
            cost = replace(cost, low=-math.inf, high=math.inf)
        else:
            beyond = estimate_mean(compared.cost - by_chance.cost)
            # Value and lower end are what is beyond chance, so that no network is called ill too readily; the upper end
            # keeps what chance may explain, so that none is called healthy too readily.
            cost = replace(cost, value=max(0.0, beyond.value), low=beyond.low)
    return Decisions(cost, differing, has_positions=bool((compared.positions > 1).any()))


def _name_classes(compared: _Compared) -> bool:
    """Return whether numbers are probabilities or logits of classes: several are named, surely, and they lie around 0.

    Coordinates and pixels lie on one side of 0. Nobody can tell all numbers from logits.
    """
    if bool(compared.holds_probabilities.all()):
        return True
    # Where one column is the largest in all images, the columns may be coordinates.
    names_several = bool((compared.named != compared.named[0]).any())
    is_sure = bool(compared.probability.mean() > NAMES_CLASSES)
    are_centred = bool(compared.level.mean() < compared.spread.mean())
    return names_several and is_sure and are_centred


def _compare_halves(task: Task, sample: Sequence[Any]) -> _Compared | None:
    """Compare the classes of all images under exact statistics of either half; None where there is only one half, or
    one without a variance."""
    halves = split_halves(sample)
    if len(halves) == 1:
        return None
    try:
        first = measure(task, halves[0])
        last = measure(task, halves[1])
    except ValueError:  # one value in a channel has no variance
        return None
    return _compare(task, sample, read_moments(first), read_moments(last))


def _compare(
    task: Task, batches: Sequence[Any], averages: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> _Compared | None:
    """Compare classes under two kinds of averages [2, C] by the layer's name; None where outputs have no classes."""
    model = task.root
    writes = [write_averages(task.layers, averages), write_averages(task.layers, others)]
    parts = []
    with measured(task.model), ExitStack() as stack:
        for batch in batches:
            outputs = []
            # Both kinds take turns in each batch, so that no outputs have to be kept.
            for write in writes:
                write(model, stack)
                outputs.append(find_logits(task.evaluate(batch)))
            output, changed = outputs
            if output is None or changed is None or output.shape != changed.shape:
                return None
            if output.dim() < 2 or output.shape[1] < 2 or len(output) != count_images(batch):
                return None
            parts.append(torch.stack(_compare_outputs(output.double(), changed.double())))
    return _Compared(*torch.cat(parts, 1).cpu())  # all at once: nobody waits for a device after each batch


def _compare_outputs(output: Tensor, changed: Tensor) -> _Compared:
    """Compare two outputs [N, classes, ...], logits or probabilities."""
    add_up = (output.sum(1) - 1).abs() < 1e-2  # bfloat16 rounds
    are_probabilities = (output >= 0).all() & add_up.all()
    probabilities = torch.where(are_probabilities, output, output.softmax(1))

    probability, named = probabilities.max(1)
    # `argmax` would choose NaN.
    named_by_other = changed.nan_to_num().argmax(1)
    cost = probability - probabilities.gather(1, named_by_other[:, None])[:, 0]
    # The mean over positions, so that an image counts once however many it has.
    by_image = average_by_image(probability)
    return _Compared(
        named=average_by_image(named),
        probability=by_image,
        cost=average_by_image(cost.nan_to_num(nan=1.0)),
        differs=average_by_image(named != named_by_other),
        holds_probabilities=average_by_image(are_probabilities.expand_as(probability)),
        level=average_by_image(output.mean(1).abs()),
        spread=average_by_image(output.std(1, correction=0)),
        positions=torch.full_like(by_image, probability[0].numel()),
    )


def _estimate_cost(costs: Tensor) -> Difference:
    """Estimate a mean with its 95% interval; equal classes of few images are no proof."""
    return estimate_mean(costs) if costs.any() else bound_unchanged(len(costs), 1.0)
