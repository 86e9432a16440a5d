"""BN110: a small last batch of each epoch."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import SMALL_LAST_BATCH
from bnlab.doctor.words import count_things


class SmallLastBatch(Cause):
    """The last batch of an epoch has at most half as many images as a full one: by the lengths of a DataLoader, or by
    the sizes of other training batches.

    With momentum m such a batch makes up a share m of the averages right after it, and m·(1−m)^k after k more updates.
    It harms weights more: in batches of 64 or 256 at a constant rate, accuracy under exact statistics fell by more than
    half in 13 of 14 networks right after a batch of 1/32. What half a batch does is undecided (`last_batch`).

    It is a warning where exact statistics score better.

    It is a false alarm if the training leaves such a batch out and training_batches= does not, or where the averages
    were computed again afterwards.
    """

    code = "BN110"
    title = "a small last batch"
    meaning = "This batch of few images still makes an update at the full learning rate, which can damage the weights."
    remedy = "Pass drop_last=True to the DataLoader; new statistics do not repair the weights, more updates do."
    needs = ("sizes",)

    def look(self, case: Case) -> Signs | None:
        # Training batches may have been given without it being known which of them is the last of an epoch.
        if case.training_sizes is None:
            return None
        last, full = case.training_sizes
        if not 0 < last <= SMALL_LAST_BATCH * full:
            return None
        evidence = f"the last batch of an epoch has {count_things(last, 'image')} of {full:,}"
        return Signs.of(case.layers, evidence, "warning" if case.is_costly else "note")
