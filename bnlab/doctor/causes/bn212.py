"""BN212: an image's prediction depends on its batch."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.probe import DIFFERENT


class DependsOnBatch(Cause):
    """Outputs of images alone, in eval mode, that differ from those of the same images inside of a batch by more than
    2% of their spread (root mean square).

    Something besides batch norm in eval mode reduces over the batch. Up to four images are run alone, and up to sixteen
    in the batch. Predictions that are random are BN211, and a model with batch norms that keep no averages is BN402:
    then this cause does not look.

    A false alarm where images are not along the first axis of what the model is given, and where comparing images with
    each other is its purpose.
    """

    code = "BN212"
    title = "an image's prediction depends on its batch"
    meaning = (
        "Something besides batch norm computes over the whole batch, in eval mode too, such as a mean over all axes."
    )
    remedy = "Let the forward reduce over each image's own axes; until then evaluate at the batch size of training."
    kind = "network"
    severity = "warning"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        alone = case.data.probe.alone
        is_explained = bool(case.without or case.data.unread)
        shown = [""] if alone > DIFFERENT and not is_explained else []
        return Signs.of(shown, f"images alone and in a batch differ by {alone:.2g} of the outputs' spread")
