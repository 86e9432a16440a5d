"""Causes: one thing each that may have gone wrong. A cause knows the others as little as they know it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

# `bnlab doctor --help` reads this module, and does not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor

    from bnlab.doctor.evidence.case import Case
    from bnlab.doctor.undo import Kind, Undo

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

Ground = Literal["populations", "traces", "averages", "noise", "collapse", "batches", "remainder"]
"""What may speak for a cause that shares its undo with others; `verdict.attribution` ranks them."""

HIDDEN: tuple[Kind, ...] = ("images", "network")
"""Kinds of causes that new statistics would hide."""

NEEDS = {
    "data": "batches",
    "training": "training_batches=",
    "before": "before=, an earlier checkpoint",
    "changes": "batches, or before=, an earlier checkpoint",
    "trace": "trace=, a recording of the training",
    "sizes": "training_batches=",
    "ranks": "ranks=, a process group",
    "inputs": "inputs=, what the layers normalize",
}
"""What a cause may need, and the argument of `diagnose` that gives it."""


@dataclass(frozen=True)
class Signs:
    """What shows a cause without an experiment.

    Attributes:
        layers: names of the layers that show it, in order of depth; the model's own name is "".
        evidence: the numbers that show it, in one phrase.
        severity: how severe it is; None: as the cause says.

    >>> Signs.of(["bn1", "bn2"], "momentum 0.99").layers
    ('bn1', 'bn2')
    >>> Signs.of([], "momentum 0.99") is None
    True
    """

    layers: tuple[str, ...]
    evidence: str
    severity: Severity | None = None

    @staticmethod
    def of(layers: Iterable[str], evidence: str, severity: Severity | None = None) -> Signs | None:
        """Make the signs, or None where no layer shows them."""
        names = tuple(layers)
        return Signs(names, evidence, severity) if names else None


class Cause(ABC):
    """One thing that may have gone wrong.

    A cause of your own is a subclass with one of the methods below, which `diagnose(..., causes=[Mine()])` takes.
    `propose` says how it would be undone: the undo is tried, and the cause is named if nothing smaller brings back as
    much. Causes that are undone in the same way (`undone_by`) are told apart by what they `predict` the averages to be,
    by the layers in which they leave traces, or by what else they name as `support`. `look` finds signs that no
    experiment tells: notes, or warnings where they will cost something.

    Attributes:
        code: stable, such as "BN102".
        title: a few words.
        meaning: one sentence on what it means.
        remedy: one sentence on what to do.
        kind: where the fault is, which is the verdict if the cause explains most.
        undone_by: undos that it shares with other causes (`Undo.shared`), beside those that it proposes itself.
        severity: of its signs, where nothing else is known.
        needs: what must be known of a case, keys of `NEEDS`.

    >>> class NoWeight(Cause):
    ...     code, title = "MINE1", "no weight"
    ...     meaning = "The layer does not scale its output."
    ...     remedy = "Pass affine=True."
    ...     severity = "warning"
    ...
    ...     def look(self, case):
    ...         return Signs.of(case.select(lambda name: case.layers[name].weight is None), "affine=False")
    >>> import bnlab
    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(2, affine=False))
    >>> bnlab.diagnose(model, causes=[NoWeight()]).findings["code"].tolist()
    ['BN002', 'MINE1']
    """

    code: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    remedy: ClassVar[str]
    kind: ClassVar[Kind] = "averages"
    undone_by: ClassVar[tuple[str, ...]] = ()
    severity: ClassVar[Severity] = "note"
    needs: ClassVar[tuple[str, ...]] = ()

    def look(self, case: Case) -> Signs | None:
        """Look for signs in a case that has what the cause needs; of its own accord, without data, at its traces."""
        # With data the averages themselves are compared with exact ones, and traces only decide between
        # causes that share an undo (`support`).
        layers = self.list_layers(case) if not case.has_data else ()
        return Signs.of(layers, self.describe(case, layers)) if layers else None

    def propose(self, case: Case) -> Iterable[Undo]:
        """Propose how it would be undone, from a part of the images; nothing where its signs are not there.

        It is called for each half of the images, `case.fold`, to which numbers are fitted. What one half alone proposes
        is not tried: conditions are better read from what is of all images. Several undos need names that differ.
        """
        return ()

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        """Predict running mean and variance [2, C] of the layers that it would have spoiled."""
        return {}

    def list_layers(self, case: Case) -> Sequence[str]:
        """List the layers in which its traces are, such as a count or equal buffers, however far averages are off."""
        return ()

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        """Return what speaks for it: which share of the layers' gap it explains on each ground, 1 all and 0 nothing."""
        return {
            "averages": case.explain(self.predict(case), layers),
            "traces": self.measure_traces(case, layers),
        }

    def measure_traces(self, case: Case, layers: Sequence[str]) -> float:
        """Measure in which share of the layers its traces are."""
        traced = {*layers} & {*self.list_layers(case)}
        return len(traced) / len(layers)

    def name_layers(self, case: Case, layers: Sequence[str]) -> Sequence[str]:
        """Name all layers that it is about, where undoing it in some of them brings the score back."""
        return layers

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        """Write the numbers that show it, where it explains the averages of layers."""
        return ""
