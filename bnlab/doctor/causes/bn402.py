"""BN402: batch norm in train mode, or without averages."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs


class NormalizesByBatch(Cause):
    """Batch norm that would normalize by each batch if the model were called now.

    A warning where the model is in eval mode and a batch norm inside of it is not: predictions depend on what else is
    in the batch, and move the averages. A model that is in train mode as a whole and has been trained: its cost is what
    it scores less under each batch's own statistics than under its averages, if half of its batch norms or more are in
    train mode; where that is nothing or not known, it is a note. Dropout is left out of that score. So are batch norms
    without running statistics, which use the batch's also in eval mode: always a note.

    A false alarm in the middle of training, if these batches are smaller than those of training or sorted; and where
    the batch's statistics are wanted, as in some adaptation to new data.
    """

    code = "BN402"
    title = "normalizes by the batch"
    meaning = "Called as it is now, the model's predictions depend on the other images of a batch."
    remedy = "Call model.eval() before evaluating, exporting or saving predictions."
    kind = "mode"
    severity = "note"

    def look(self, case: Case) -> Signs | None:
        layers = case.layers
        training = [name for name, layer in layers.items() if layer.training]
        if training and not case.model.training:
            told = f"{len(training)} of {len(layers)} in train mode, in a model in eval mode"
            return Signs(tuple(training), told, "warning")

        notes = []
        trained = [name for name in training if not case.is_initial(name)]
        if trained:
            notes.append(f"{len(trained)} of {len(layers)} in train mode")
        without = case.without
        if without:
            notes.append(f"{len(without)} without running statistics")
        told = "; ".join(notes)
        return Signs.of([*trained, *without], told)
