"""Findings: what went wrong, as an experiment or its signs tell it, and what is worth knowing besides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnlab.doctor.cause import NEEDS, SEVERITIES, Cause, Severity
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.interventions.experiment import Trial, UndoExperiment
from bnlab.doctor.thresholds import COSTS_ARE_ERRORS, VISIBLE
from bnlab.doctor.verdict.attribution import name_gap


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing.

    Attributes:
        cause: its code, meaning and remedy.
        layers: names of the layers that show it, in order of depth; the model's own name is "".
        evidence: the numbers that show it, in one phrase.
        severity: "note", "warning" (costs something, or will when training goes on), or "error" (values that are not
            finite or negative, or more than five points lost).
        cost: what undoing it brings back, in the unit of the scores; NaN where that was not tried.
    """

    cause: Cause
    layers: tuple[str, ...]
    evidence: str
    severity: Severity
    cost: float = math.nan


@dataclass(frozen=True)
class Skipped:
    """A cause that could not be looked for.

    Attributes:
        cause: the cause.
        wanted: what it needs, in words.
    """

    cause: Cause
    wanted: str


def choose_known(causes: Iterable[Cause], case: Case) -> tuple[list[Cause], list[Skipped]]:
    """Choose the causes of which the case has what they need, and say what the others lack."""
    known = case.list_known()
    chosen = []
    skipped = []
    for cause in causes:
        missing = [need for need in cause.needs if need not in known]
        if missing:
            skipped.append(Skipped(cause, " and ".join(NEEDS[need] for need in missing)))
        else:
            chosen.append(cause)
    return chosen, sorted(skipped, key=lambda left: left.cause.code)


def find_explained(trials: Iterable[Trial], experiment: UndoExperiment, case: Case, worth: float) -> list[Finding]:
    """Make findings of the undos that were chosen, each with what it brings back."""
    findings: dict[str, Finding] = {}
    for trial in trials:
        cause = trial.cause
        gain = experiment.measure_score(trial).value if experiment.has_labels else math.nan
        layers = tuple(cause.name_layers(case, trial.undo.layers))
        described = cause.describe(case, layers)
        # The undo's words were written by the cause that proposed it, and may not describe another one.
        reported = [trial.undo.words] if trial.is_proposed else []
        if trial.undo.shared and described:
            reported.append(described)
        severity: Severity = "warning" if math.isnan(gain) else grade_cost(gain, worth)
        # Several undos of one cause are one finding.
        findings.setdefault(cause.code, Finding(cause, layers, ": ".join(reported), severity, gain))
    return list(findings.values())


def list_off(case: Case) -> list[str]:
    """List the layers whose averages are visibly off."""
    return [name for name in case.seen if case.measure_distance(name, case.exact) > VISIBLE]


def explain_off(
    causes: Sequence[Cause], case: Case, off: Sequence[str], severity: Severity | None = None
) -> list[Finding]:
    """Explain averages that are off although nothing that was tried is known to help.

    Args:
        causes: of which the one that explains most is named.
        case: with data.
        off: the layers whose averages are.
        severity: None: as the cause says.
    """
    best = name_gap(causes, case, off) if off else None
    if best is None:
        return []
    layers = tuple(best.name_layers(case, off))
    return [Finding(best, layers, best.describe(case, layers), severity or best.severity)]


def find_signs(causes: Iterable[Cause], case: Case, known: Iterable[str]) -> list[Finding]:
    """Make findings of the signs that causes see, without those of codes that are known already."""
    findings = []
    named = {*known}
    for cause in causes:
        signs = None if cause.code in named else cause.look(case)
        if signs is not None:
            severity = signs.severity or cause.severity
            findings.append(Finding(cause, signs.layers, signs.evidence, severity))
    return findings


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Put the most severe first; of equals what was tried before what was seen, then by code."""

    def order(finding: Finding) -> tuple[int, bool, str]:
        # False sorts before True: a finding with a cost was tried.
        return -SEVERITIES.index(finding.severity), math.isnan(finding.cost), finding.cause.code

    return sorted(findings, key=order)


def grade_cost(cost: float, worth: float) -> Severity:
    """Say how severe a measured cost is: an error above ten times `worth`, which is five points of half a point."""
    if cost > COSTS_ARE_ERRORS * worth:
        return "error"
    return "warning" if cost > worth else "note"
