"""Findings: what rules have found, with the severity that its measured cost gives it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter

from bnlab.doctor.case import Case
from bnlab.doctor.rule import NEEDS, SEVERITIES, Rule, Severity, Signs
from bnlab.doctor.scores import Difference
from bnlab.doctor.verdict import ELSEWHERE, Verdict, tell_score

_ERROR = 10  # times the smallest difference that matters: what costs more is an error


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing.

    Attributes:
        rule: that has found it: its code, meaning and remedy.
        signs: the layers, and the numbers that show it.
        severity: "note", "warning" (costs something, or will when training goes on), or "error" (values that are not
            finite or negative, more than five points lost, or a model of which no statistics are exact).
        cost: what the layers' running statistics cost, in the unit of the scores; NaN where it was not measured.
    """

    rule: Rule
    signs: Signs
    severity: Severity
    cost: float = math.nan

    @property
    def remedy(self) -> str:
        """Say what to do: what the signs say to check, or what the rule always says."""
        return " ".join(self.signs.checks) or self.rule.remedy

    @property
    def is_mended_by_eval(self) -> bool:
        """Return whether layers cost something because they do not use the averages that they have."""
        return self.rule.mends == "running" and self.severity != "note" and self.cost > 0

    def is_costly(self, worth: float) -> bool:
        """Return whether a measured cost makes it more than a note."""
        return self.rule.follows_cost and self.cost > worth


@dataclass(frozen=True)
class Skipped:
    """A rule that could not look.

    Attributes:
        rule: the rule.
        wanted: what it needs, in words.
    """

    rule: Rule
    wanted: str


def look_for_faults(
    case: Case, rules: Iterable[Rule], verdict: Verdict | None, worth: float
) -> tuple[list[Finding], list[Skipped]]:
    """Let all rules look at a case.

    Returns:
        The findings, the most severe first; and the rules that could not look.
    """
    findings: list[Finding] = []
    skipped = []
    known = case.list_known()
    for rule in _order(rules):
        missing = [need for need in rule.needs if need not in known]
        if missing:
            skipped.append(Skipped(rule, " and ".join(NEEDS[need] for need in missing)))
            continue
        finding = _look(rule, case, findings, verdict, worth)
        if finding is not None:
            findings.append(finding)

    skipped.sort(key=lambda left: left.rule.code)
    return _sort(findings), skipped


def _look(rule: Rule, case: Case, findings: Iterable[Finding], verdict: Verdict | None, worth: float) -> Finding | None:
    """Let a rule look at the layers that no finding explains better.

    A note does not explain what costs something, unless its own cost is of another kind.
    """
    better = [finding for finding in findings if finding.rule.code in rule.unless]
    binding = [finding for finding in better if finding.severity != "note" or finding.rule.mends != rule.mends]
    found = _look_beside(binding, rule, case, verdict, worth)
    if found is None or found.is_costly(worth):
        return found
    return _look_beside(better, rule, case, verdict, worth)


def _look_beside(
    better: Iterable[Finding], rule: Rule, case: Case, verdict: Verdict | None, worth: float
) -> Finding | None:
    """Let a rule look at the layers that these findings do not name."""
    signs = rule.look(_leave_out(case, better))
    return None if signs is None else _grade(rule, signs, case, verdict, worth)


def _sort(findings: Iterable[Finding]) -> list[Finding]:
    """Put the most severe first, and of equals those that explain layers better; the rest is in order of codes."""
    by_code = sorted(findings, key=lambda finding: finding.rule.code)
    found = []
    for severity in reversed(SEVERITIES):
        equals = [finding for finding in by_code if finding.severity == severity]
        found += sorted(equals, key=lambda finding: _count_better(finding, equals))
    return found


def _count_better(finding: Finding, findings: Iterable[Finding]) -> int:
    """Count how many findings explain layers better than one, as far as the chain of them goes."""
    better = [other for other in findings if other.rule.code in finding.rule.unless]
    return max((1 + _count_better(other, findings) for other in better), default=0)


def _order(rules: Iterable[Rule]) -> list[Rule]:
    """Put rules behind those that they give way to."""
    chosen = list(rules)
    codes = TopologicalSorter({rule.code: rule.unless for rule in chosen}).static_order()
    places = {code: place for place, code in enumerate(codes)}
    return sorted(chosen, key=lambda rule: places[rule.code])


def _leave_out(case: Case, findings: Iterable[Finding]) -> Case:
    """Leave out of a case the layers that findings name."""
    explained: set[str] = set()
    for finding in findings:
        explained.update(finding.signs.layers)
    if not explained:
        return case
    layers = {name: layer for name, layer in case.layers.items() if name not in explained}
    return replace(case, layers=layers)


def _grade(rule: Rule, signs: Signs, case: Case, verdict: Verdict | None, worth: float) -> Finding:
    """Give a finding its cost and severity."""
    cost = _find_cost(rule, signs, case, verdict)
    severity = rule.severity
    if rule.follows_cost and not math.isnan(cost):
        severity = grade_cost(cost, worth)
    return Finding(rule, signs, max(severity, signs.at_least, key=SEVERITIES.index), cost)


def grade_cost(cost: float, worth: float) -> Severity:
    """Say how severe a measured cost is: an error above ten times `worth`, which is five points of half a point."""
    if cost > _ERROR * worth:
        return "error"
    return "warning" if cost > worth else "note"


def _find_cost(rule: Rule, signs: Signs, case: Case, verdict: Verdict | None) -> float:
    """Find what the running statistics of the layers cost: alone, or all together where these are most layers.

    Costs that the images cannot tell from none count as none; where all layers together cost nothing, none of them
    does. NaN without finite scores, and of some layers where the costs of single layers were not measured, as those of
    the batch's own statistics are not.
    """
    if verdict is None or case.evidence is None or case.evidence.scores is None:
        return math.nan
    scores = case.evidence.scores
    named = [name for name in signs.layers if name in case.layers]
    if rule.mends == "running":
        is_known = "batch" in scores.values and 2 * len(named) >= len(case.seen)
        return _count_gain(scores.compare("running", "batch")) if is_known else math.nan
    if rule.mends == "batch" and "batch" in scores.values:
        return _count_gain(scores.compare("batch", "running"))

    if not math.isfinite(verdict.gain.value):
        return math.nan
    total = _count_gain(verdict.gain)
    if not named or total == 0:
        return total
    costs = case.evidence.costs
    if not costs:
        return total if set(case.seen) <= set(named) else math.nan
    if 2 * len(named) >= len(case.seen):
        return total
    alone = max(costs.get(name, 0.0) for name in named)
    return max(0.0, min(alone, total))


def _count_gain(gain: Difference) -> float:
    return max(gain.value, 0.0) if gain.low > 0 else 0.0


def reconsider(verdict: Verdict, findings: Sequence[Finding], case: Case) -> Verdict:
    """Let a verdict name what the findings say of it.

    A model with a mistake that new statistics would hide, such as wrong input, is not healthy; nor is one that predicts
    worse in the mode that it is in. Where the averages are not at fault, the sentence says what to look at.
    """
    severe = [finding.rule for finding in findings if finding.severity != "note"]
    if verdict.word in ("healthy", "undecided") and any(finding.is_mended_by_eval for finding in findings):
        return _tell_mode_first(verdict, case)
    hidden = [rule for rule in severe if rule.hides]
    if hidden:
        word = "not the averages" if verdict.word == "healthy" else verdict.word
        sentence = (
            f"{verdict.sentence} But first see {hidden[0].code}, {hidden[0].title}: new statistics would hide it."
        )
        return replace(verdict, word=word, sentence=sentence)
    if verdict.word == "not the averages":
        where = _say_where_to_look(verdict, findings, case)
        return replace(verdict, sentence=f"{verdict.sentence} {where}".rstrip())

    others = [rule for rule in severe if rule.explains_bad]
    are_doubtful = any(rule.severity == "error" for rule in others)
    if others and (verdict.word == "healthy" or are_doubtful):
        first = others[0]
        return replace(verdict, sentence=f"{verdict.sentence} But see {first.code}, {first.title}.")
    return verdict


def _tell_mode_first(verdict: Verdict, case: Case) -> Verdict:
    """Let a verdict say what the model scores in the mode that it is in, before it says anything of the averages."""
    scores = case.data.scores
    assert scores is not None
    training = case.select(lambda name: case.layers[name].training)
    where = "All are" if len(training) == len(case.layers) else f"{len(training)} are"
    metric = scores.metric.lower()
    now = tell_score(scores.mean("batch"), scores)
    in_eval = tell_score(scores.mean("running"), scores)
    sentence = (
        f"{where} in train mode, where {metric} is {now}; in eval mode it is {in_eval}. Call model.eval(). "
        f"{verdict.sentence}"
    )
    return replace(verdict, word="not the averages" if verdict.word == "healthy" else verdict.word, sentence=sentence)


def _say_where_to_look(verdict: Verdict, findings: Iterable[Finding], case: Case) -> str:
    """Say what may be wrong with a model that exact statistics do not mend; "" where the verdict says all."""
    if case.is_as_constructed:
        return "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
    causes = [f"{finding.rule.code} ({finding.rule.title})" for finding in findings if finding.rule.explains_bad]
    if causes:
        return f"Look at {', '.join(causes)}."
    return f"Look elsewhere: {ELSEWHERE}." if verdict.is_bad else ""
