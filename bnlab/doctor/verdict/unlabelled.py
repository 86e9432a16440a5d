"""The verdict without labels: by how predictions differ under running averages and exact statistics.

Without labels nobody knows which of two predictions is right. Where they hardly differ, averages are healthy. Where
they do, an undo of few numbers that takes the gap away says where the fault is; else it is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnlab.doctor.cause import Cause, Severity
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.sample import MOST_IMAGES
from bnlab.doctor.evidence.scores import Decisions
from bnlab.doctor.interventions.experiment import Trial, UndoExperiment
from bnlab.doctor.thresholds import SURELY_HEALTHY, WORTH
from bnlab.doctor.verdict.attribution import name_causes, name_place
from bnlab.doctor.verdict.findings import Finding, explain_off, find_explained, find_signs, list_off, sort_findings
from bnlab.doctor.verdict.labelled import let_signs_speak
from bnlab.doctor.verdict.verdict import BROKEN, Edge, Verdict, Word
from bnlab.doctor.words import count_things

_ONLY_LABELS = (
    "Only labels can show which of the two are right; the running averages are, if the network was trained in eval()."
)
_TOO_NEAR = "That is too close to call: pass labels"


def conclude_unlabelled(
    case: Case, experiment: UndoExperiment | None, causes: Sequence[Cause], worth: float | None
) -> tuple[Verdict | None, list[Finding]]:
    """Judge by predictions, and name the causes; without data or classes there is no verdict."""
    chosen = [] if experiment is None else experiment.choose_shown()
    decisions = case.decisions
    least = max(WORTH, worth or 0.0)  # of less, chance was not measured
    severity: Severity | None = None
    if decisions is not None:
        is_costly = decisions.cost.low > 0 and decisions.cost.value > least
        severity = "warning" if is_costly else "note"

    explained: list[Finding] = []
    if experiment is not None and chosen:
        # No gain is measured without labels, so that findings are as severe as what predictions cost.
        explained = find_explained(chosen, experiment, case, WORTH)
        explained = [replace(finding, severity=severity or finding.severity) for finding in explained]
    elif case.has_data:
        off = list_off(case)
        if severity == "warning":  # predictions suffer, so that gaps too small to be visible must add up
            off = off or case.seen
        explained = explain_off(causes, case, off, severity)
    others = find_signs(causes, case, [finding.cause.code for finding in explained])

    findings = sort_findings([*explained, *others])
    if decisions is None:
        return None, findings
    place = _locate(case, experiment, chosen) if severity == "warning" else None
    judged = _conclude_by_cost(case, decisions, place, chosen, least)
    return let_signs_speak(judged, findings, is_poor=False), findings


def _locate(case: Case, experiment: UndoExperiment | None, chosen: Sequence[Trial]) -> tuple[Word, str]:
    """Say where the fault is, and why: by undos that take the gap away, if there are any."""
    if experiment is None or not chosen:
        return "undecided", _ONLY_LABELS
    # Not `name_choice`: without labels exact statistics leave no gap by construction, and would rival any other kind.
    word = name_place(case, experiment, chosen)
    return word, f"Undoing {name_causes(chosen)} takes most of the gap away."


def _conclude_by_cost(
    case: Case, decisions: Decisions, place: tuple[Word, str] | None, chosen: Sequence[Trial], worth: float
) -> Verdict:
    """Judge by what differs; where it costs something, by the place of the fault, with its reason."""
    cost = decisions.cost
    if case.is_broken:
        return Verdict("averages", BROKEN, cost)

    reported = _describe(decisions)
    word: Word
    if place is not None:
        word, why = place
        edges = [
            _draw_edge("running averages cost", cost.value, worth, "undecided", scale=worth),
            _draw_edge("running averages cost at least", cost.low, 0.0, "undecided", scale=cost.value),
        ]
        others = [edge for edge in edges if edge.beyond != word]
        return Verdict(word, f"{reported} {why}", cost, chosen, others).add_nearest()

    # A cost that is surely above 0 gets no benefit of the doubt.
    most = worth if cost.low > 0 else SURELY_HEALTHY * worth
    word = "undecided" if cost.high > most else "healthy"
    beyond: Word = "healthy" if word == "undecided" else "undecided"
    edge = _draw_edge("the cost may be up to", cost.high, most, beyond, scale=most)
    sentence = reported
    if word == "undecided":
        more = "" if cost.images >= MOST_IMAGES else f", or more images (up to {MOST_IMAGES:,})"
        sentence = f"{reported} {_TOO_NEAR}{more}."
    return Verdict(word, sentence, cost, edges=[edge]).add_nearest()


def _draw_edge(what: str, value: float, line: float, beyond: Word, scale: float) -> Edge:
    """Draw a line between costs in accuracy."""
    return Edge(what, value, line, beyond, scale, is_share=True, unit=" points")


def _describe(decisions: Decisions) -> str:
    """Say how predictions differ, and what that costs."""
    cost = decisions.cost
    counted = count_things(cost.images, "image")
    points = f"{_write_percent(cost.value)} points [{_write_percent(cost.low)}, {_write_percent(cost.high)}]"
    of_positions = "the positions in " if decisions.has_positions else ""
    return (
        f"Without labels: exact statistics change the predicted class of {_write_percent(decisions.differing)}% of "
        f"{of_positions}{counted}. If the predicted probabilities are right, running averages cost {points} of "
        "accuracy."
    )


def _write_percent(share: float) -> str:
    return f"{100 * share:z.1f}"
