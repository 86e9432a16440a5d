"""Without labels: how far predictions under running averages and exact statistics differ, and what that may cost.

A network that names classes says how sure it is. Taken at its word under exact statistics, what running averages cost
is the share of the class that it names there, less that of the class that it names under running averages: nothing
where both name the same. Other outputs are numbers, and cost the square of their difference, over their variance.
Exact statistics of few images are off as well: what half of the images costs beside the other half is taken away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.doctor.case import read_all_buffers, read_moments
from bnlab.doctor.examination import Decisions, Examination
from bnlab.doctor.experiment import split_halves, take_sample
from bnlab.doctor.probe import find_output
from bnlab.doctor.scores import Difference, bound_unchanged, estimate_mean
from bnlab.doctor.thresholds import NAMES_CLASSES, WORTH
from bnlab.doctor.undoing import write_averages
from bnlab.model.batches import count_images
from bnlab.model.borrow import measured
from bnlab.statistics.network import Statistics


class _Compared(NamedTuple):
    """Two outputs of each image, compared; float64 [N] each.

    Attributes:
        sure: share of the class that the first output names; NaN where there are no classes.
        lost: that, less the share of the class that the other output names.
        differs: whether these are two classes; of positions, the share of them.
        distance: mean square of the difference.
        mean: of the first output.
        square: its mean square.
    """

    sure: Tensor
    lost: Tensor
    differs: Tensor
    distance: Tensor
    mean: Tensor
    square: Tensor


def compare_decisions(examination: Examination, data: Sequence[Any], exact: Statistics) -> Decisions | None:
    """Compare predictions of at most 1,000 images under running averages and exact statistics.

    Returns:
        None where a batch's output is no tensor of numbers with a row for each image.
    """
    sample = take_sample(data)
    compared = _compare(examination, sample, read_moments(exact), read_all_buffers(examination.layers))
    if compared is None:
        return None

    has_classes = bool(compared.sure.mean() > NAMES_CLASSES)
    differing = float(compared.differs.mean()) if has_classes else math.nan
    costs = _list_costs(compared, has_classes)
    cost = _bound(costs)
    if cost.high > WORTH:
        by_chance = _compare_halves(examination, sample)
        if by_chance is None:  # nobody knows what chance explains
            cost = replace(cost, low=-math.inf, high=math.inf)
        else:
            beyond = estimate_mean(costs - _list_costs(by_chance, has_classes))
            cost = replace(cost, value=max(0.0, beyond.value), low=beyond.low)
    return Decisions(cost, differing)


def _compare_halves(examination: Examination, sample: Sequence[Any]) -> _Compared | None:
    """Compare predictions of all images under exact statistics of either half; None where a half has no variance."""
    halves = split_halves(sample)
    try:
        first, last = (examination.measure(halves[number]) for number in (0, -1))
    except ValueError:  # one value in a channel has no variance
        return None
    return None if len(halves) == 1 else _compare(examination, sample, read_moments(first), read_moments(last))


def _compare(examination: Examination, batches: Sequence[Any], *averages: Mapping[str, Tensor]) -> _Compared | None:
    """Compare predictions under two kinds of averages [2, C] by the layer's name."""
    model = examination.root
    writes = [write_averages(examination.layers, values) for values in averages]
    parts = []
    with measured(examination.model), ExitStack() as stack:
        for batch in batches:
            outputs = []
            for write in writes:
                write(model, stack)
                outputs.append(find_output(examination.run(batch)))
            output, changed = outputs
            if output is None or changed is None or output.shape != changed.shape:
                return None
            if output.shape[:1] != (count_images(batch),):
                return None
            parts.append(torch.stack(_compare_outputs(output, changed)))
    return _Compared(*torch.cat(parts, 1).cpu())  # all at once: nobody waits for a device after each batch


def _compare_outputs(output: Tensor, changed: Tensor) -> _Compared:
    """Compare two outputs, float64 [N, ...]."""
    rows = output.flatten(1) if output.dim() > 1 else output[:, None]
    distance = (changed - output).reshape(rows.shape).square().mean(1)
    moments = (distance, rows.mean(1), rows.square().mean(1))
    if output.dim() < 2 or output.shape[1] < 2:
        unknown = torch.full_like(distance, math.nan)
        return _Compared(unknown, unknown, unknown, *moments)

    shares = _read_shares(output)
    sure, named = shares.max(1)
    named_now = changed.nan_to_num().argmax(1)
    lost = sure - shares.gather(1, named_now[:, None])[:, 0]
    differs = (named != named_now).double()
    sure, lost, differs = (part.reshape(len(part), -1).mean(1) for part in (sure, lost, differs))
    return _Compared(sure, lost, differs, *moments)


def _read_shares(output: Tensor) -> Tensor:
    """Read the shares of classes [N, classes, ...] from logits, or from shares: these add up to 1."""
    add_up = (output.sum(1) - 1).abs() < 1e-3
    are_shares = (output >= 0).all() & add_up.all()
    return torch.where(are_shares, output, output.softmax(1))


def _list_costs(compared: _Compared, has_classes: bool) -> Tensor:
    """List what the other output costs each image [N]: at most 1, also where it is not finite."""
    if has_classes:
        return compared.lost.nan_to_num(nan=1.0)
    variance = compared.square.mean() - compared.mean.mean().square()
    least = torch.finfo(torch.float64).tiny
    costs = compared.distance / variance.clamp(min=least)
    return costs.nan_to_num(nan=1.0).clamp(max=1.0)


def _bound(costs: Tensor) -> Difference:
    """Estimate a mean with its 95% interval; equal predictions of few images are no proof."""
    return estimate_mean(costs) if costs.any() else bound_unchanged(len(costs), 1.0)
