"""BN106: weights that moved while the statistics did not."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.kept import is_other_network, list_kept, list_written
from bnlab.doctor.rule import Rule, Signs


class WeightsMovedAlone(Rule):
    """No update counted since the earlier checkpoint, and weights that differ by more than 1% of their length: pruned,
    rounded, merged, averaged over clients, or trained on with batch norm in eval mode.

    BN107 takes the case in which every weight is another number and the buffers are the same. With data only layers
    count whose statistics are off, by more than three times the noise of an average.

    A false alarm where batch norm was kept in eval mode on purpose while its weights were trained: the network has
    learnt with these averages as constants. Layers whose own weight is frozen are left out.
    """

    code = "BN106"
    title = "weights moved, statistics did not"
    meaning = "The weights were changed after the last update of the averages, which still describe the old ones."
    remedy = "Recalibrate after pruning, rounding or merging weights."
    needs = ("before",)

    def look(self, case: Case) -> Signs | None:
        history = case.history
        assert history is not None
        moved = f"weights moved by {100 * history.distance:.2g}% ({100 * history.kept:.2g}% of them kept)"
        written = list_written(case)
        if written:
            return Signs.of(written, f"{moved}, buffers written and no update counted")
        if is_other_network(case):
            return None
        return Signs.of(list_kept(case), f"{moved}, buffers the same")
