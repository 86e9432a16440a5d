"""BN204: one layer, several populations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from statistics import median

from bnlab.doctor.calls import Calls, compare_calls
from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.observing import LayerView, View
from bnlab.doctor.patient import Patient
from bnlab.doctor.thresholds import EXPLAINED
from bnlab.doctor.undoing import EACH_BATCH, Undo, normalize_each_batch, write_each_call
from bnlab.doctor.words import count_things
from bnlab.statistics import Statistics

_SHARE = 0.1  # of the variance, between batches
_SPREAD = 0.3  # standard deviation of the mean squares of batches, over their mean
_OFF = 0.1  # σ, or log variance
_FIT = 1 / 3  # of that: averages fit other statistics


class SeveralPopulations(Cause):
    """What a layer is given differs from call to call, where it is called several times in a forward; or from batch to
    batch of few images.

    Train mode normalizes each call and each batch by its own statistics, eval mode all by the same: no single set of
    averages fits. Layers behind the first such one that are called as often are named too, as train mode made what they
    are given alike. Two views of the same images, as in contrastive learning, are one population.

    Calls differ where a tenth of the variance lies between their means, or their variances do by a factor of 1.2. Where
    each call's own statistics score better than all others, it is enough that there are several calls. A network that
    is trained on one kind of input in one call and on another in the next, as by a loss that ranks pairs, may read from
    a batch of one kind which kind that is.

    Batches of few images differ although they are shuffled: each image has a brightness and contrast of its own, and in
    a batch of one image batch norm is instance norm. A tenth of the variance has to lie between the means of batches,
    or their mean squares to vary by 30%. That alone is harmless. So batches are found only where each one's own
    statistics score better than all others; or where later layers' averages are three times nearer to what these layers
    are given while each batch is normalized by its own statistics than to exact ones: training then did the same, with
    batches as small. The batches are those of training where these are given, otherwise those at hand, of which
    nobody knows whether training's were as small. Batches that are not alike because they were not shuffled are BN202,
    and layers whose averages are off because a batch has few values are BN203.
    """

    code = "BN204"
    title = "one layer, several populations"
    meaning = "The layer serves inputs of different populations, which train mode normalizes apart and eval mode alike."
    remedy = (
        "New averages mend a part at best: train again with larger batches that mix them, a batch norm for each, or "
        "group or instance norm."
    )
    kind = "network"
    undone_by = (EACH_BATCH,)
    needs = ("data",)

    def propose(self, patient: Patient) -> Iterator[Undo]:
        case = patient.case
        layers = {name: case.layers[name] for name in patient.exact}
        calls = {name: view.calls for name, view in case.data.view.layers.items() if len(view.calls) > 1}
        of_calls = {name: calls[name] for name in layers if name in calls}
        if of_calls and _look_at_calls(case):
            degrees = sum(2 * len(moments.mean) for several in of_calls.values() for moments in several)
            told = "the statistics of each call by itself"
            yield Undo(told, tuple(of_calls), degrees, write_each_call(layers, of_calls))
        if case.is_own_better:
            yield Undo(EACH_BATCH, tuple(layers), math.inf, normalize_each_batch(layers), EACH_BATCH)

    def look(self, case: Case) -> Signs | None:
        return _look_at_calls(case)

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        return EXPLAINED

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        signs = _look_at_calls(case) or _look_at_batches(case)
        return "" if signs is None else signs.evidence


def _look_at_calls(case: Case) -> Signs | None:
    """Look for layers whose calls in a forward are of different populations."""
    compared: dict[str, Calls] = {}
    views = case.data.view.layers
    for name in case.seen:
        calls = compare_calls(views[name]) if name in views else None
        if calls is not None:
            compared[name] = calls

    unlike = {name: calls.share for name, calls in compared.items() if calls.are_unlike}
    if not unlike and case.is_own_better:
        unlike = {name: calls.share for name, calls in compared.items()}
    if not unlike:
        return None

    worst = max(unlike, key=unlike.__getitem__)
    # Layers behind are named too: each call's own statistics have made what these are given alike.
    behind = dropwhile(lambda name: name not in unlike, compared)
    return Signs.of(behind, compared[worst].tell())


def _look_at_batches(case: Case) -> Signs | None:
    """Look for batches of few images that differ, those of training before those at hand."""
    view = case.training_view
    if view is not None and case.training is not None:
        signs = _look_at_view(case, view, case.training, "training's batches", is_enough=False)
        if signs is not None:
            return signs

    data = case.data
    return _look_at_view(case, data.view, data.exact, "these batches", is_enough=case.is_own_better)


def _look_at_view(case: Case, view: View, exact: Statistics, whose: str, is_enough: bool) -> Signs | None:
    """Look for layers whose batches differ.

    Args:
        case: the case.
        view: what layers saw of the batches.
        exact: exact statistics of the same batches.
        whose: batches they are, in words.
        is_enough: whether it is known to matter; otherwise averages that fit the batches' own statistics show it.
    """
    spreads = {}
    for name in case.seen:
        layer_view = view.layers.get(name)
        if name in exact and layer_view is not None and len(layer_view.calls) == 1:
            spreads[name] = _measure_spread(layer_view)

    behind = list(dropwhile(lambda name: not spreads[name].is_wide, spreads))
    if not behind:
        return None
    first, *later = behind
    fit = _compare_fit(case, later, view, exact)  # the first one is given the same, whatever normalizes
    if not is_enough and not fit.is_own:
        return None

    images = count_things(round(view.batch_size), "image")
    told = f"{whose} have {images}"
    if view.batch_size == 1:
        told += ", which makes train mode instance norm"
    told += f": {spreads[first].tell()}"
    if fit.is_own:
        told += f"; {fit.tell()}"
    elif case.training is None:
        told += "; whether training's were as small is not known"
    return Signs.of(behind, told)


@dataclass(frozen=True)
class _Spread:
    """How the batches of a layer differ.

    Attributes:
        share: of the variance that lies between the means of batches, mean over channels.
        spread: standard deviation of the mean squares of batches over their mean, root mean square over channels.
    """

    share: float
    spread: float

    @property
    def is_wide(self) -> bool:
        return self.share > _SHARE or self.spread > _SPREAD

    def tell(self) -> str:
        """Write by how much they differ."""
        return f"their means make up {self.share:.0%} of the variance, their variances vary by {self.spread:.0%}"


def _measure_spread(view: LayerView) -> _Spread:
    share = view.batch_means.var / view.pooled.var
    squares = view.batch_squares.var / view.batch_squares.mean.square()
    return _Spread(float(share.nanmean()), math.sqrt(float(squares.nanmean())))


@dataclass(frozen=True)
class _Fit:
    """How far averages are from two kinds of statistics, in σ or log variance: the median layer of those that are off.

    Attributes:
        exact: from exact statistics, under which all images are normalized alike.
        own: from those of the same images while each batch is normalized by its own.
        is_own: whether at least half of the layers are off, and their averages fit the batches' own.
    """

    exact: float
    own: float
    is_own: bool

    def tell(self) -> str:
        own = f"by {self.own:.2f} while each batch normalizes itself, as in training"
        return f"averages are off by {self.exact:.2f}, {own}"


def _compare_fit(case: Case, names: Sequence[str], view: View, exact: Statistics) -> _Fit:
    """Compare the averages of layers with exact statistics, and with what each batch's own let the layers be given."""
    off = [name for name in names if max(case.find_gap(name, exact)) > _OFF]
    if not off or 2 * len(off) < len(names):
        return _Fit(math.nan, math.nan, is_own=False)

    pooled = {name: view.layers[name].pooled for name in off}
    own = Statistics(pooled, exact.eps)
    exact_gap = _find_middle_gap(case, off, exact)
    own_gap = _find_middle_gap(case, off, own)
    return _Fit(exact_gap, own_gap, is_own=own_gap < _FIT * exact_gap)


def _find_middle_gap(case: Case, names: Sequence[str], reference: Statistics) -> float:
    """Find the gap of the averages from a reference, median over layers."""
    gaps = [max(case.find_gap(name, reference)) for name in names]
    return median(gaps)
