"""BN106: weights that moved while the statistics did not."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.families import WithoutUpdate, get_history, is_other_network, list_kept, list_written


class WeightsMovedAlone(WithoutUpdate):
    """No update counted since the earlier checkpoint, and weights that differ by more than 1% of their length: pruned,
    rounded, merged, averaged over clients, or trained on with batch norm in eval mode.

    BN107 is the case in which every weight is another number and the buffers are the same.

    A false alarm where batch norm was kept in eval mode on purpose while its weights were trained: the network has
    learnt with these averages as constants. Layers whose own weight is frozen are left out.
    """

    code = "BN106"
    title = "weights moved, statistics did not"
    meaning = "The weights were changed after the last update of the averages, which still describe the old ones."
    remedy = "Recalibrate after pruning, rounding or merging weights."

    def list_layers(self, case: Case) -> Sequence[str]:
        written = list_written(case) if case.evidence is not None else []
        if written:
            return written
        return [] if is_other_network(case) else list_kept(case)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        history = get_history(case)
        moved = f"weights moved by {100 * history.distance:.2g}% ({100 * history.kept:.2g}% of them kept)"
        is_written = bool({*list_written(case)} & {*layers})
        return f"{moved}, buffers written and no update counted" if is_written else f"{moved}, buffers the same"
