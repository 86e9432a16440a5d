"""Claims are whole, and so is what rests on them: headlines, hypotheses, judgements of the literature."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bnlab.harness.lab.registry import REFERENCE, find_question, list_papers
from bnlab.harness.reporting.outcome import find_conditions
from bnlab.harness.reporting.verdicts import NOT_MEASURED
from experiments.literature import JUDGEMENTS, TEXT, find_judgement, list_findings, list_quotes
from experiments.pages import FIGURES, read_catalogue
from tests.checks.outcomes import decide_all


def find_questions_that_are_not_whole() -> Iterator[str]:
    """Find questions without a source, and those that bear on numbers that there are not."""
    catalogue = read_catalogue()
    numbers = {*catalogue.questions, *catalogue.hypotheses, *FIGURES}
    for name, outcome in decide_all().items():
        question = outcome.question
        if not (question.asks.endswith("?") and question.source):
            yield f"{name} needs a question and a source"
        for number in {*question.bears_on} - numbers:
            yield f"{name} bears on {number}, which there is not"
        for key, claim in question.claims.items():
            if not (claim.text.endswith(".") and claim.margin.unit and claim.margin.reason):
                yield f"{name}.{key} needs a sentence, and a margin with its unit and reason"


def find_claims_without_numbers() -> Iterator[str]:
    """Find claims that no row decides, and headlines of figures on conditions that there are not."""
    for name, outcome in decide_all().items():
        frame = outcome.frame
        undecided = {*outcome.question.claims} - {*frame.loc[frame["verdict"].ne(NOT_MEASURED), "claim"]}
        for key in sorted(undecided):
            yield f"{name}.{key} has not been measured"

        headlines = [figure.headline for figure in outcome.question.figures.values() if figure.headline]
        for headline in headlines:
            for key, conditions in (*headline.claims.items(), *headline.fails.items()):
                missing = [words for words in conditions if find_conditions(frame, key, [words]).empty]
                if key not in outcome.question.claims or missing:
                    yield f"a headline of {name} quotes {key}, {missing}, which there is not"


def find_conclusions_on_other_claims() -> Iterator[str]:
    """Find conclusions on hypotheses that quote no claim, or one that does not bear on them."""
    for number, (_, conclusion) in read_catalogue().hypotheses.items():
        quoted = re.findall(r'(?:holds|fails|undecided)\("(\w+)\.(\w+)"', conclusion)
        if not quoted:
            yield f"{number} quotes no claim"
        for name, key in quoted:
            question = find_question(name)
            if key not in question.claims or number not in question.bears_on:
                yield f"{number} quotes {name}.{key}, which does not bear on it"


def find_judgements_that_nothing_carries() -> Iterator[str]:
    """Find findings of the literature that are judged twice, not at all, or otherwise than the quoted claims say."""
    findings = list_findings()
    judged = [re.sub("[a-z]$", "", number) for number in findings if number[0] in "FH"]
    for number in sorted({*judged} ^ {*FIGURES, *read_catalogue().hypotheses}):
        yield f"{number} is not judged, or is neither a figure nor a hypothesis"
    # A number that stood twice would be one finding.
    if len(findings) != TEXT.read_text(encoding="utf-8").count("\n### "):
        yield "a finding is judged twice, or is no list"

    for number, finding in findings.items():
        judgement = find_judgement(finding)
        if judgement not in JUDGEMENTS or not is_carried(finding, judgement):
            yield f"{number} is judged {judgement!r}, and its claims do not say so"
        for _, name, _ in list_quotes(finding):
            if name not in list_papers() and not (REFERENCE / name).is_dir():
                yield f"{number} quotes {name}, which has no results"


def is_carried(finding: str, judgement: str) -> bool:
    """Decide if the verdicts that a finding quotes are those of its judgement."""
    verdicts = {verdict for verdict, _, _ in list_quotes(finding)}
    match judgement:
        case "Agrees":
            return verdicts == {"holds"}
        case "Agrees in part":
            return "holds" in verdicts and bool(verdicts & {"undecided", "fails"})
        case "Contradicts":
            return bool(verdicts)
        case "Undecided":
            return "undecided" in verdicts or {"holds", "fails"} <= verdicts
        case _:
            return judgement != "Not tried" or "- Here: " not in finding
