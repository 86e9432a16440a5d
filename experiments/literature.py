"""python -m experiments.literature: write docs/literature.md, what papers found beside what is found here.

The text stands in `experiments/literature.md`: papers, and below each what it found, with lines `they`, `here`, a
judgement with its reason, and `would tell`, an experiment that is declared and has no results yet. `here` quotes claims
with the verdicts that the judgement rests on, as answers do; where a verdict is another one, no page is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.lab.catalogue import REFERENCE
from bnlab.lab.command import run_command

if TYPE_CHECKING:
    from bnlab.harness.reporting.outcome import Outcome

USAGE = """usage: python -m experiments.literature

Writes docs/literature.md from experiments/literature.md and the claims of results/reference."""
PAGE = Path(__file__).parents[1] / "docs" / "literature.md"
TEXT = Path(__file__).with_name("literature.md")
JUDGEMENTS = {  # with the words that count them
    "agrees": "agree",
    "agrees in part": "agree in part",
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
        lines: by its first words, in order: `they (read)`, `they (recalled)` or `expected`, what was found, or what we
            expected; `here`, a sentence that quotes claims, see `outcome.fill_paragraphs`; a judgement, the reason for
            it; `would tell`, the name of an experiment that is declared and not measured.
    """

    number: str
    title: str
    lines: Mapping[str, str]

    @property
    def judgement(self) -> str:
        """One of JUDGEMENTS."""
        (judgement,) = self.lines.keys() & {*JUDGEMENTS}
        return judgement

    def list_quotes(self) -> list[tuple[str, str, str]]:
        """List what is quoted: verdict, experiment and claim, each once."""
        return list(dict.fromkeys(_QUOTE.findall(self.lines.get("here", ""))))


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
    quotes = [quote for finding in list_findings() for quote in finding.list_quotes()]
    names = sorted({experiment for _, experiment, _ in quotes})
    outcomes = [find_outcome(find_experiment(name), load(name, REFERENCE)) for name in names]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page(outcomes), encoding="utf-8")
    print(PAGE)
    return 0


def list_findings() -> list[Finding]:
    """List the findings of all papers, and what we expected."""
    parts = TEXT.read_text(encoding="utf-8").split("\n## ")
    return [_read_finding(text) for part in parts for text in part.split("\n### ")[1:]]


def _read_finding(text: str) -> Finding:
    """Read a finding: `F1. Title`, and lines of a word, a colon and a sentence."""
    heading, *lines = text.strip().splitlines()
    number, _, title = heading.partition(". ")
    return Finding(number, title, dict(line.split(": ", 1) for line in lines))


def write_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page in Markdown; UserError where a quoted verdict is another one."""
    introduction, *papers = TEXT.read_text(encoding="utf-8").split("\n## ")
    findings = list_findings()
    counts = (
        f"Of {_count([each for each in findings if 'expected' not in each.lines], 'findings of papers and practice')}. "
        f"Of {_count([each for each in findings if 'expected' in each.lines], 'expectations of our own')}."
    )
    parts = [introduction.strip().replace("{counts}", counts), "\n".join(_write_overview(findings))]
    for paper in papers:
        about, *texts = paper.split("\n### ")
        title, _, source = about.partition("\n")
        parts += [f"## {title}", source.strip()]
        parts += ["\n".join(_write_finding(_read_finding(text), outcomes)) for text in texts]
    return "\n\n".join(parts) + "\n"


def _count(findings: Sequence[Finding], of: str) -> str:
    """Say how many findings there are, and how many of each judgement."""
    judged = [finding.judgement for finding in findings]
    counts = [f"{judged.count(judgement)} {words}" for judgement, words in JUDGEMENTS.items()]
    return f"{len(judged)} {of} {', '.join(counts)}"


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
            would_tell = finding.lines.get("would tell")
            told = f" (`{would_tell}` would tell)" if would_tell else ""
            yield f"- {finding.number}. {finding.title}{told}"


def _write_finding(finding: Finding, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Write a table of two columns, which a phone can show; UserError where a quoted verdict is another one."""
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.outcome import fill_paragraphs

    yield f"| {finding.number} | **{finding.title}** |"
    yield "|---|---|"
    for word, text in finding.lines.items():
        if word == "here":
            filled = fill_paragraphs(text, outcomes)
            if not filled:
                found = f"{finding.number}: a quoted claim has another verdict"
                raise UserError(f"{found}; judge again, in experiments/{TEXT.name}")
            yield f"| here | {filled[0]} |"
            yield f"| claims | {'; '.join(_write_claims(finding, outcomes))} |"
        elif word == "would tell":
            yield f"| would tell | `{text}`: declared, with claims, and not measured yet |"
        else:
            yield f"| **{word}** | {text} |" if word in JUDGEMENTS else f"| {word} | {text} |"


def _write_claims(finding: Finding, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Name the quoted claims of each experiment with their verdicts, its data and its seeds."""
    bases = {outcome.experiment.name: outcome.basis for outcome in outcomes}
    verdicts: dict[str, dict[str, list[str]]] = {}
    for verdict, name, claim in finding.list_quotes():
        claims = verdicts.setdefault(name, {})
        claims.setdefault(claim, []).append(f"*{verdict}*")

    for name, claims in verdicts.items():
        quoted = [f"`{claim}` {' and '.join(found)}" for claim, found in claims.items()]
        yield f"[{name}]({_LINK.format(name)}) ({bases[name]}): {', '.join(quoted)}"


if __name__ == "__main__":
    sys.exit(main())
