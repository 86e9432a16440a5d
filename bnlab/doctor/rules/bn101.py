"""BN101: averages that are still on their way from 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.words import count_things

_LEFT = 0.01  # weight of the start below which it is forgotten
_MUCH = 0.2  # σ, or log ratio: a predicted gap that is worth a warning while its cost is not known


class OnItsWay(Rule):
    """Averages that have covered less than 99% of the way from mean 0 and variance 1, where they start.

    After t updates of momentum m the start has the weight (1−m)^t. Too few updates, or a momentum too small for them.
    With data this is believed only if the gap points to the start and is about that long: at least half of it, in
    squares, and between half and three times (1−m)^t of the way. Without data count and momentum are believed if what
    they predict is off by more than .2, and no variance, of all layers with the same count, is smaller than what the
    start alone leaves of its 1.

    A false alarm without data where the count is wrong: it began again on averages that were there before, or momentum
    was larger earlier. Small parts of the way may cost nothing; with labels the cost decides.
    """

    code = "BN101"
    title = "still on the way from 0 and 1"
    meaning = "The averages have seen too few updates for their momentum, and still hold part of their start."
    remedy = "Recalibrate, train longer, or use a larger momentum."

    def look(self, case: Case) -> Signs | None:
        weights = _list_weights(case)
        refuted = {weight for name, weight in weights.items() if not _is_possible(case, name, weight)}
        layers = []
        for name, weight in weights.items():
            if name in case.seen:
                shows = _points_to_start(case, name, weight)
            else:
                shows = weight not in refuted and _predict_gap(case, name, weight) > _MUCH
            if shows:
                layers.append(name)
        if not layers:
            return None
        worst = max(layers, key=weights.__getitem__)
        return Signs(tuple(layers), _describe(case, worst, weights[worst]))


def _list_weights(case: Case) -> dict[str, float]:
    """List the weight of the start in each layer, where it is not forgotten by count and momentum."""
    weights = {name: case.start_weight(name) for name in case.layers}
    return {name: weight for name, weight in weights.items() if weight is not None and weight > _LEFT}


def _describe(case: Case, name: str, weight: float) -> str:
    """Write how far a layer's averages have come."""
    count = case.count_updates(name) or 0
    updates = count_things(count, "update")
    momentum = case.layers[name].momentum
    way = 100 * (1 - weight)
    told = f"{updates} of momentum {momentum:g}: {way:.2g}% of the way"
    if name not in case.seen:
        return told

    fitted, _ = _fit_start(case, name)
    measured_way = 100 * (1 - fitted)
    return f"{told}, {measured_way:.2g}% as measured"


def _points_to_start(case: Case, name: str, weight: float) -> bool:
    """Return whether a layer's averages are off by about what the start leaves in them."""
    if case.is_initial(name) or not case.is_off(name):
        return False
    measured, share = _fit_start(case, name)
    return share > 0.5 and weight / 2 < measured < 3 * weight


def _is_possible(case: Case, name: str, weight: float) -> bool:
    """Return whether no variance is smaller than what the start leaves of its 1, up to rounding."""
    _, var = case.buffers[name]
    return bool((var >= 0.999 * weight).all())


def _predict_gap(case: Case, name: str, weight: float) -> float:
    """Predict the gap from what the averages are on the way to: the larger median over channels of |z| and |ln ρ|."""
    mean, var = case.buffers[name]
    eps = case.layers[name].eps

    # The averages are weight · start + way · goal, and the start is mean 0 and variance 1.
    way = max(1 - weight, 1e-12)
    goal_mean = mean / way
    goal_var = (var - weight) / way
    goal_var_and_eps = goal_var.clamp(min=0) + eps

    distance = (mean - goal_mean).abs()
    mean_gap = distance / goal_var_and_eps.sqrt()
    ratio = (var + eps) / goal_var_and_eps
    var_gap = ratio.log().abs()
    return max(float(mean_gap.median()), float(var_gap.median()))


def _fit_start(case: Case, name: str) -> tuple[float, float]:
    """Fit the gap by a weight of the start, in units of σ and of the variance.

    Returns:
        The weight, and the share of the gap's square that it explains (0 where the gap points away from the start).
    """
    mean_and_var = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device="cpu")
    start = _scale(case, name, mean_and_var)
    gap = _scale(case, name, case.buffers[name])

    product = (gap * start).sum()
    weight = product / start.square().sum()
    explained = weight.clamp(min=0) * product
    share = explained / gap.square().sum()
    return float(weight), float(share)


def _scale(case: Case, name: str, values: Tensor) -> Tensor:
    """Distances [2, C] of means and variances from the exact ones, in σ and relative to the variance."""
    exact = case.data.exact
    moments = exact[name]
    var = moments.var + exact.eps[name]

    mean, variance = values
    off_mean = mean - moments.mean
    off_var = variance - moments.var
    return torch.stack((off_mean / var.sqrt(), off_var / var))
