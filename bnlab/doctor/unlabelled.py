"""The verdict without labels: by how predictions differ under running averages and exact statistics.

Which of two predictions is right nobody knows then. Where they hardly differ, averages are healthy; where they do, what
surely takes the gap away says where the fault is, and without such an undo it is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity
from bnlab.doctor.examination import Decisions
from bnlab.doctor.experiment import Experiment, Trial
from bnlab.doctor.findings import Finding, find_explained, find_off, find_signs, fits_after, sort_findings
from bnlab.doctor.thresholds import SURELY_HEALTHY, WORTH
from bnlab.doctor.verdict import BROKEN, Verdict, Word, find_kind
from bnlab.doctor.words import count_things

_ONLY_LABELS = "Only labels tell which of the two is right."
_TOO_FEW = "Too few images to tell."


def conclude_unlabelled(
    case: Case, experiment: Experiment | None, causes: Sequence[Cause], worth: float | None
) -> tuple[Verdict | None, list[Finding]]:
    """Judge by predictions, and name the causes; without data, or where outputs are no numbers, there is no verdict."""
    chosen: Sequence[Trial] = ()
    if experiment is not None and fits_after(experiment):
        chosen, _ = experiment.choose()

    decisions = None if case.evidence is None else case.evidence.decisions
    judged = None
    severity: Severity | None = None
    if decisions is not None:
        least = WORTH if worth is None else worth
        is_costly = decisions.cost.low > 0 and decisions.cost.value > least
        severity = "warning" if is_costly else "note"
        judged = _judge(case, decisions, chosen, is_costly, least)

    explained: list[Finding] = []
    if experiment is not None and chosen:
        explained = find_explained(chosen, experiment, case, WORTH)
        explained = [replace(finding, severity=severity or finding.severity) for finding in explained]
    elif case.evidence is not None:
        explained = find_off(causes, case, severity)
    others = find_signs(causes, case, [finding.cause.code for finding in explained])
    return judged, sort_findings([*explained, *others])


def _judge(case: Case, decisions: Decisions, chosen: Sequence[Trial], is_costly: bool, worth: float) -> Verdict:
    """Judge by what differs, and by the undos that take the gap away."""
    reported = _describe(decisions)
    word: Word = "healthy"
    if case.is_broken:
        word, reported = "averages", BROKEN
    elif is_costly:
        word = _name_place(chosen)
        undone = " or ".join(dict.fromkeys(f"{trial.cause.code} ({trial.cause.title})" for trial in chosen))
        reported = f"{reported} {f'Undoing {undone} takes most of the gap away.' if undone else _ONLY_LABELS}"
    elif decisions.cost.high > (worth if decisions.cost.low > 0 else SURELY_HEALTHY * worth):
        word, reported = "undecided", f"{reported} {_TOO_FEW}"
    return Verdict(word, reported, decisions.cost, chosen if is_costly else ())


def _name_place(chosen: Sequence[Trial]) -> Word:
    """Name where the fault is, by the undos that take the gap away."""
    kinds = {find_kind(trial) for trial in chosen}
    if kinds == {"averages", "images"}:
        return "averages or images"
    return kinds.pop() if len(kinds) == 1 else "undecided"


def _describe(decisions: Decisions) -> str:
    """Say how predictions differ, and what that costs."""
    cost = decisions.cost
    counted = count_things(cost.images, "image")
    points = f"{100 * cost.value:z.1f} points [{100 * cost.low:z.1f}, {100 * cost.high:z.1f}]"
    if math.isnan(decisions.differing):
        return f"Exact statistics change the outputs of {counted} by {points} of their variance, beyond chance."
    differing = f"{100 * decisions.differing:.1f}%"
    return (
        f"Without labels: exact statistics name {differing} of {counted} otherwise. If the network is right about how "
        f"sure it is, running averages cost {points} of accuracy, beyond chance."
    )
