"""The verdict without labels: by how predictions differ under running averages and exact statistics.

Which of two predictions is right nobody knows then. Where they hardly differ, averages are healthy; where they do, what
surely takes the gap away, or explains most of it, says where the fault is, and else it is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity
from bnlab.doctor.examination import Decisions
from bnlab.doctor.experiment import Experiment, Trial
from bnlab.doctor.findings import Finding, find_explained, find_off, find_signs, sort_findings
from bnlab.doctor.thresholds import EXPLAINED, SURELY_HEALTHY, WORTH
from bnlab.doctor.verdict import BROKEN, Verdict, Word, find_kind, let_signs_speak, name_causes, name_place
from bnlab.doctor.words import count_things

_ONLY_LABELS = "Only labels tell which of the two is right."
_TOO_FEW = "Too few images to tell."


def conclude_unlabelled(
    case: Case, experiment: Experiment | None, causes: Sequence[Cause], worth: float | None
) -> tuple[Verdict | None, list[Finding]]:
    """Judge by predictions, and name the causes; without data, or where outputs are no numbers, there is no verdict."""
    chosen = [] if experiment is None else experiment.choose_shown()
    decisions = None if case.evidence is None else case.evidence.decisions
    least = WORTH if worth is None else worth
    severity: Severity | None = None
    if decisions is not None:
        is_costly = decisions.cost.low > 0 and decisions.cost.value > least
        severity = "warning" if is_costly else "note"

    explained: list[Finding] = []
    if experiment is not None and chosen:
        explained = find_explained(chosen, experiment, case, WORTH)
        explained = [replace(finding, severity=severity or finding.severity) for finding in explained]
    elif case.evidence is not None:
        explained = find_off(causes, case, severity)
    others = find_signs(causes, case, [finding.cause.code for finding in explained])

    findings = sort_findings([*explained, *others])
    if decisions is None:
        return None, findings
    place = _locate(case, chosen, explained) if severity == "warning" else None
    judged = _judge(case, decisions, place, chosen, least)
    return let_signs_speak(judged, findings, is_poor=False), findings


def _locate(case: Case, chosen: Sequence[Trial], explained: Sequence[Finding]) -> tuple[Word, str]:
    """Say where the fault is, and why: by undos that take the gap away, or else by a cause that explains most of it."""
    if chosen:
        word = name_place({find_kind(trial) for trial in chosen})
        return word, f"Undoing {name_causes(chosen)} takes most of the gap away."
    for finding in explained:
        cause = finding.cause
        if cause.weigh(case, finding.layers) > EXPLAINED:
            return name_place([cause.kind]), f"{cause.code} ({cause.title}) explains most of the gap."
    return "undecided", _ONLY_LABELS


def _judge(
    case: Case, decisions: Decisions, place: tuple[Word, str] | None, chosen: Sequence[Trial], worth: float
) -> Verdict:
    """Judge by what differs; where it costs something, by the place of the fault, with its reason."""
    cost = decisions.cost
    reported = _describe(decisions)
    word: Word = "healthy"
    if case.is_broken:
        word, reported = "averages", BROKEN
    elif place is not None:
        word, why = place
        return Verdict(word, f"{reported} {why}", cost, chosen)
    elif cost.high > (worth if cost.low > 0 else SURELY_HEALTHY * worth):
        word, reported = "undecided", f"{reported} {_TOO_FEW}"
    return Verdict(word, reported, cost)


def _describe(decisions: Decisions) -> str:
    """Say how predictions differ, and what that costs."""
    cost = decisions.cost
    counted = count_things(cost.images, "image")
    value, low, high = (f"{100 * each:z.1f}" for each in (cost.value, cost.low, cost.high))
    if math.isnan(decisions.differing):
        return (
            f"Without labels: exact statistics change the outputs of {counted} by {value}% [{low}, {high}] of their "
            "variance, beyond chance."
        )
    differing = f"{100 * decisions.differing:.1f}%"
    return (
        f"Without labels: exact statistics name {differing} of {counted} otherwise. If the network is right about how "
        f"sure it is, running averages cost {value} points [{low}, {high}] of accuracy, beyond chance."
    )
