"""Rules: one fault each, found by its code. A rule looks at a case and reports the layers and numbers that show it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from bnlab.doctor.case import Case

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

NEEDS = {
    "data": "batches",
    "training": "training_batches=",
    "before": "before=, an earlier checkpoint",
    "trace": "trace=, a recording of the training",
    "sizes": "training_batches= or trace=",
    "history": "before= or trace=",
    "ranks": "group=, a process group",
    "inputs": "inputs=, what the layers normalize",
}
"""What a rule may need, and the argument of `diagnose` that gives it."""

ASKS = {
    "before": "Averaged (EMA, SWA, federated), pruned or fine-tuned? Pass that network as before=.",
    "training": "Prepared otherwise than in training? Pass training_batches= to compare.",
}
"""What would tell most of a finding, as a diagnosis asks for it; keys of `NEEDS`."""


@dataclass(frozen=True)
class Signs:
    """What a rule has found.

    Attributes:
        layers: names of the layers that show it, in order of depth; the model's own name is "".
        evidence: the numbers that show it, in one phrase.
        at_least: how severe they are even where they cost nothing yet.
        checks: what usually does it and what to check, the most frequent first, a short line each; told in the place of
            the rule's remedy.

    >>> Signs.of(["bn1", "bn2"], "momentum 0.99").layers
    ('bn1', 'bn2')
    >>> Signs.of([], "momentum 0.99") is None
    True
    """

    layers: tuple[str, ...]
    evidence: str
    at_least: Severity = "note"
    checks: tuple[str, ...] = ()

    @staticmethod
    def of(layers: Iterable[str], evidence: str, at_least: Severity = "note") -> Signs | None:
        """Make the signs, or None where no layer shows them."""
        names = tuple(layers)
        return Signs(names, evidence, at_least) if names else None


class Rule(ABC):
    """One thing that can be wrong.

    A rule of your own is a subclass with these, which `diagnose(..., rules=[Mine()])` takes.

    Attributes:
        code: stable, such as "BN102".
        title: a few words.
        meaning: one sentence on what it means.
        remedy: one sentence on what to do.
        severity: of a finding whose cost was not measured.
        follows_cost: whether a measured cost decides the severity; False for what will do harm later, or hides harm.
        mends: the statistics under which its cost is gone: "exact"; "batch" where no single set of averages helps; or
            "running" where the layers that it names use the batch's in their place now, which is what costs then.
        needs: what must be known of a case, keys of `NEEDS`.
        hides: whether recalibration would hide the mistake instead of mending it. `recalibrate` lets such a rule look
            too, at a case whose evidence has the new statistics as `exact`, a view of a sample, and no costs.
        explains_bad: whether it may be why a model is bad that exact statistics do not mend; a verdict of "not the
            averages" names such findings, and prints no other notes but of `limits`.
        limits: whether it says what was not looked at, which is worth knowing beside any verdict.
        asks: what would tell more of its cause, keys of `ASKS`.
        unless: codes that explain layers better; in those that they name the rule does not look.

    >>> class NoWeight(Rule):
    ...     code, title = "MINE1", "no weight"
    ...     meaning = "The layer does not scale its output."
    ...     remedy = "Pass affine=True."
    ...
    ...     def look(self, case):
    ...         return Signs.of(case.select(lambda name: case.layers[name].weight is None), "affine=False")
    >>> import bnlab
    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(2, affine=False))
    >>> bnlab.diagnose(model, rules=[NoWeight()]).findings["code"].tolist()
    ['BN002', 'MINE1']
    """

    code: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    remedy: ClassVar[str]
    severity: ClassVar[Severity] = "warning"
    follows_cost: ClassVar[bool] = True
    mends: ClassVar[Literal["exact", "batch", "running"]] = "exact"
    needs: ClassVar[tuple[str, ...]] = ()
    hides: ClassVar[bool] = False
    explains_bad: ClassVar[bool] = False
    limits: ClassVar[bool] = False
    asks: ClassVar[tuple[str, ...]] = ()
    unless: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def look(self, case: Case) -> Signs | None:
        """Look for signs in a case that has what the rule needs."""
