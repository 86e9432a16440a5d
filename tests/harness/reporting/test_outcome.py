"""Sentences that are composed from verdicts, and the pages that are made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.outcome import Outcome, decide_outcome, say_basis
from bnlab.harness.reporting.page import Catalogue, write_answers, write_question, write_readme
from bnlab.harness.reporting.plots import GAP, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, above
from bnlab.harness.reporting.quotes import fill_paragraphs, fill_prose
from bnlab.harness.reporting.wording import describe_networks, format_number
from tests.harness.reporting.planted import plant

COST = score("evaluations", "accuracy", ("batch_size",), at=1.0, against="exact", scale=-100, momentum=0.1)
COST_AT_4 = score(
    "evaluations", "accuracy", ("batch_size",), at=1.0, against="exact", scale=-100, momentum=0.1, batch_size=4
)
TABLES = {"trial": plant()}
DRAWN = Figure("Title", "Caption", COST, Forest("batch_size", GAP))


def declare(**parts: Any) -> Question:
    """An experiment `trial` on what a running average costs."""
    return Question(**{"bears_on": ("Q1",), "figures": {"cost": DRAWN}, "claims": {}, "name": "trial", **parts})


def rate(**means: tuple[str, float]) -> pd.DataFrame:
    """Verdicts by the names of conditions, which all are at the end of training."""
    rows = [{"where": ("late", name), "verdict": verdict, "mean": mean, "low": mean - 0.5, "high": mean + 0.5, "n": 5,
             "claim": "large", "note": ""} for name, (verdict, mean) in means.items()]  # fmt: skip
    return pd.DataFrame(rows)


def test_numbers_have_two_digits_of_their_interval() -> None:
    numbers = (0.25, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3 + 1e-16), (1.2e-8, 1.1e-8, 1.3e-8), (0.1, np.nan, np.nan)
    words = ["0.250 [0.250, 0.250]", "0.333 [0.333, 0.333]", "1.2e-08 [1.1e-08, 1.3e-08]", "0.1"]
    assert [format_number(*of) for of in numbers] == words


def test_a_mean_has_two_digits_of_its_own_however_wide_its_interval_is() -> None:
    """Ends of an interval say where its middle is, so that this needs no further digits."""
    wide = (0.312, 8e-9, 10910800.4), (4.83, 0.0, 68.2), (0.312, 0.0, 4.1), (3e-7, 0.0, 24.0), (-0.04, -31.0, 0.0)
    words = ["0.31 [0, 10910800]", "4.8 [0, 68]", "0.31 [0.0, 4.1]", "3.0e-07 [0, 24]", "-0.040 [-31, 0]"]
    assert [format_number(*of) for of in wide] == words

    middle = (0.4, -20.1, 20.9), (0.0, 0.0, 24.0)
    assert [format_number(*of) for of in middle] == ["0 [-20, 21]", "0 [0, 24]"]


def test_networks_are_described_by_what_differs_and_what_is_shared() -> None:
    runs = plant()["runs"].assign(norm="ghost", averaging="none", status=["diverged"] + ["finished"] * 5)
    runs["optimizer.lr"] = 0.1
    said = describe_networks(runs)

    assert said.startswith("6 networks, 3 seeds")
    for setting in ("batch size 4, 32", "data digits", "norm ghost", "epochs 2", "lr 0.1", "schedule constant"):
        assert setting in said
    assert "1 diverged" in said
    assert "averag" not in said


@pytest.mark.parametrize("sizes", [(4, 4), (4, 32)])
def test_the_length_is_said_as_it_was_set(sizes: tuple[int, int]) -> None:
    epochs = [0.1 * size for size in sizes]  # 40 updates of 400 images
    runs = pd.DataFrame({"seed": [0, 1], "batch_size": sizes, "steps": 40, "epochs": epochs})
    said = describe_networks(runs.assign(settings='{"steps": 40}'))

    assert "steps 40" in said and "epochs" not in said
    in_epochs = describe_networks(runs.assign(settings='{"epochs": 0.4}'))
    assert "epochs 0.4" in in_epochs and "steps" not in in_epochs


def test_of_own_models_it_is_not_said_what_they_do_not_have() -> None:
    """Settings are null where a model does not read them, as the norm where it has its own."""
    runs = plant()["runs"].assign(norm="batch")
    own = runs.assign(model="mine.make_model", **{"model.depth": np.nan, "norm": None})

    said = describe_networks(own)
    assert "model mine.make_model" in said and "norm" not in said and "depth" not in said
    ours = describe_networks(runs.assign(model="cnn", **{"model.depth": 3}))
    assert all(setting in ours for setting in ("model cnn", "model.depth 3", "norm batch"))


def test_networks_are_described_by_what_trained_them() -> None:
    runs = plant()["runs"]

    assert "Trained" not in describe_networks(runs)
    assert "Trained on x86_64" in describe_networks(runs.assign(device="x86_64"))
    both = runs.assign(device=["H200"] + ["x86_64"] * 5)
    assert "5 on x86_64, 1 on H200" in describe_networks(both)


def answer(unit: str = "points gained", verdict: str = "holds") -> Outcome:
    claim = Claim("It is large.", lambda tables: tables["x"], above(1.0, unit, "a reason"), lines="each")
    question = Question(figures={}, claims={"large": claim}, name="e")
    conditions = {
        "batch size 4": ("undecided", 0.2),
        "batch size 16": (verdict, 0.4),
        "batch size 160": (verdict, 0.6),
    }
    found = rate(**conditions)
    return Outcome(question, found)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ('It is {{ holds("e.large", "batch size 16") }}.', "It is 0.40 points [-0.10, 0.90]."),
        ('{{ holds("e.large", "batch size 16, late", "batch size 160") }}', "0.40 to 0.60 points [-0.10, 1.1]"),
        ('{{ holds("e.large", "batch size 4", "batch size 160") }}', ""),
        ('{{ fails("e.large", "batch size 16") }}', ""),
        ('{{ holds("e.large", "batch size 16", interval=False) }}', "0.40 points"),
        ('{{ holds("e.large", "batch size 16", "batch size 160", sign=-1, interval=False) }}', "-0.60 to -0.40 points"),
        ('So{{ holds("e.large", "batch size 16", shown=False) }}.', "So."),
        ('{{ holds("e.large", "batch size 1") }}', ""),
        ('{{ holds("other.large") }}', ""),
        ('Open: {{ undecided("e.large", "batch size 4") }}.\nLost: {{ holds("e.large") }}.\nLast.',
         "Open: 0.20 points [-0.30, 0.70]. Last."),
    ],
)  # fmt: skip
def test_a_sentence_wants_its_conditions_and_verdicts(text: str, filled: str) -> None:
    assert " ".join(fill_paragraphs(text, [answer()])) == filled


def test_what_rests_on_a_claim_that_is_post_hoc_is_marked() -> None:
    outcome = answer()
    claim = outcome.question.claims["large"]
    asked = replace(claim, post_hoc="asked")
    marked = replace(outcome, question=replace(outcome.question, claims={"large": asked}))

    for quote in ('holds("e.large", "batch size 16")', 'holds("e.large", "batch size 16", interval=False)',
                  'holds("e.large", "batch size 16", shown=False)', 'undecided("e.large", "batch size 4")',
                  'estimated("e.large", "batch size 4")'):  # fmt: skip
        (plain,) = fill_paragraphs(f"It is{{{{ {quote} }}}}.", [outcome])
        (said,) = fill_paragraphs(f"It is{{{{ {quote} }}}}.", [marked])
        assert said == plain.removesuffix(".") + "†."
    assert asked.state() == "It is large (post hoc)."
    assert replace(claim, post_hoc="restored").state() == "It is large (post hoc: restored)."
    assert claim.state() == "It is large."


def test_shares_are_quoted_in_percent_and_counts_without_interval() -> None:
    quote = '{{ undecided("e.large") }}'

    assert fill_paragraphs(quote, [answer("share", "undecided")]) == ["20 to 60% [0, 100]"]

    (lost,) = fill_paragraphs('{{ undecided("e.large", sign=-1) }}', [answer("share", "undecided")])
    assert lost == "-60 to -20% [-100, 0]"

    exact = replace(answer(verdict="undecided"), frame=rate(a=("undecided", 2.0)).assign(low=2.0, high=2.0))
    assert fill_paragraphs(quote, [exact]) == ["2.0 points"]


def test_a_share_of_few_networks_is_quoted_as_a_count() -> None:
    two_of_three = rate(a=("holds", 2 / 3)).assign(n=3)
    decided = replace(answer("of the networks"), frame=two_of_three)

    assert fill_paragraphs('In {{ holds("e.large", interval=False) }}.', [decided]) == ["In 2 of 3."]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ('{{ estimated("e.large", "batch size 4") }}', "0.20 points [-0.30, 0.70]"),
        ('{{ estimated("e.large") }}', "0.20 to 0.60 points [-0.30, 1.1]"),
        ('{{ estimated("e.large", "batch size 1") }}', ""),
    ],
)
def test_an_estimate_is_quoted_with_its_interval_whatever_the_verdict(text: str, filled: str) -> None:
    assert "".join(fill_paragraphs(text, [answer()])) == filled


def test_an_answer_says_of_how_many_seeds_its_own_numbers_are() -> None:
    outcome = decide_outcome(declare(), TABLES)
    prose = fill_prose('# Is it so?\n\n{{ drawn("trial.cost", "batch size 4", unit="points") }}', [outcome])

    assert say_basis(outcome.data, prose.seeds["trial"]) == "digits, n = 3"
    assert say_basis("digits", [7, 2, 5]) == "digits, n = 2 to 7"
    assert say_basis("digits", []) == "digits"


def test_an_undecided_claim_is_never_quoted_without_its_estimate() -> None:
    with pytest.raises(ValueError, match=r"^e\.large: "):
        fill_paragraphs('Open{{ undecided("e.large", "batch size 4", shown=False) }}.', [answer()])


def draw_map(name: str) -> pd.DataFrame:
    """The points of a figure `map`, in panels whose names have two words."""
    if name != "map":
        raise NoRows(f"figure {name}: nothing to draw")
    where = [("constant rate", "updates 9"), ("one-cycle, at the end", "updates 9"), ("one-cycle", "updates 9")]
    means = {"mean": [12.8, 0.3, np.nan], "low": [6.7, 0.1, 0.0], "high": [18.8, 0.5, 1.0]}
    return pd.DataFrame({"where": where, "n": 7, **means})


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ('{{ drawn("e.map", "constant rate, updates 9", unit="points") }}', "13 points [6.7, 19]"),
        ('{{ drawn("e.map", "one-cycle, at the end, updates 9", unit="", interval=False) }}', "0.30"),
        ('{{ drawn("e.map", "at the end, updates 9", unit="points") }}', ""),
        ('{{ drawn("e.map", "one-cycle, updates 9", unit="points") }}', ""),
        ('{{ drawn("e.other", "updates 9", unit="points") }}', ""),
        ('{{ drawn("other.map", "updates 9", unit="points") }}', ""),
    ],
)
def test_a_point_of_a_figure_is_quoted_where_it_is_drawn(text: str, filled: str) -> None:
    """A condition names all words of a panel or none; a point without a mean is not drawn."""
    drawn = replace(answer(), read_figure=draw_map)

    assert " ".join(fill_paragraphs(text, [drawn])) == filled


def test_a_figure_is_read_from_the_tables() -> None:
    quote = '{{ drawn("trial.cost", "batch size 4", unit="points") }}'

    assert fill_paragraphs(quote, [decide_outcome(declare(), TABLES)]) == ["3.0 points [0.5, 5.5]"]
    assert fill_prose(f"# Is it so?\n\n{quote}", []).quoted == ("trial",)


def test_an_answer_has_question_paragraphs_figure_and_knows_what_it_quotes() -> None:
    quotes = 'Yes{{ holds("e.large", shown=False) }}{{ undecided("trial.costs", shown=False) }}.'

    prose = fill_prose(f"# Is it so?\n\nYes.\n\nLook.\n{quotes}\n\n![](trial/cost)\n", [])

    assert prose.question == "Is it so?"
    assert prose.paragraphs == ["Yes.", "Look."]
    assert prose.figure == ("trial", "cost")
    assert prose.quoted == ("e", "trial")


def test_tables_and_lists_keep_their_lines_and_lose_those_that_are_untrue() -> None:
    rows = '| a |\n|---|\n| {{ fails("e.large") }} |\n| {{ holds("e.large", "batch size 16", interval=False) }} |'
    items = "- one\n- two"

    table, listed = fill_paragraphs(f"{rows}\n\n{items}", [answer()])

    assert table == "| a |\n|---|\n| 0.40 points |"
    assert listed == items


def test_the_pages_have_questions_sentences_tables_and_figures(tmp_path: Path) -> None:
    question = declare(
        bears_on=("Q1", "H1"),
        asks="What is <it>?",
        source="A paper; `code`.",
        claims={"costs": Claim("It costs.", COST_AT_4, above(0.0, "points", "a reason"), lines="each")},
    )
    questions = {
        "Q1": '# What?\n\nIt *costs* {{ holds("trial.costs", "batch size 4") }}.\n\n![](trial/cost)',
        "Q2": "# Else?",
    }
    conclusion = 'Yes{{ holds("trial.costs", shown=False) }}.\nNo{{ fails("trial.costs", shown=False) }}.'
    first = "First, [else](#Q2)."
    situations = "Then:\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    index = {"What it is": ["Q1", "[How](how.md)"], "What to do": ["Q2"]}
    catalogue = Catalogue(questions, {"H1": ("So.", conclusion)}, first, situations, index, "Last.")
    answers = [decide_outcome(question, TABLES)]

    (tmp_path / "trial" / "figures").mkdir(parents=True)
    (tmp_path / "trial" / "figures" / "cost.png").write_bytes(b"image")
    pages = write_answers(catalogue, answers)
    text = pages["ANSWERS.md"]
    parts = [
        "## Answers: What it is\n\n### Q1. What?\n\nIt *costs* 3.0 points [0.5, 5.5].\n",
        "![Title](trial/figures/cost.png)\\\n*Caption.*\n",
        "[trial](trial/README.md) (digits, n = 3).\n",
        "## Answers: What to do\n\n### Q2. Else?\n",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "First, [else](#q2-else).\n" in text
    assert "- [Else?](#q2-else)\n\nThen:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" in text
    assert "### What it is\n\n- [What?](#q1-what)\n- [How](how.md)\n\n### What to do\n\n- [Else?](#q2-else)\n" in text
    assert "\nLast.\n" in text

    assert "| H1 | So. | Yes. | [trial](trial/README.md) |" in pages["HYPOTHESES.md"]

    own = write_readme(answers[0])
    assert "| batch size 4 | 3.0 [0.5, 5.5] | 3 |" in own
    assert "![Title](figures/cost.png)\n\nCaption\n" in own

    page = write_question(answers[0], tmp_path / "trial")
    assert "What is &lt;it&gt;?" in page
    assert "<code>code</code>" in page
    assert page.count("base64,aW1hZ2U=") == 1
    assert '<td class="undecided">undecided' in page or '<td class="holds">holds' in page


MARGINS = {"costs": above(0.0, "points", "a reason"), "costs_much": above(50.0, "points", "another")}
"""Of two claims on a planted cost the first holds, and the second fails."""


@pytest.mark.parametrize(
    ("claims", "fails", "title"),
    [
        ({"costs": ()}, {}, "It costs"),
        ({"costs": ("batch size 32",)}, {}, "Title"),
        ({"costs": (), "costs_much": ()}, {}, "Title"),
        ({"costs": ()}, {"costs_much": ()}, "It costs"),
        ({"costs": ()}, {"costs_much": ("batch size 4",)}, "It costs"),
        ({"costs": ()}, {"costs_much": (), "no_such_claim": ()}, "Title"),
    ],
)
def test_a_finding_is_the_title_where_its_claims_hold_and_fail(claims: Any, fails: Any, title: str) -> None:
    stated = {name: Claim("It costs.", COST_AT_4, margin, lines="each") for name, margin in MARGINS.items()}
    figure = replace(DRAWN, score=COST_AT_4, headline=Headline("It costs", claims, fails))

    outcome = decide_outcome(declare(figures={"cost": figure}, claims=stated), TABLES)

    assert outcome.frame["verdict"].tolist() == ["holds", "fails"]
    assert outcome.question.figures["cost"].title == title


def test_a_page_has_its_figures_first_and_a_table_once_for_claims_on_the_same_numbers() -> None:
    claims = {name: Claim(f"It {name}.", COST, margin, lines="each") for name, margin in MARGINS.items()}
    claims["third"] = Claim("Of one batch size.", COST_AT_4, MARGINS["costs"], lines="each")

    page = write_readme(decide_outcome(declare(claims=claims), TABLES))

    assert page.index("![Title]") < page.index("| condition |")
    assert page.count("| condition |") == 2
    stated = "**It costs.** (*above 0 points*: a reason)\n\n**It costs_much.** (*above 50 points*: another)\n\n"
    columns = "| condition | effect (points) | n | verdict, above 0 points | verdict, above 50 points |"
    assert f"{stated}{columns}\n|---|---|--:|---|---|\n" in page
    assert "| condition | effect (points) | n | verdict |\n|---|---|--:|---|\n" in page


def test_html_in_prose_is_shown_as_it_is_written_and_links_stay_inside(tmp_path: Path) -> None:
    source = "**Bold**, *italic*, `x < y` <script>alert(1)</script> & more_than_one_word. [Several](../../docs/x.md)."
    page = write_question(decide_outcome(declare(source=source), TABLES), tmp_path)

    assert "<strong>Bold</strong>, <em>italic</em>, <code>x &lt; y</code> &lt;script&gt;" in page
    assert "&amp; more_than_one_word. <a>Several</a>." in page


def test_an_unscored_claim_stands_in_the_pages_with_its_reason() -> None:
    def fail(tables: object) -> pd.DataFrame:
        raise KeyError("a | b")

    found = decide_outcome(
        declare(figures={}, claims={"costs": Claim("It costs.", fail, MARGINS["costs"], lines="each")}), TABLES
    )

    assert found.basis == "digits"
    assert found.frame["said"].str.contains("KeyError: 'a | b'", regex=False).all()

    (line,) = [line for line in write_readme(found).splitlines() if line.endswith("KeyError: 'a \\| b') |")]
    assert "|  | 0 | " in line
