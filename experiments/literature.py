"""python -m experiments.literature: write docs/literature.md, what papers found beside what is found here.

The text is `experiments/literature.md`: a heading for each paper, and below it one for each finding, `### F1a. Title`.
A finding is a list: `They (read)`, `They (recalled)` or `Expected`, what was found, or what we expected; `Here`, which
quotes claims of results/reference, or those that a paper's page adds, with the verdicts that the judgement rests on, as
answers do; and in bold a judgement with its reason. Where a quoted verdict is another one, no page is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.registry import REFERENCE, find_paper, find_question, list_papers
from bnlab.harness.reporting.outcome import Outcome, decide_outcome
from bnlab.harness.reporting.question import POST_HOC
from bnlab.harness.reporting.quotes import fill_paragraphs
from bnlab.harness.reporting.tables import load

PAGE = Path(__file__).parents[1] / "docs" / "literature.md"
TEXT = Path(__file__).with_name("literature.md")
JUDGEMENTS = {
    "Agrees": "all claims that are quoted hold, in the paper's direction",
    "Agrees in part": "some hold, and others are undecided or fail",
    "Contradicts": "a claim says the opposite",
    "Undecided": "we tried it, and what it turns on is open, or two of our settings say the opposite",
    "Not comparable": "we measured something else",
    "Not tried": "we measured nothing",
}
# Answers quote by the same calls. `estimated` and `drawn` are left out, as they have no verdict that could change.
_QUOTE = re.compile(r'(holds|fails|undecided)\("(\w+)\.(\w+)"')


def main() -> int:
    """Write the page; exit 2 where a quoted verdict has changed."""
    return run_command(_write, sys.argv[1:], usage=str(__doc__))


def _write(words: list[str]) -> int:
    if words:
        raise UserError(f"{words[0]}: there is nothing to set")
    PAGE.write_text(write_page([decide(name) for name in list_quoted()]), encoding="utf-8")
    print(PAGE)
    return 0


def list_quoted() -> list[str]:
    """List the questions and papers that the text quotes."""
    return sorted({name for _, name, _ in list_quotes(TEXT.read_text(encoding="utf-8"))})


def list_quotes(text: str) -> list[tuple[str, str, str]]:
    """List what a text quotes, each once: verdict, question and claim."""
    # A dict keeps the order of the text, which a set would lose.
    return list(dict.fromkeys(_QUOTE.findall(text)))


def decide(name: str) -> Outcome:
    """Decide the claims of a question, or those that the page of a paper adds."""
    question = find_question(name) if name not in list_papers() else find_paper(name)
    own = {key: claim for key, claim in question.claims.items() if not claim.is_cited}
    asked = replace(question, claims=own, figures={})
    return decide_outcome(asked, {reads: load(reads, REFERENCE) for reads in asked.list_reads()})


def list_findings() -> dict[str, str]:
    """List the findings of all papers and what we expected, by their numbers, each with all that stands below it."""
    text = TEXT.read_text(encoding="utf-8")
    return dict(re.findall(r"^### (\w+)(\. .*\n\n(?:- .*\n)+)", text, re.MULTILINE))


def find_judgement(finding: str) -> str:
    """Find the one of JUDGEMENTS on a finding."""
    (judgement,) = re.findall(r"^- \*\*(.*)\*\*: ", finding, re.MULTILINE)  # which fails unless there is exactly one
    return str(judgement)


def write_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page in Markdown; UserError where a quoted verdict is another one."""
    lines = []
    for place, line in enumerate(TEXT.read_text(encoding="utf-8").splitlines(), start=1):
        filled = fill_paragraphs(line, outcomes)
        # A sentence that was written for another verdict is left out.
        if line and not filled:
            raise UserError(f"{TEXT}:{place}: a quoted claim has another verdict; judge again: {line}")
        lines.append("".join(filled))
        quotes = list_quotes(line)
        if quotes:
            lines.append(f"- Claims: {_list_claims(quotes, outcomes)}")
    page = "\n".join(lines) + "\n"
    return page.replace("{judgements}", _count_judgements())


def _count_judgements() -> str:
    """Count the findings of each judgement, list them, and name those that are contradicted."""
    findings = list_findings()
    rows = ["| judgement | findings of papers and practice | expectations of our own |", "|---|---|---|"]
    for judgement, meaning in JUDGEMENTS.items():
        numbers: dict[bool, list[str]] = {False: [], True: []}
        for number, finding in findings.items():
            if find_judgement(finding) == judgement:
                numbers["- Expected: " in finding].append(number)
        cells = [f"{len(listed)}: {', '.join(listed)}" for listed in numbers.values()]
        rows.append(f"| **{judgement}**: {meaning} | {' | '.join(cells)} |")

    rows += ["", "We find the opposite of these, so far:", ""]
    for number, finding in findings.items():
        if find_judgement(finding) == "Contradicts":
            title, _, _ = finding.partition("\n")
            rows.append(f"- {number}{title}")
    return "\n".join(rows)


def _list_claims(quotes: Sequence[tuple[str, str, str]], outcomes: Sequence[Outcome]) -> str:
    """List the quoted claims of each question with their verdicts, its data and its seeds."""
    known = {outcome.question.name: outcome for outcome in outcomes}
    listed = []
    for name in dict.fromkeys(name for _, name, _ in quotes):
        folder = f"papers/{name}" if name in list_papers() else name
        words = []
        for key in dict.fromkeys(claim for _, question, claim in quotes if question == name):
            # A claim may be quoted with several verdicts, each for other conditions.
            verdicts = [f"*{verdict}*" for verdict, question, claim in quotes if (question, claim) == (name, key)]
            mark = POST_HOC if known[name].question.claims[key].post_hoc else ""
            words.append(f"`{key}`{mark} {' and '.join(verdicts)}")
        link = f"[{name}](../results/reference/{folder}/README.md)"
        listed.append(f"{link} ({known[name].basis}): {', '.join(words)}")
    return "; ".join(listed)


if __name__ == "__main__":
    sys.exit(main())
