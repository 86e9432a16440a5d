"""Every question: its declarations, and that the reference tables answer and draw it, and give the page on papers.

All that reads the outcomes of all questions is in this file: they take half a minute, and a file is run by one process.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.lab.registry import find_experiment, list_papers, list_questions
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Experiment, Tables, find_conditions
from bnlab.harness.reporting.outcome import Outcome, decide_outcome, fill_paragraphs, fill_prose
from bnlab.harness.reporting.page import write_experiment
from bnlab.harness.reporting.verdicts import NOT_MEASURED
from bnlab.harness.reporting.wording import say_numbers
from bnlab.nn import SelfTuned
from experiments.cells import find_certain
from experiments.literature import PAGE, decide, list_findings, write_page
from experiments.pages import FIGURES, read_catalogue
from tests.experiments import quoted

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
# A question's claims are committed before its numbers: until then it has no results here.
MEASURED = [name for name in list_questions() if (REFERENCE / name).is_dir()]
# Claims whose networks come after those whose rows are there.
UNMEASURED: dict[str, set[str]] = {}
CATALOGUE = read_catalogue()
CONCLUSIONS = {number: conclusion for number, (_, conclusion) in CATALOGUE.hypotheses.items()}
TEMPLATES = {
    "first": CATALOGUE.first,
    "situations": CATALOGUE.situations,
    **CATALOGUE.questions,
    "last": CATALOGUE.last,
    **CONCLUSIONS,
}
NUMBERS = {*CATALOGUE.questions, *CATALOGUE.hypotheses, *FIGURES}
LINK_TARGET = re.compile(r"\]\([^)]*\)")


def read_prose(path: str) -> str:
    """Read a page of the repository without its code and outputs."""
    return re.sub("```.*?```", "", (REFERENCE.parents[1] / path).read_text(encoding="utf-8"), flags=re.DOTALL)


README = read_prose("README.md")
UNIT = r"(?: points?| times|%| σ)"
INTERVAL = re.compile(r"\[-?[\d.]+, -?[\d.]+\]")
# Not results: code, and momenta by their value.
SETTING = re.compile(r"`[^`]*`|(?<=momentum )0\.\d+|(?<=momentum of )0\.\d+", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.^,-])-?\d[\d,]*(?:\.\d+)?(?!\d)( points?| times|%| σ)?")
QUOTED = re.compile(r"(-?[\d.]+)(?:%| [a-zσ]+)? \[(-?[\d.]+), (-?[\d.]+)\]")


def load(name: str) -> tuple[Experiment, Tables]:
    paths = sorted((REFERENCE / name / "tables").glob("*.parquet"))
    return find_experiment(name), {path.stem: pd.read_parquet(path) for path in paths}


@cache
def outcome_of(name: str) -> Outcome:
    return decide_outcome(*load(name))


@pytest.mark.parametrize("name", MEASURED)
def test_every_claim_is_measured(name: str) -> None:
    experiment, found = outcome_of(name).experiment, outcome_of(name).frame

    assert experiment.question.endswith("?")
    assert experiment.source
    assert {*experiment.bears_on} <= NUMBERS

    headlines = [figure.headline for figure in experiment.figures.values() if figure.headline]
    for headline in headlines:
        for claim_name, conditions in (*headline.claims.items(), *headline.fails.items()):
            assert claim_name in experiment.claims
            for words in conditions:
                assert not find_conditions(found, claim_name, [words]).empty, words

    for claim in experiment.claims.values():
        assert claim.text.endswith(".")
        assert claim.margin.unit
        assert claim.margin.reason
    assert {*found["claim"]} == {*experiment.claims}
    assert {*found.loc[found["verdict"].eq(NOT_MEASURED), "claim"]} == UNMEASURED.get(name, set())


def list_verdicts(page: str) -> list[str]:
    """List the rows of a page's tables, and the sentences of its claims."""
    return [line for line in page.splitlines() if line.startswith(("| ", "**"))]


@pytest.mark.parametrize("name", MEASURED)
def test_its_page_has_the_verdicts_that_the_tables_give(name: str) -> None:
    committed = (REFERENCE / name / "README.md").read_text(encoding="utf-8")
    page, _, _ = committed.partition("**Trained on a CPU and on a GPU.**")

    expected = list_verdicts(write_experiment(outcome_of(name)))
    assert list_verdicts(page) == expected, "run: bnlab report results=results/reference"


@cache
def find_outcomes() -> list[Outcome]:
    return [outcome_of(name) for name in MEASURED]


def test_all_questions_are_answered_and_found_by_those_who_ask_them() -> None:
    assert list(CATALOGUE.questions) == [f"Q{number}" for number in range(1, 40)]
    links = [re.findall(r"\]\(#(Q\d+)\)", text) for text in CATALOGUE.index.values()]
    assert {*itertools.chain(*links)} == {*CATALOGUE.questions}


@pytest.mark.parametrize("number", TEMPLATES)
def test_every_sentence_is_true_of_the_reference_and_says_what_is_undecided(number: str) -> None:
    sentences = [line for line in TEMPLATES[number].splitlines() if line and not line.startswith(("# ", "![]("))]
    for sentence in sentences:
        assert fill_paragraphs(sentence, find_outcomes()), f"another verdict: {sentence}"
        assert ("undecided(" in sentence) == ("undecided" in sentence.replace("undecided(", "")), sentence


def find_long_numbers(text: str) -> list[str]:
    """Numbers with more than two significant digits, or three where the first is 1; whole ones only with a unit."""
    found = []
    # Settings, such as a decay of `0.999`, are no measurements.
    for match in NUMBER.finditer(SETTING.sub("", text)):
        number = match[0].removesuffix(match[1] or "")
        digits = re.sub(r"[-.,]", "", number).lstrip("0")
        is_count = "." not in number and not match[1]
        if not is_count and len(digits) > (3 if digits.startswith("1") else 2):
            found.append(number)
    return found


@pytest.mark.parametrize("number", TEMPLATES)
def test_numbers_are_as_one_would_say_them(number: str) -> None:
    text = " ".join(fill_paragraphs(TEMPLATES[number], find_outcomes()))
    assert re.findall(r"\b([A-Za-z]+) \1\b", LINK_TARGET.sub("]", text)) == [], "a word twice"
    assert find_long_numbers(text) == []


def test_the_self_tuned_norm_quotes_the_numbers_of_verdicts() -> None:
    known = set()
    for outcome in find_outcomes():
        for numbers in outcome.frame[["mean", "low", "high"]].itertuples(index=False):
            for factor in (1, -1, 100):
                mean, *bounds = (factor * number for number in numbers)
                known.add(tuple(say_numbers(mean, *sorted(bounds))))
    said = QUOTED.findall(SelfTuned.__doc__ or "")
    assert len(said) >= 2
    assert [numbers for numbers in said if numbers not in known] == []


# Numbers that say what was measured, and marks; not the bounds of claims, the width of intervals, and arithmetic.
BY_HAND = re.compile(
    r"(?<!less than )(?<!, to )(?<![\d.])[\d.]+(?: points| times)|(?<![\d.])(?!95%|1%)\d[\d.]*%|"
    r"\[-?[\d.]+, -?[\d.]+\]|†"
)


@pytest.mark.parametrize("path", quoted.PAGES)
def test_pages_by_hand_quote_claims_and_mark_those_that_are_post_hoc(path: str) -> None:
    linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", read_prose(path))
    text = " ".join(linked.replace("**", "").split())
    rest = text
    for quote in quoted.PAGES[path]():
        (sentence,) = fill_paragraphs(quote, find_outcomes(), after_one=2)
        assert sentence in text
        assert find_long_numbers(sentence) == []
        rest = rest.replace(sentence, "")

    assert len(re.findall(r"† marks a \*post hoc\*|dagger \(†\) marks a \*post hoc\*", rest)) == 1
    assert BY_HAND.findall(rest) == ["†"], "what is quoted stands in tests/experiments/quoted.py"


def test_what_pages_say_by_hand_of_the_map() -> None:
    """The largest loss has an interval above 0, and is not bold."""
    experiment, tables = load("ground")
    figure = experiment.figures["map"]
    cells = figure.score(tables)
    cells["is_bold"] = find_certain(cells)
    largest = cells.sort_values("mean").iloc[-1]

    assert (len(cells), {*cells["n"]}) == (32, {7})
    assert f"{largest['mean']:.0f} points" in figure.caption
    assert f"an interval of {largest['low']:.1f} to {largest['high']:.0f}" in figure.caption
    assert not largest["is_bold"]


def test_readme_links_to_answers_that_there_are() -> None:
    links = re.findall(r"ANSWERS\.md#([\w-]+)", README)
    answers = (REFERENCE / "ANSWERS.md").read_text(encoding="utf-8")

    headings = re.findall(r"^#+ (.*)$", answers, re.MULTILINE)
    anchors = {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert links
    assert {*links} <= anchors


@pytest.mark.parametrize("number", CONCLUSIONS)
def test_conclusions_quote_claims_that_bear_on_the_hypothesis(number: str) -> None:
    quoted = re.findall(r'(?:holds|fails|undecided)\("(\w+)\.(\w+)"', CONCLUSIONS[number])
    assert quoted
    for name, claim in quoted:
        experiment = find_experiment(name)
        assert claim in experiment.claims
        assert number in experiment.bears_on, name


def list_results(text: str) -> list[str]:
    """List the numbers that say what was measured; neither bounds nor settings, nor whole ones, as batch sizes."""
    text = INTERVAL.sub("", SETTING.sub("", text))
    results = []
    for match in NUMBER.finditer(text):
        is_range = re.match(rf" to -?[\d.]+{UNIT}", text[match.end() :])
        if "." in match[0] or match[1] or is_range:
            results.append(match[0])
    return results


@pytest.mark.parametrize("number", CATALOGUE.questions)
def test_every_answer_is_read_once(number: str) -> None:
    prose = fill_prose(CATALOGUE.questions[number], find_outcomes())
    text = LINK_TARGET.sub("]", " ".join(prose.paragraphs))
    first_line = CATALOGUE.questions[number].splitlines()[2]
    first_sentence = LINK_TARGET.sub("]", " ".join(fill_paragraphs(first_line, find_outcomes())))

    assert prose.question.endswith("?")
    assert len(INTERVAL.findall(first_sentence)) <= 1
    bounds = re.findall(r"[\d.]+", " ".join(INTERVAL.findall(text)))
    for said in (*list_results(text), *bounds):
        digits = re.sub(r"\D", "", said).strip("0")
        assert len(digits) <= 2, said
    assert "*What to do:*" in text or "*What it would take:*" in text

    answer, _, _ = CATALOGUE.questions[number].partition("\n*What ")
    sentences = [line for line in answer.splitlines()[2:] if line]
    assert 2 <= len(sentences) <= 5
    assert len(INTERVAL.findall(text)) <= 3

    if any(prose.figure):
        experiment, figure = prose.figure
        assert figure in find_experiment(experiment).figures


def test_situations_rest_on_claims() -> None:
    header, _, *rows = [line for line in CATALOGUE.situations.splitlines() if line.startswith("|")]

    assert header == "| your situation | what to do |"
    for row in rows:
        _, remedy = row.strip("| ").split(" | ")
        assert re.search(r"\{\{ \w+\(", remedy), row
        assert "not measured" not in remedy


def test_a_thing_has_one_name() -> None:
    """What others call it stands once, where words are explained; questions are in the words of those who ask."""
    at_first_use, _, _ = CATALOGUE.first.partition("\n## ")
    for name in ("population", "precise", "EMA"):
        assert len(re.findall(rf"\b{name}\b", at_first_use)) == 1, name
    for name in ("EMA", "forecasting", "predictive"):
        assert len(re.findall(rf"\b{name}\b", CATALOGUE.last)) == 1, name

    others = re.compile(r"\b(population|precise|forecast\w*|predictive)\b", re.IGNORECASE)
    elsewhere = {**TEMPLATES, "first": CATALOGUE.first.removeprefix(at_first_use), "last": ""}
    for number, template in elsewhere.items():
        _, _, answer = template.partition("\n") if number.startswith("Q") else ("", "", template)
        prose = re.sub(r"{{.*?}}|`[^`]*`|\]\([^)]*\)", "", answer)
        assert not others.findall(prose), number
        assert not re.findall(r"\bat (?:16|64|256|1024|128|32)\b", prose), number


def test_every_answer_names_its_claims() -> None:
    text = (REFERENCE / "ANSWERS.md").read_text(encoding="utf-8")
    for number, question in CATALOGUE.questions.items():
        _, answer = text.split(f"\n### {number}. {question.splitlines()[0][2:]}\n")
        answer, _, _ = answer.partition("\n##")
        assert len(re.findall("^Claims", answer, re.MULTILINE)) == 1


LITERATURE = list_findings()
TEMPLATE = re.compile(r"{{.*?}}")
SAID_TO_BE_MEASURED = re.compile(r"\d(?:%(?! of training)| points?| times| σ)")


@cache
def find_all_outcomes() -> list[Outcome]:
    """Find the outcomes of all experiments, and of the papers that are quoted."""
    quoted = {name for finding in LITERATURE for _, name, _ in finding.list_quotes()}
    return [*find_outcomes(), *(decide(name) for name in quoted & {*list_papers()})]


def test_the_page_on_the_literature_is_the_one_that_the_claims_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(find_all_outcomes()), "run: python -m experiments.literature"


def test_a_changed_verdict_stops_the_page_on_the_literature() -> None:
    def change(outcome: Outcome) -> Outcome:
        frame = outcome.frame.copy()
        is_quoted = frame["claim"] == "batches_win_when_tiny"
        frame.loc[is_quoted, "verdict"] = "holds"
        return replace(outcome, frame=frame)

    outcomes = [change(outcome) if outcome.experiment.name == "ghost" else outcome for outcome in find_all_outcomes()]

    with pytest.raises(UserError, match=r"F3b: a quoted claim has another verdict"):
        write_page(outcomes)


def test_its_numbers_from_here_come_from_claims_and_nothing_gains_less_than_nothing() -> None:
    for finding in LITERATURE:
        here = finding.lines.get("here", "")
        shown = " ".join(fill_paragraphs(here, find_all_outcomes()))
        assert not re.findall(r"\b(?:gains?|costs?|loses?|lost) -[\d.]+", shown), finding.number

        by_hand = TEMPLATE.sub("", here)
        without_margins = re.sub(r"0\.3 points|0\.[18] σ", "", by_hand)
        assert not SAID_TO_BE_MEASURED.findall(without_margins), finding.number
        assert not [text for word, text in finding.lines.items() if word != "here" and "{{" in text], finding.number


@pytest.mark.slow  # tests of the report draw those of the quickstart
@pytest.mark.parametrize("name", MEASURED)
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    experiment, tables = load(name)
    for key, figure in experiment.figures.items():
        drawing.write(key, figure, tables, tmp_path)
        assert (tmp_path / f"{key}.png").exists()


def test_a_question_that_there_is_not_or_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no question .quikstart.: did you mean quickstart"):
        find_experiment("quikstart")
    monkeypatch.delattr("experiments.questions.quickstart.EXPERIMENT")
    with pytest.raises(UserError, match=r"quickstart.EXPERIMENT: cannot be imported, AttributeError"):
        find_experiment("quickstart")
