"""BN204: one layer, several populations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.observing import LayerView
from bnlab.doctor.patient import Patient
from bnlab.doctor.undoing import EACH_BATCH, Undo, write_each_call

_SHARE = 0.1  # of the variance, between calls
_LOG_RATIO = 0.2  # of variances of calls: 0.1 above and 0.1 below


class SeveralPopulations(Cause):
    """What a layer is given differs from call to call, where it is called several times in a forward.

    Train mode normalizes each call by its own statistics, eval mode all by the same: no single set of averages fits.
    Calls differ where a tenth of the variance lies between their means, or their variances do by a factor of 1.2. Where
    each batch's own statistics score better than all others, it is enough that there are several calls. Layers behind
    the first such one that are called as often are named too, as train mode made what they are given alike.

    Two views of the same images, as in contrastive learning, are one population.
    """

    code = "BN204"
    title = "one layer, several populations"
    meaning = "The layer serves inputs of different populations, which train mode normalizes apart and eval mode alike."
    remedy = (
        "New averages mend a part at best: train again with batches that mix them, a batch norm for each, or group or "
        "instance norm."
    )
    kind = "network"
    undone_by = (EACH_BATCH,)
    needs = ("data",)

    def propose(self, patient: Patient) -> Iterator[Undo]:
        case = patient.case
        calls = {name: view.calls for name, view in case.data.view.layers.items() if len(view.calls) > 1}
        several = {name: calls[name] for name in patient.exact if name in calls}
        if several and self.look(case):
            degrees = sum(2 * len(moments.mean) for of_layer in several.values() for moments in of_layer)
            told = "the statistics of each call by itself"
            yield Undo(told, tuple(several), degrees, write_each_call(case.layers, several))

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        return 1.0 if self.look(case) else 0.0

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        signs = self.look(case)
        return "" if signs is None else signs.evidence

    def look(self, case: Case) -> Signs | None:
        compared = _compare_calls(case)
        unlike = [name for name, calls in compared.items() if calls.are_unlike or case.is_own_better]
        if not unlike:
            return None
        worst = max(unlike, key=lambda name: compared[name].share)
        # Layers behind are named too: each call's own statistics have made what these are given alike.
        behind = dropwhile(lambda name: name not in unlike, compared)
        return Signs.of(behind, compared[worst].tell())


@dataclass(frozen=True)
class _Calls:
    """A layer's calls in a forward, compared.

    Attributes:
        number: how many there are.
        share: of the variance that lies between calls, mean over channels.
        log_ratio: of the largest and the smallest variance of a call, median over channels.
        are_unlike: whether they differ by more than calls of one population do.
    """

    number: int
    share: float
    log_ratio: float
    are_unlike: bool

    def tell(self) -> str:
        """Write by how much they differ."""
        share = f"means make up {self.share:.0%} of the variance"
        times = f"variances differ {math.exp(self.log_ratio):.1f}-fold"
        return f"{self.number} calls a forward: their {share}, their {times}"


def _compare_calls(case: Case) -> dict[str, _Calls]:
    """Compare the calls of layers that have several, and whose rows are images."""
    views = case.data.view.layers
    several = [name for name in case.seen if name in views and len(views[name].calls) > 1]
    return {name: _compare(views[name]) for name in several if views[name].image_means.count > 1}


def _compare(view: LayerView) -> _Calls:
    """Compare the calls of a layer.

    Means of so many images differ by chance, and variances by less than 8/sqrt(images), also where images differ much
    in contrast.
    """
    number = len(view.calls)
    pooled = view.pooled
    variances = torch.stack([call.var for call in view.calls])
    within = sum(call.var * call.count for call in view.calls) / pooled.count
    share = float((1 - within / pooled.var).nanmean())
    log_ratio = float((variances.amax(0) / variances.amin(0)).log().nanmedian())

    images = view.image_means.count / number
    by_chance = float((view.image_means.var / pooled.var).nanmean()) / images
    are_unlike = share > max(_SHARE, 20 * by_chance) or log_ratio > max(_LOG_RATIO, 8 / math.sqrt(images))
    return _Calls(number, share, log_ratio, are_unlike)
