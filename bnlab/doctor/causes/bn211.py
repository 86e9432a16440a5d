"""BN211: the same image is predicted differently another time, or in another batch."""

from __future__ import annotations

import math

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import INPUT_DIFFERS, PREDICTIONS_DIFFER


class UnsteadyPredictions(Cause):
    """Outputs of the same images in eval mode that differ by more than 2% of their spread, root mean square: between
    two runs of a batch, or alone and in a batch. At most sixteen images are run; four of them alone.

    A forward that calls F.dropout without training=self.training does it, one that adds noise, or one that reduces over
    the whole batch. If a forward changes buffers in eval mode, as observers of quantization do, exact statistics fail
    their check by more than 1% of σ or of the variance: scores are not reliable then, and it is an error.

    It is a false alarm if outputs are drawn on purpose, as of a variational autoencoder, where comparing images of a
    batch is the model's purpose, or where they are not along the first axis. Batch norms without averages are BN402.
    """

    code = "BN211"
    title = "the same image, different predictions"
    meaning = "Even in eval mode, something in the forward draws random numbers, changes, or computes over the batch."
    remedy = (
        "Pass training=self.training to F.dropout; reduce over each image's own axes; turn off observers of "
        "quantization (model.apply(torch.ao.quantization.disable_observer)); then diagnose again."
    )
    kind = "network"
    severity = "warning"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        # Random numbers come first: they make the comparisons below differ too.
        # NaN, where outputs cannot be compared, is no finding.
        if case.twice > PREDICTIONS_DIFFER:
            return Signs.of([""], f"two runs of the same batch differ by {case.twice:.2g} of the outputs' spread")
        check = case.exact.check
        if check is not None and not check.is_exact and check.off > INPUT_DIFFERS and check.layer is not None:
            reported = f"another input, by {check.off:.2g} of σ or of the variance"
            if math.isinf(check.off):
                reported = "calls in another order, or values that cannot be compared"
            return Signs.of([check.layer], f"an evaluation gives {check.layer!r} {reported}", "error")
        # Norms that have no averages, or do not read them, depend on the batch: BN402 and BN304 name these.
        is_explained = bool(case.without or case.unread)
        if case.alone > PREDICTIONS_DIFFER and not is_explained:
            return Signs.of([""], f"images alone and in a batch differ by {case.alone:.2g} of the outputs' spread")
        return None
