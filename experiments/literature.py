"""python -m experiments.literature: write docs/literature.md, what papers found beside what is found here.

The text stands in `experiments/literature.md`: papers, and below each what it found, with lines `they`, `here`, a
judgement with its reason, and `would tell`, an experiment that is declared and has no results yet. `here` quotes claims
of results/reference, or those that a paper's page adds, with the verdicts that the judgement rests on, as answers do;
where a verdict is another one, no page is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.papers import read_paper
from bnlab.harness.lab.registry import REFERENCE, find_experiment, list_papers
from bnlab.harness.lab.reproduction import decide_new_claims
from bnlab.harness.reporting.experiment import POST_HOC
from bnlab.harness.reporting.outcome import Outcome, decide_outcome, fill_paragraphs
from bnlab.harness.reporting.page import render
from bnlab.harness.reporting.tables import load

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
# Answers quote by the same calls. `estimated` and `drawn` are left out, as they have no verdict that could change.
_QUOTE = re.compile(r'(holds|fails|undecided)\("(\w+)\.(\w+)"')
_LINK = "../results/reference/{}/README.md"  # as seen from docs/


@dataclass(frozen=True)
class LiteratureFinding:
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
        # Unpacking fails unless there is exactly one.
        (judgement,) = self.lines.keys() & {*JUDGEMENTS}
        return judgement

    def list_quotes(self) -> list[tuple[str, str, str]]:
        """List what is quoted: verdict, experiment and claim, each once."""
        # A dict keeps the order of the text, which a set would lose.
        return list(dict.fromkeys(_QUOTE.findall(self.lines.get("here", ""))))


@dataclass(frozen=True)
class LiteratureEntry:
    """A paper with its findings: title, source in Markdown."""

    title: str
    source: str
    findings: list[LiteratureFinding]


def main() -> int:
    """Write the page; exit 2 where a quoted verdict has changed."""
    return run_command(_write, sys.argv[1:], usage=str(__doc__))


def _write(words: list[str]) -> int:
    if words:
        raise UserError(f"{words[0]}: there is nothing to set")
    quotes = [quote for finding in list_findings() for quote in finding.list_quotes()]
    names = sorted({experiment for _, experiment, _ in quotes})
    outcomes = [decide(name) for name in names]
    PAGE.write_text(write_page(outcomes), encoding="utf-8")
    print(PAGE)
    return 0


def decide(name: str) -> Outcome:
    """Decide the claims of an experiment, or those that the page of a paper adds."""
    if name in list_papers():
        return decide_new_claims(read_paper(name), REFERENCE)
    return decide_outcome(find_experiment(name), load(name, REFERENCE))


def list_findings() -> list[LiteratureFinding]:
    """List the findings of all papers, and what we expected."""
    _, papers = _read_text()
    return [finding for paper in papers for finding in paper.findings]


def _read_text() -> tuple[str, list[LiteratureEntry]]:
    """Read the introduction, and the papers: a heading, the source, and findings below headings of their own."""
    # Headings of findings are not split at here: they begin with "### ", a third # before the space.
    introduction, *parts = TEXT.read_text(encoding="utf-8").split("\n## ")
    papers = []
    for part in parts:
        about, *texts = part.split("\n### ")
        title, _, source = about.partition("\n")
        papers.append(LiteratureEntry(title, source.strip(), [_read_finding(text) for text in texts]))
    return introduction.strip(), papers


def _read_finding(text: str) -> LiteratureFinding:
    """Read a finding: `F1. Title`, and lines of a word, a colon and a sentence."""
    heading, *lines = text.strip().splitlines()
    number, _, title = heading.partition(". ")
    sentences: dict[str, str] = {}
    for line in lines:
        # Only the first colon ends the word: sentences and quoted calls may have further ones.
        word, sentence = line.split(": ", 1)
        if word in sentences:
            raise UserError(f"{number}: has two lines {word!r}; write one")
        sentences[word] = sentence
    return LiteratureFinding(number, title, sentences)


def write_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page in Markdown; UserError where a quoted verdict is another one."""
    introduction, papers = _read_text()
    findings = [finding for paper in papers for finding in paper.findings]
    of_papers = [finding for finding in findings if "expected" not in finding.lines]
    expected = [finding for finding in findings if "expected" in finding.lines]
    counts = (
        f"Of {_count(of_papers, 'findings of papers and practice')}. Of {_count(expected, 'expectations of our own')}."
    )

    shown = {}
    claims = {}
    for finding in findings:
        filled = fill_paragraphs(finding.lines.get("here", ""), outcomes)
        # `fill_paragraphs` silently leaves out a sentence that was written for another verdict.
        if "here" in finding.lines and not filled:
            raise UserError(
                f"{finding.number}: a quoted claim has another verdict; judge again, in experiments/{TEXT.name}"
            )
        shown[finding.number] = "".join(filled)
        claims[finding.number] = _list_claims(finding, outcomes)
    introduction = introduction.replace("{counts}", counts)
    values = {"introduction": introduction, "papers": papers, "findings": findings, "shown": shown, "claims": claims}
    return render("literature.md", judgements=list(JUDGEMENTS), **values)


def _count(findings: Sequence[LiteratureFinding], of: str) -> str:
    """Say how many findings there are, and how many of each judgement."""
    judged = [finding.judgement for finding in findings]
    counts = [f"{judged.count(judgement)} {words}" for judgement, words in JUDGEMENTS.items()]
    return f"{len(judged)} {of} {', '.join(counts)}"


def _list_claims(finding: LiteratureFinding, outcomes: Iterable[Outcome]) -> list[str]:
    """List the quoted claims of each experiment with their verdicts, its data and its seeds."""
    known = {outcome.experiment.name: outcome for outcome in outcomes}
    verdicts: dict[str, dict[str, list[str]]] = {}
    for verdict, name, claim in finding.list_quotes():
        claims = verdicts.setdefault(name, {})
        # A claim may be quoted with several verdicts, each for other conditions.
        claims.setdefault(claim, []).append(f"*{verdict}*")

    listed = []
    for name, claims in verdicts.items():
        declared = known[name].experiment.claims
        quoted = []
        for claim, quoted_verdicts in claims.items():
            mark = POST_HOC if declared[claim].post_hoc else ""
            quoted.append(f"`{claim}`{mark} {' and '.join(quoted_verdicts)}")
        folder = f"papers/{name}" if name in list_papers() else name
        listed.append(f"[{name}]({_LINK.format(folder)}) ({known[name].basis}): {', '.join(quoted)}")
    return listed


if __name__ == "__main__":
    sys.exit(main())
