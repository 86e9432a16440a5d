"""What a row of the table is: one thing that may be wrong, how it would be undone, and what it leaves.

Below it is what comes of a row: a change that was tried, and what was found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from bnlab.doctor.patient import ByLayer, Change, Patient, Run, keep
from bnlab.doctor.scores import Scores

Kind = Literal["averages", "images", "labels", "batches", "network", "mode"]
"""Where the fault is. New averages repair what is wrong with averages, and hide what is wrong with images."""


@dataclass(frozen=True)
class Undo:
    """A change under which a mistake would be undone.

    Attributes:
        words: the mistake, in words that follow "Found:".
        degrees: numbers that were free to be chosen, as two for a scale and a shift; inf for what can fit anything.
        change: of the layers' batch-norm operations.
        unnamed: of batch-norm operations that are called directly, and not by a layer of the model.
        images: of the images.
        labels: of the labels.
        within: called with the model, gives the block in which it is run, such as one that exchanges weights.
        regrouped: the same images in the same order, in other batches.

    >>> turned = Undo("images that stand on their heads", images=lambda images: images.flip(-2))
    >>> turned.degrees  # nothing was free to be chosen
    0
    """

    words: str
    degrees: float = 0
    change: Change = keep
    unnamed: Change = keep
    images: Callable[[Tensor], Tensor] | None = None
    labels: Callable[[Tensor], Tensor] | None = None
    within: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None
    regrouped: Sequence[Any] | None = None

    def run(self, patient: Patient) -> Run:
        """Run the patient's images under the change."""
        return patient.run(
            self.change,
            unnamed=self.unnamed,
            images=self.images,
            labels=self.labels,
            within=self.within,
            regrouped=self.regrouped,
        )


@dataclass(frozen=True)
class Left:
    """Averages that a mistake would have left.

    Attributes:
        averages: by layer, as buffers hold them.
        numbers: how many were fitted.
        words: what was found, in words.
        noise: by layer, standard deviations [2, C] of mean and variance that these averages have by chance.

    >>> import torch
    >>> from bnlab.statistics.moments import Moments
    >>> start = Moments(torch.nan, torch.zeros(3), torch.ones(3))
    >>> Left({"norm": start}, words="averages are still at their start").numbers
    0
    """

    averages: ByLayer
    numbers: int = 0
    words: str = ""
    noise: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Trace:
    """What a mistake has left beside the averages, such as a count.

    Attributes:
        share: of the layers in which it is.
        words: what was found, in words.

    >>> Trace(1 / 3, "momentum is 0.9 in 1 of 3 layers").share < 0.5
    True
    """

    share: float
    words: str


def find_nothing(patient: Patient) -> Any:
    """Find nothing: what a row does not have."""
    return ()


@dataclass(frozen=True)
class Cause:
    """A row: one thing that may be wrong.

    What is undone by exact statistics has averages that it `left`, or a `trace`, or both. Everything else has an
    `undo` of its own. What neither shows is looked at: a `sign`.

    Attributes:
        code: stable, such as "BN102".
        kind: where the fault is.
        title: in a few words.
        meaning: one sentence on what it means.
        remedy: one sentence on what to do.
        undo: how it would be undone, as changes to try.
        left: averages that it would have left.
        trace: what else it leaves; None where there is nothing.
        sign: words on what is worth a note, whatever is tried; "" where there is nothing.
        is_free: whether what it leaves is known without running the model again.
        decides: "at once" if the row's sign makes everything else pointless; "at the end" if its sign names a network
            that nothing helps; "last" if the row is named only when no other one explains half of what is seen.

    >>> turned = Undo("images that stand on their heads", images=lambda images: images.flip(-2))
    >>> mine = Cause(
    ...     "MINE1", "images", "upside down", "They stand on their heads.", "Turn them.", undo=lambda patient: [turned]
    ... )
    >>> mine.kind  # and then: bnlab.diagnose(model, batches, causes=[mine])
    'images'
    """

    code: str
    kind: Kind
    title: str
    meaning: str
    remedy: str
    undo: Callable[[Patient], Iterable[Undo]] = find_nothing
    left: Callable[[Patient], Iterable[Left]] = find_nothing
    trace: Callable[[Patient], Trace | None] = find_nothing
    sign: Callable[[Patient], str] = find_nothing
    is_free: bool = False
    decides: Literal["", "at once", "at the end", "last"] = ""


@dataclass(frozen=True)
class Trial:
    """A change with the scores under it.

    Attributes:
        kind: of the fault that it undoes.
        cause: whose undo it is; None: several causes share it.
        undo: what was changed.
        scores: of the same images.
        is_exact: whether it is that of exact statistics.
    """

    kind: Kind
    cause: Cause | None
    undo: Undo
    scores: Scores
    is_exact: bool = False


@dataclass(frozen=True)
class Finding:
    """A cause that was named, or a note.

    Attributes:
        cause: the row.
        words: what was found.
        is_note: whether it costs nothing that was measured.
    """

    cause: Cause
    words: str
    is_note: bool
