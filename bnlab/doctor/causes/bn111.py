"""BN111: averages that hold forwards of no images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import EXPLAINED, FILL_EXPLAINS, FILL_SHOWS
from bnlab.doctor.undo import EXACT, Undo, write_averages
from bnlab.doctor.words import count_things
from bnlab.model.layers import AveragesByItself, get_momentum

_LEAST_LEFT = 1e-3  # of the images' own share, below which rounding decides what is left once the rest is taken out


class NoImages(Cause):
    """Averages that are a mixture of those of the images and those of zeros, ones, or noise, in one proportion.

    Exporting, tracing, counting operations and summaries run a model on tensors that are no images; in train mode these
    are averaged too. Each such forward pulls all layers the same share of the way towards what that tensor gives, so
    that one number explains all layers: w = 1 − (1−m)^k of k forwards and momentum m. It is undone by taking them out,
    (r − w·fill)/(1 − w), or, where little else is left, by exact statistics.

    It is a false alarm if images really were blank or noise.
    """

    code = "BN111"
    title = "averages of no images"
    meaning = (
        "Forward passes on zeros, ones or noise in train() were averaged, as tools that trace or count a model cause."
    )
    remedy = (
        "Recalibrate, or load the buffers from before that; call eval() before you trace, export or count operations."
    )
    undone_by = (EXACT,)
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        mixture = _find_mixture(case)
        # With hardly anything of the images left, exact statistics are the undo (`undone_by`).
        if mixture is None or mixture.weight > 1 - _LEAST_LEFT:
            return
        filled = case.fills[mixture.what]
        names = [name for name in case.fold if name in filled]
        averages = {name: _take_out(case.buffers[name], filled[name], mixture.weight) for name in names}
        explains = case.measure_repaired(averages)
        if explains > EXPLAINED:
            apply = write_averages(case.layers, averages)
            yield Undo(_describe(case, mixture), tuple(names), 1, apply, explains=explains)

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        mixture = _find_mixture(case)
        return {} if mixture is None else mixture.averages

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        mixture = _find_mixture(case)
        return "" if mixture is None else _describe(case, mixture)


@dataclass(frozen=True)
class _Mixture:
    """Averages that are a share of a fill, and for the rest those of the images.

    Attributes:
        what: the fill, in words.
        weight: its share.
        averages: mean and variance [2, C] of such a mixture, by layer.
    """

    what: str
    weight: float
    averages: Mapping[str, Tensor]


def _find_mixture(case: Case) -> _Mixture | None:
    """Find the fill that explains the averages best, if it explains them."""
    if not case.fills:
        return None
    mixtures = [_fit_mixture(case, what, filled) for what, filled in case.fills.items()]
    shares = [case.explain(mixture.averages, case.seen) for mixture in mixtures]
    share = max(shares)
    best = mixtures[shares.index(share)]
    is_explained = share > FILL_EXPLAINS and best.weight > FILL_SHOWS
    return best if is_explained else None


def _fit_mixture(case: Case, what: str, filled: Mapping[str, Tensor]) -> _Mixture:
    """Fit the share of the fill by least squares over all layers: of means in σ, of variances relative.

    It is fitted to all images and not to the fold, as it also says whether the cause is there (`look`).
    """
    exact = case.read_exact(case.seen)
    gaps = []
    directions = []
    for name, goal in exact.items():
        # In σ, and relative to the variance, all layers and channels count alike in the one fit.
        var = goal[1] + case.layers[name].eps
        scale = torch.stack((var.sqrt(), var))
        gaps.append(((case.buffers[name] - goal) / scale).flatten())
        directions.append(((filled[name] - goal) / scale).flatten())

    # The weight is how far along the averages lie on the way from the images' statistics to the fill's.
    # Beyond either end there is no mixture.
    gap = torch.cat(gaps)
    direction = torch.cat(directions)
    weight = float(gap @ direction / direction.square().sum())
    weight = min(1.0, max(0.0, weight))
    averages = {name: goal.lerp(filled[name], weight) for name, goal in exact.items()}
    return _Mixture(what, weight, averages)


def _take_out(buffers: Tensor, filled: Tensor, weight: float) -> Tensor:
    """Take the fill out of averages [2, C]."""
    mean, var = (buffers - weight * filled) / (1 - weight)
    return torch.stack((mean, var.clamp(min=0)))


def _describe(case: Case, mixture: _Mixture) -> str:
    reported = f"{describe_number(100 * mixture.weight, 2)}% of the averages are those of {mixture.what}"
    layer = case.layers[case.first]
    momentum = get_momentum(layer)
    # Forwards can be counted only if each of them has the same share m of what it finds, with 0 < m < 1.
    if isinstance(layer, AveragesByItself) or not momentum or momentum >= 1 or mixture.weight == 1:
        return reported
    # The share w = 1 − (1 − m)^k, solved for the number k of forwards.
    forwards = round(math.log1p(-mixture.weight) / math.log1p(-momentum))
    if forwards == 0:  # less than one forward would leave
        return reported
    return f"{reported}, as {count_things(forwards, 'forward')} in train mode would leave them"
