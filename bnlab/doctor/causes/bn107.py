"""BN107: buffers of another network."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.families import WithoutUpdate, get_history, is_other_network, list_kept


class OthersBuffers(WithoutUpdate):
    """Buffers equal bit for bit to those of the network in `before=`, while its weights are others, or more.

    An average of weights (EMA, SWA, merging) that took the buffers of one network as they were, or adapters that were
    saved without buffers and loaded onto the base. Where only some values changed, or all lie on a grid, it is BN106.
    A network that was trained on with batch norm in eval mode looks the same, and is found here too.

    A false alarm where that was on purpose, see BN106.
    """

    code = "BN107"
    title = "buffers of another network"
    meaning = "The averages are those of `before=` bit for bit and the weights are not: they describe another network."
    remedy = "Recalibrate; let an average of weights average the buffers too, and save adapters with their buffers."

    def list_layers(self, case: Case) -> Sequence[str]:
        return list_kept(case) if is_other_network(case) else []

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        return f"buffers the same, {100 * get_history(case).distance:.2g}% between the weights"
