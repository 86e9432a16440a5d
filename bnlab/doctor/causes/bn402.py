"""BN402: batch norm in train mode, or without averages."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import PREDICTIONS_DIFFER


class NormalizesByBatch(Cause):
    """Batch norm that would normalize by each batch if the model were called now.

    A warning where the model is in eval mode and a batch norm inside of it is not: predictions depend on what else is
    in the batch, and move the averages. Of a model that is in train mode as a whole its cost is what it scores less
    under each batch's own statistics than under its averages; where that is nothing, it is a note. Without labels it is
    a warning if the same images are predicted otherwise in a smaller batch, and without data a note. So are batch norms
    without running statistics, which use the batch's also in eval mode.

    It is a false alarm in the middle of training, if these batches are smaller than those of training or sorted; and
    where the batch's statistics are wanted, as in some adaptation to new data.
    """

    code = "BN402"
    title = "normalizes by the batch"
    meaning = "Called as it is now, the model's predictions depend on the other images of a batch."
    remedy = (
        "Call model.eval() before evaluating, exporting or saving predictions; layers without running statistics need "
        "track_running_stats=True when they are built, and training with it."
    )
    kind = "mode"

    def look(self, case: Case) -> Signs | None:
        training = case.select(lambda name: case.layers[name].training)
        if training and not case.model.training:
            reported = f"{len(training)} of {len(case.layers)} in train mode, in a model in eval mode"
            return Signs.of(training, reported, "warning")

        # A new network is in train mode because it is still to be trained.
        trained = [name for name in training if not case.is_initial(name)]
        if trained and case.has_data and _depends_on_batch(case):
            reported = (
                f"{len(trained)} of {len(case.layers)} in train mode: the same images in a smaller batch are predicted "
                f"otherwise, by {case.by_batch:.2g} of the outputs' spread"
            )
            return Signs.of(trained, reported, "warning")
        notes = []
        if trained:
            notes.append(f"{len(trained)} of {len(case.layers)} in train mode")
        if case.without:
            notes.append(f"{len(case.without)} without running statistics")
        return Signs.of([*trained, *case.without], "; ".join(notes))


def _depends_on_batch(case: Case) -> bool:
    """Return whether nothing but predictions says what train mode does, and these depend on the other images."""
    return case.scores is None and case.by_batch > PREDICTIONS_DIFFER
