"""The conclusion: the verdict, and the findings that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.examination import CALLER
from bnlab.doctor.experiment import Experiment
from bnlab.doctor.findings import (
    Finding,
    find_explained,
    find_harmless,
    find_signs,
    fits_after,
    grade_cost,
    sort_findings,
)
from bnlab.doctor.scores import Scores
from bnlab.doctor.verdict import WORTH, Verdict, find_worth, is_near_chance, judge


def conclude(
    case: Case, experiment: Experiment | None, causes: Sequence[Cause], worth: float | None
) -> tuple[Verdict | None, list[Finding]]:
    """Judge by what was tried, and name the causes; without scores there is no verdict."""
    scores = None if case.evidence is None else case.evidence.scores
    if scores is None:
        explained = _explain_without_scores(case, experiment, causes)
        return None, sort_findings([*explained, *_find_others(case, causes, explained)])

    if case.expected is not None and case.expected > 1 and scores.are_shares:
        raise ValueError(f"{CALLER}: expected={case.expected!r}, but scores are shares here; pass one between 0 and 1")
    least = find_worth(scores, worth)
    judged = judge(case, scores, experiment, least)
    is_poor = is_near_chance(scores) and not case.is_as_constructed
    explained = _explain(case, judged, experiment, causes, least, is_poor)
    others = _find_others(case, causes, explained)
    if judged.word == "mode":
        others = [_add_cost_of_mode(finding, scores, least) for finding in others]
    findings = sort_findings([*explained, *others])
    return _let_signs_speak(judged, findings, is_poor), findings


def _explain(
    case: Case,
    judged: Verdict,
    experiment: Experiment | None,
    causes: Sequence[Cause],
    worth: float,
    is_poor: bool,
) -> list[Finding]:
    """Make findings of what was chosen; where nothing matters, of what shows all the same.

    These are notes, unless the network is so poor that no statistics could show what they cost.
    """
    if experiment is not None:
        explained = find_explained(judged.chosen, experiment, case, worth)
        if explained:
            return explained
        shown = find_explained(experiment.choose_shown(), experiment, case, worth)
        if shown and not is_poor:  # at chance a higher likelihood only means less certain errors
            return [replace(finding, severity="note") for finding in shown]
    return find_harmless(causes, case, is_known=not is_poor)


def _explain_without_scores(case: Case, experiment: Experiment | None, causes: Sequence[Cause]) -> list[Finding]:
    """Make findings of what surely takes the gap away, or else of averages that are off."""
    if case.evidence is None:
        return []
    if experiment is not None and fits_after(experiment):
        chosen, _ = experiment.choose()
        return find_explained(chosen, experiment, case, WORTH)
    return find_harmless(causes, case, is_known=False)


def _find_others(case: Case, causes: Sequence[Cause], explained: Sequence[Finding]) -> list[Finding]:
    return find_signs(causes, case, [finding.cause.code for finding in explained])


def _add_cost_of_mode(finding: Finding, scores: Scores, worth: float) -> Finding:
    """Add to a finding on the mode what train mode costs, in which each batch is normalized by itself."""
    if finding.cause.kind != "mode":
        return finding
    cost = scores.mean("running") - scores.mean("batch")
    return replace(finding, cost=cost, severity=grade_cost(cost, worth))


def _let_signs_speak(judged: Verdict, findings: Sequence[Finding], is_poor: bool) -> Verdict:
    """Call no network healthy whose forward shows a fault that no undo has to do with, or that is at chance with one.

    At chance under any statistics nothing shows what a fault costs.
    """
    severe = [finding for finding in findings if finding.severity != "note"]
    of_network = [finding for finding in severe if finding.cause.kind == "network"]
    if judged.word not in ("healthy", "undecided") or not severe:
        return judged
    if of_network:
        cause = of_network[0].cause
        return replace(judged, word="network", sentence=f"See {cause.code}, {cause.title}. {judged.sentence}")
    if is_poor:
        cause = severe[0].cause
        sentence = f"Near chance under any statistics, so that nothing shows what {cause.code} ({cause.title}) costs."
        return replace(judged, word="undecided", sentence=f"{sentence} Mend that first, and ask again.")
    return judged
