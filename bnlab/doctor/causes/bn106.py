"""BN106: weights that moved while the averages did not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.history import LayerChange
from bnlab.doctor.thresholds import COLLAPSE_FALLS, COLLAPSED, NOT_COLLAPSED, WEIGHTS_MOVED
from bnlab.doctor.undo import EXACT, RESCALED
from bnlab.doctor.words import count_things


class WeightsMovedAlone(Cause):
    """Weights that differ from those of `before=` by more than 1% of their length, or were added, and averages that no
    update has followed: they are equal bit for bit, or were written without a count.

    Pruned, rounded or merged weights, those averaged over clients or steps (EMA, SWA) beside the buffers of one
    network, adapters that were saved without buffers and loaded onto the base, or weights that were trained on with
    batch norm in eval mode. Without `before=` it shows where exact variances are below 0.7 of the running ones, the
    more so the deeper the layer: features of different networks cancel when their weights are averaged (Jordan et al.
    2023). Images of less detail than in training do the same: training_batches= tells them apart.

    It is a false alarm if batch norm was kept in eval mode on purpose while its weights were trained: the network has
    learnt with these averages as constants. Layers whose own weight is frozen are left out.
    """

    code = "BN106"
    title = "weights moved, averages did not"
    meaning = (
        "The averages belong to other weights: those before a change, or those of the network they were copied from."
    )
    remedy = (
        "Recalibrate after averaging, merging, pruning or rounding weights, also where an average of weights averages "
        "its buffers; save adapters with their buffers."
    )
    undone_by = (EXACT, RESCALED)
    severity = "warning"
    needs = ("changes",)

    def list_layers(self, case: Case) -> Sequence[str]:
        # A recalibration writes buffers without a count as well. Only data shows that they are off, so that
        # without data such layers are no finding.
        written = _list_written(case) if case.has_data else []
        return written or _list_without_update(case, lambda change: change.is_same and not change.updates)

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        return {"traces": self.measure_traces(case, layers), "collapse": float(_has_collapsed(case))}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        history = case.history
        # Without a trace in these layers, collapsed variances are what speaks for the cause.
        if history is None or not {*self.list_layers(case)} & {*layers}:
            shallow, deep = _compare_depths(case)
            return f"variance {shallow:.2f} of the running one in the first third of the layers, {deep:.2f} in the last"
        moved = f"weights moved by {describe_number(100 * history.distance, 2)}%"
        if history.added:  # as adapters
            moved += f" and {count_things(len(history.added), 'parameter')} added"
        is_written = bool({*_list_written(case)} & {*layers})
        return f"{moved}, buffers written and no update counted" if is_written else f"{moved}, buffers the same"


def _list_written(case: Case) -> list[str]:
    """List the layers whose buffers were written without an update, as by an average of networks."""
    # Not `not change.updates`: where it is None, nobody knows whether updates have written the buffers.
    return _list_without_update(case, lambda change: not change.is_same and change.updates == 0)


def _list_without_update(case: Case, shows: Callable[[LayerChange], bool]) -> list[str]:
    """List the layers whose buffers show something although weights moved, or were added."""
    history = case.history
    if history is None or (history.distance < WEIGHTS_MOVED and not history.added):
        return []
    changes = history.layers
    # Averages of 0 and 1 have followed no weights at all, neither earlier nor later ones.
    named = case.select(lambda name: name in changes and shows(changes[name]) and not case.is_initial(name))
    # A frozen layer keeps its averages on purpose, except under adapters, which freeze the whole base.
    may_be_frozen = bool(history.added)  # as under adapters
    return [name for name in named if may_be_frozen or not case.has_fixed_weight(name)]


def _has_collapsed(case: Case) -> bool:
    shallow, deep = _compare_depths(case)
    # A collapse grows with depth. Variances above the running ones in the first layers mean other images.
    return deep < COLLAPSED and shallow < NOT_COLLAPSED and deep < COLLAPSE_FALLS * shallow


def _compare_depths(case: Case) -> tuple[float, float]:
    """Compare the exact variance with the running one in the first third of the layers, and in the last."""
    names = [name for name in case.seen if name in case.reference]
    middle = [float(case.log_ratios(name, case.reference).median()) for name in names]
    # The logarithm is that of the running variance over the exact one, which is turned round here.
    ratios = [math.exp(-value) for value in middle]
    # A single layer is first and last third at once.
    if len(ratios) < 2:
        return math.nan, math.nan
    third = math.ceil(len(ratios) / 3)
    return mean(ratios[:third]), mean(ratios[-third:])
