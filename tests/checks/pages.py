"""Committed pages are those that code and tables give; figures and their captions are drawn by reports alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from bnlab.harness.lab.registry import REFERENCE, find_paper, list_papers
from bnlab.harness.reporting.outcome import decide_outcome
from bnlab.harness.reporting.page import write_answers, write_readme
from docs import codes
from experiments import describe, literature
from experiments.pages import read_catalogue
from tests.checks.outcomes import ROOT, decide_all, decide_quoted, read_tables

REPORT = "run: bnlab report results=results/reference"


def find_other_verdicts() -> Iterator[str]:
    """Find the pages of experiments whose tables and sentences on claims are others."""
    for name, outcome in decide_all().items():
        page = (REFERENCE / name / "README.md").read_text(encoding="utf-8")
        if list_verdicts(page) != list_verdicts(write_readme(outcome)):
            yield f"{name}/README.md has other verdicts; {REPORT}"


def list_verdicts(page: str) -> list[str]:
    """List the rows of a page's tables, and the sentences of its claims."""
    return [line for line in page.splitlines() if line.startswith(("| ", "**"))]


def find_other_answers() -> Iterator[str]:
    """Find the pages on all questions that are others; an answer for another verdict has no sentence."""
    pages = write_answers(read_catalogue(), [*decide_all().values()])
    for name, page in pages.items():
        if page != (REFERENCE / name).read_text(encoding="utf-8"):
            yield f"{name} is another; {REPORT}"


def find_other_papers() -> Iterator[str]:
    """Find the pages of papers that lack a verdict or a figure."""
    for name in list_papers():
        paper = find_paper(name)
        folder = REFERENCE / "papers" / name
        page = (folder / "README.md").read_text(encoding="utf-8")
        expected = []
        outcome = decide_outcome(paper, {reads: read_tables(reads) for reads in paper.list_reads()})
        for row in outcome.frame.to_dict("records"):
            expected.append(f"| {row['condition']} | {row['number']} | {row['n']} | {row['said']} |")
        expected += [figure.title for figure in outcome.question.figures.values()]

        missing = [line for line in expected if line not in page]
        drawn = {path.stem for path in folder.glob("figures/*.png")}
        if missing or drawn != {*paper.figures}:
            yield f"papers/{name}/README.md is another; run: bnlab report paper={name} results=results/reference"


def find_other_literature() -> Iterator[str]:
    """Find whether the page on the literature is another."""
    if literature.PAGE.read_text(encoding="utf-8") != literature.write_page(decide_quoted()):
        yield f"{literature.PAGE.name} is another; run: python -m experiments.literature"


def find_other_descriptions() -> Iterator[str]:
    """Find the pages on tables, experiments and settings that are others."""
    # In a process of its own, as the pages are written: what this one has imported may have added to the choices.
    code = """if True:
        from experiments import describe
        written = {
            describe.README: describe.describe_tables(),
            describe.OTHER_TABLES: describe.describe_other_tables(),
            describe.EXPERIMENTS: describe.describe_experiments(),
            describe.HELP: describe.describe_sweep(),
        }
        for path, text in written.items():
            if path.read_text(encoding="utf-8") != text:
                print(path)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    for path in done.stdout.splitlines():
        yield f"{path} is another; run: python -m {describe.__name__}"


def find_other_codes() -> Iterator[str]:
    """Find the files on the doctor's codes that are others."""
    for path, write in ((codes.PAGE, codes.write_codes), (codes.EXPLANATIONS, codes.write_explanations)):
        if path.read_text(encoding="utf-8") != write():
            yield f"{path.name} is another: a cause or a network of the gallery has changed; run: python -m docs.codes"
