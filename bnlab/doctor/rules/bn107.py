"""BN107: buffers of another network."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.kept import is_other_network, list_kept
from bnlab.doctor.rule import Rule, Signs


class OthersBuffers(Rule):
    """Buffers equal bit for bit to those of the network in `before=`, while every tensor of weights differs from its in
    nearly all values, and these are no rounded ones.

    An average of weights (EMA, SWA, merging) that took the buffers of one network as they were. Weights that were only
    pruned, rounded or changed in part are BN106: there values stay, or lie on a grid. A network that was trained on
    with batch norm in eval mode looks the same as an average, and is found here too; one whose weights are kept in
    bfloat16 looks rounded.

    A false alarm where that was on purpose, see BN106. With data only layers count whose statistics are off, by more
    than three times the noise of an average.
    """

    code = "BN107"
    title = "buffers of another network"
    meaning = "The averages are those of `before=` bit for bit and the weights are not: they describe another network."
    remedy = "Recalibrate, and let an average of weights average the buffers too."
    needs = ("before",)

    def look(self, case: Case) -> Signs | None:
        history = case.history
        assert history is not None
        if not is_other_network(case):
            return None
        return Signs.of(list_kept(case), f"buffers the same, {100 * history.distance:.2g}% between the weights")
