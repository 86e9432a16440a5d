"""BN107: buffers of another network."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.kept import is_other_network, list_kept
from bnlab.doctor.undoing import EXACT, RESCALED


class OthersBuffers(Cause):
    """Buffers equal bit for bit to those of the network in `before=`, while its weights are others, or it has not even
    the same ones.

    An average of weights (EMA, SWA, merging) that took the buffers of one network as they were, or adapters that were
    saved without buffers and loaded onto the base. Weights that were only pruned, rounded or changed in part are BN106:
    there values stay, or lie on a grid. A network that was trained on with batch norm in eval mode looks the same as an
    average, and is found here too; one whose weights are kept in bfloat16 looks rounded.

    A false alarm where that was on purpose, see BN106.
    """

    code = "BN107"
    title = "buffers of another network"
    meaning = "The averages are those of `before=` bit for bit and the weights are not: they describe another network."
    remedy = "Recalibrate; let an average of weights average the buffers too, and save adapters with their buffers."
    undone_by = (EXACT, RESCALED)
    severity = "warning"
    needs = ("before",)

    def list_layers(self, case: Case) -> Sequence[str]:
        return list_kept(case) if is_other_network(case) else []

    def look(self, case: Case) -> Signs | None:
        layers = self.list_layers(case) if case.evidence is None else []
        return Signs.of(layers, self.describe(case, layers))

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        history = case.history
        assert history is not None
        return f"buffers the same, {100 * history.distance:.2g}% between the weights"
