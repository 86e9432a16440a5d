"""python -m experiments.literature: write docs/literature.md, what papers found beside what is found here.

The text stands in `experiments/literature.md`: papers, and below each what it found, with lines `they`, `here`, a
judgement with its reason, and `would tell`, an experiment that is declared and has no results yet. `here` quotes claims
with the verdicts that the judgement rests on, as answers do; where a verdict is another one, no page is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.lab.command import run_command
from bnlab.lab.folders import REFERENCE

if TYPE_CHECKING:
    from bnlab.harness.reporting.outcome import Outcome

USAGE = """usage: python -m experiments.literature

Writes docs/literature.md from experiments/literature.md and the claims of results/reference."""
PAGE = Path(__file__).parents[1] / "docs" / "literature.md"
TEXT = Path(__file__).with_name("literature.md")
JUDGEMENTS = {  # with the words that count them
    "agrees": "agree",
    "contradicts": "contradict",
    "undecided": "undecided",
    "not comparable": "not comparable",
    "not tried": "not tried",
}
_QUOTE = re.compile(r'(holds|fails|undecided|counted)\("(\w+)\.(\w+)"')
_LINK = "../results/reference/{}/README.md"  # as seen from docs/


@dataclass(frozen=True)
class Finding:
    """What a paper found, and what is found here.

    Attributes:
        number: of the figure (F) or hypothesis (H), with a letter where there are several; P of others.
        title: in a few words.
        they: what the paper found.
        source: `read` (the paper, its abstract, or notes on it), `recalled` or `expected` (by us).
        here: a sentence that quotes claims, see `outcome.fill_paragraphs`; empty where nothing was tried.
        judgement: one of JUDGEMENTS.
        reason: for the judgement.
        would_tell: the name of an experiment that is declared and not measured; empty without one.
    """

    number: str
    title: str
    they: str
    source: str
    here: str
    judgement: str
    reason: str
    would_tell: str = ""

    def list_quotes(self) -> list[tuple[str, str, str]]:
        """List what is quoted: verdict, experiment and claim, each once."""
        return list(dict.fromkeys(_QUOTE.findall(self.here)))


@dataclass(frozen=True)
class Section:
    """A paper with its findings; `about` is its source in Markdown."""

    title: str
    about: str
    findings: list[Finding]


def main() -> int:
    """Write the page; exit 2 where a quoted verdict has changed."""
    return run_command(_write_page, sys.argv[1:], USAGE)


def _write_page(words: list[str]) -> int:
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.outcome import find_outcome
    from bnlab.harness.reporting.tables import load
    from bnlab.lab.catalogue import find_experiment

    if words:
        raise UserError(f"{words[0]}: there is nothing to set")

    _, sections = read_text()
    outcomes = []
    for name in list_quoted(sections):
        outcomes.append(find_outcome(find_experiment(name), load(name, REFERENCE)))

    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page(outcomes), encoding="utf-8")
    print(PAGE)
    return 0


def read_text() -> tuple[str, list[Section]]:
    """Read what stands before all papers, and the papers."""
    introduction, *parts = TEXT.read_text(encoding="utf-8").split("\n## ")
    return introduction.strip(), [_read_section(part) for part in parts]


def list_quoted(sections: Sequence[Section]) -> list[str]:
    """List the experiments of which claims are quoted."""
    names = set()
    for section in sections:
        for finding in section.findings:
            names |= {experiment for _, experiment, _ in finding.list_quotes()}
    return sorted(names)


def _read_section(part: str) -> Section:
    title, _, rest = part.partition("\n")
    about, *findings = rest.strip().split("\n### ")
    return Section(title, about.strip(), [_read_finding(finding) for finding in findings])


def _read_finding(text: str) -> Finding:
    """Read a finding: `F1. Title`, and lines of a word, a colon and a sentence."""
    heading, *lines = text.strip().splitlines()
    number, _, title = heading.partition(". ")
    said = dict(line.split(": ", 1) for line in lines)

    they = said.keys() & {"they (read)", "they (recalled)", "expected"}
    (word,) = they
    (judgement,) = said.keys() & {*JUDGEMENTS}
    return Finding(
        number,
        title,
        they=said[word],
        source=word.removeprefix("they (").removesuffix(")"),
        here=said.get("here", ""),
        judgement=judgement,
        reason=said[judgement],
        would_tell=said.get("would tell", ""),
    )


def write_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page in Markdown.

    Args:
        outcomes: of the experiments that are quoted.

    Raises:
        UserError: a quoted verdict is another one.
    """
    introduction, sections = read_text()
    findings = [finding for section in sections for finding in section.findings]
    parts = [introduction.replace("{counts}", _say_counts(findings)), "\n".join(_write_overview(findings))]
    for section in sections:
        parts += [f"## {section.title}", section.about]
        parts += ["\n".join(_write_finding(finding, outcomes)) for finding in section.findings]
    return "\n\n".join(parts) + "\n"


def _say_counts(findings: Sequence[Finding]) -> str:
    """Say how many findings there are and how many of each judgement, of papers and of expectations."""
    of_papers = [finding.judgement for finding in findings if finding.source != "expected"]
    expected = [finding.judgement for finding in findings if finding.source == "expected"]
    return (
        f"Of {len(of_papers)} findings of papers and practice {_count_judgements(of_papers)}. "
        f"Of {len(expected)} expectations of our own {_count_judgements(expected)}."
    )


def _count_judgements(judged: Sequence[str]) -> str:
    return ", ".join(f"{judged.count(judgement)} {words}" for judgement, words in JUDGEMENTS.items())


def _write_overview(findings: Sequence[Finding]) -> Iterator[str]:
    """Write a row for each judgement, with the numbers of its findings, and a line for each contradiction."""
    yield "| judgement | findings |"
    yield "|---|---|"
    for judgement in JUDGEMENTS:
        numbers = [finding.number for finding in findings if finding.judgement == judgement]
        yield f"| **{judgement}** | {', '.join(numbers)} |"

    yield ""
    yield "We find the opposite of these, so far:"
    yield ""
    for finding in findings:
        if finding.judgement == "contradicts":
            told = f" (`{finding.would_tell}` would tell)" if finding.would_tell else ""
            yield f"- {finding.number}. {finding.title}{told}"


def _write_finding(finding: Finding, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Write a table of two columns, which a phone can show."""
    yield f"| {finding.number} | **{finding.title}** |"
    yield "|---|---|"
    they = finding.source if finding.source == "expected" else f"they ({finding.source})"
    yield f"| {they} | {finding.they} |"
    if finding.here:
        yield f"| here | {_fill(finding, outcomes)} |"
        yield f"| claims | {'; '.join(_write_claims(finding, outcomes))} |"
    yield f"| **{finding.judgement}** | {finding.reason} |"
    if finding.would_tell:
        yield f"| would tell | `{finding.would_tell}`: declared, with claims, and not measured yet |"


def _fill(finding: Finding, outcomes: Sequence[Outcome]) -> str:
    """Fill in the numbers of what is found here."""
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.outcome import fill_paragraphs

    filled = fill_paragraphs(finding.here, outcomes)
    if not filled:
        raise UserError(
            f"{finding.number}: a quoted claim has another verdict; judge again, in experiments/{TEXT.name}"
        )
    return filled[0]


def _write_claims(finding: Finding, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Name the quoted claims of each experiment with their verdicts, its data and its seeds."""
    bases = {outcome.experiment.name: outcome.basis for outcome in outcomes}
    verdicts: dict[str, dict[str, list[str]]] = {}
    for verdict, name, claim in finding.list_quotes():
        claims = verdicts.setdefault(name, {})
        claims.setdefault(claim, []).append(f"*{verdict}*")

    for name, claims in verdicts.items():
        said = [f"`{claim}` {' and '.join(found)}" for claim, found in claims.items()]
        yield f"[{name}]({_LINK.format(name)}) ({bases[name]}): {', '.join(said)}"


if __name__ == "__main__":
    sys.exit(main())
