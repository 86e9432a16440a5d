"""Claims are whole, and so is what rests on them: headlines, hypotheses, judgements of the literature."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bnlab.harness.lab.registry import REFERENCE, find_experiment, list_papers, list_questions
from bnlab.harness.reporting.experiment import find_conditions
from bnlab.harness.reporting.verdicts import NOT_MEASURED
from experiments.literature import LiteratureFinding, list_findings
from experiments.pages import FIGURES, read_catalogue
from tests.checks.outcomes import decide_all


def find_questions_that_are_not_whole() -> Iterator[str]:
    """Find questions without a source, and those that bear on numbers that there are not."""
    catalogue = read_catalogue()
    numbers = {*catalogue.questions, *catalogue.hypotheses, *FIGURES}
    for name, outcome in decide_all().items():
        experiment = outcome.experiment
        if not (experiment.question.endswith("?") and experiment.source):
            yield f"{name} needs a question and a source"
        for number in {*experiment.bears_on} - numbers:
            yield f"{name} bears on {number}, which there is not"
        for key, claim in experiment.claims.items():
            if not (claim.text.endswith(".") and claim.margin.unit and claim.margin.reason):
                yield f"{name}.{key} needs a sentence, and a margin with its unit and reason"


def find_claims_without_numbers() -> Iterator[str]:
    """Find claims that no row decides, and headlines of figures on conditions that there are not."""
    for name, outcome in decide_all().items():
        frame = outcome.frame
        undecided = {*outcome.experiment.claims} - {*frame.loc[frame["verdict"].ne(NOT_MEASURED), "claim"]}
        for key in sorted(undecided):
            yield f"{name}.{key} has not been measured"

        headlines = [figure.headline for figure in outcome.experiment.figures.values() if figure.headline]
        for headline in headlines:
            for key, conditions in (*headline.claims.items(), *headline.fails.items()):
                missing = [words for words in conditions if find_conditions(frame, key, [words]).empty]
                if key not in outcome.experiment.claims or missing:
                    yield f"a headline of {name} quotes {key}, {missing}, which there is not"


def find_conclusions_on_other_claims() -> Iterator[str]:
    """Find conclusions on hypotheses that quote no claim, or one that does not bear on them."""
    for number, (_, conclusion) in read_catalogue().hypotheses.items():
        quoted = re.findall(r'(?:holds|fails|undecided)\("(\w+)\.(\w+)"', conclusion)
        if not quoted:
            yield f"{number} quotes no claim"
        for name, key in quoted:
            experiment = find_experiment(name)
            if key not in experiment.claims or number not in experiment.bears_on:
                yield f"{number} quotes {name}.{key}, which does not bear on it"


def find_judgements_that_nothing_carries() -> Iterator[str]:
    """Find findings of the literature that are judged twice, not at all, or otherwise than the quoted claims say."""
    findings = list_findings()
    judged = [re.sub("[a-z]$", "", finding.number) for finding in findings if finding.number[0] in "FH"]
    for number in sorted({*judged} ^ {*FIGURES, *read_catalogue().hypotheses}):
        yield f"{number} is not judged, or is neither a figure nor a hypothesis"
    if len({finding.number for finding in findings}) < len(findings):
        yield "a finding is judged twice"

    for finding in findings:
        if not is_carried(finding):
            yield f"{finding.number} is judged {finding.judgement!r}, and its claims do not say so"
        told = finding.lines.get("would tell")
        if told and (told not in list_questions() or (REFERENCE / told).exists()):
            yield f"{finding.number}: {told} has results, or is no question; judge again"
        for _, name, _ in finding.list_quotes():
            if name not in list_papers() and not (REFERENCE / name).is_dir():
                yield f"{finding.number} quotes {name}, which has no results"


def is_carried(finding: LiteratureFinding) -> bool:
    """Decide if the verdicts that a finding quotes are those of its judgement."""
    verdicts = {verdict for verdict, _, _ in finding.list_quotes()}
    match finding.judgement:
        case "agrees":
            return verdicts == {"holds"}
        case "agrees in part":
            return "holds" in verdicts and bool(verdicts & {"undecided", "fails"})
        case "contradicts":
            return bool(verdicts)
        case "undecided":
            return "undecided" in verdicts or {"holds", "fails"} <= verdicts
        case _:
            return finding.judgement != "not tried" or "here" not in finding.lines
