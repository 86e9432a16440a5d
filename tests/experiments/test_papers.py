"""Papers, redrawn: claims and figures of several sweeps, printed numbers in grey, and the pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from bnlab.harness.lab.registry import REFERENCE, find_paper, list_papers
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.outcome import decide_outcome
from bnlab.harness.reporting.page import write_paper
from bnlab.harness.reporting.plots import Axis, Curves, Forest, Plot
from bnlab.harness.reporting.printed import make_panel, make_printed_figure
from bnlab.harness.reporting.question import Claim, Figure, Paper, Printed, Question, above, cite, show
from bnlab.harness.reporting.tables import load
from tests.experiments.commands import Call

GAINS = pd.DataFrame(
    {"run": list("abcabc"), "step": 9, "estimator": ["ema"] * 3 + ["exact"] * 3, "momentum": np.nan, "split": "test"}
)
GAINS["accuracy"] = [0.72, 0.71, 0.73, 0.70, 0.69, 0.71]
RUNS = pd.DataFrame({"run": list("abc"), "seed": [0, 1, 2], "batch_size": 8, "steps": 9, "data": "planted"})
TABLES = {"runs": RUNS, "evaluations": GAINS}

KIN = Printed(panel="kin", series="ema", x=8, unit="% top-1", value=55.0, sd=1.0, where="table 1", source="paper text")
RANGE = Printed(span=(2, 4), axis="images", unit="images", where="section 1", source="paper text")
PAPER = Paper(
    title="A paper", authors="Nobody", year=2020, arxiv="1234.5678",
    read=[{"what": "abstract", "source": "paper text"}], setting=[("task", "theirs", "ours")],
    printed={"kin": KIN, "range": RANGE}, differs=["All of it."])  # fmt: skip
PERCENT = Axis("%")


def gain(*by: str, **how: Any) -> Any:
    return score("evaluations", "accuracy", by, at=1.0, scale=100, **how)


OLDER: Any = ModuleType("questions.older")
OLDER.QUESTION = Question(
    figures={"of_sizes": Figure("Sizes", "", gain("panel", "batch_size"), Curves("batch_size", "panel", PERCENT))},
    claims={"learns": Claim("It learns.", gain("estimator"), above(50.0, "%"), lines="each")},
)
QUESTION = Question(
    paper=PAPER,
    figures={
        "drawn": Figure(
            "Drawn", "", gain("panel", "estimator"), Forest("estimator", PERCENT), printed=[KIN, RANGE], reads="older"
        ),
        "shown": show(OLDER, "of_sizes", [KIN]),
        "printed": make_printed_figure("Theirs", "", Forest("panel", PERCENT), [KIN], reads="older"),
        "missing": Figure("Missing", "", gain("panel", "estimator"), Forest("estimator", PERCENT), reads="younger"),
    },
    claims={
        "cited": cite(OLDER, "learns", "that it learns"),
        "in_one": cite(OLDER, "learns", "that one does", "exact statistics"),
        "in_none": cite(OLDER, "learns", "that another does", "no such estimator"),
        "missing": Claim("It is so.", gain("batch_size"), above(0.0, "%"), lines="each", reads="younger"),
    },
    name="planted",
    asks="Is it so?",
)  # fmt: skip


def test_claims_are_decided_by_the_sweeps_that_they_read_in_the_conditions_that_are_meant() -> None:
    frame = decide_outcome(QUESTION, {"older": TABLES}).frame

    assert frame["claim"].tolist() == ["cited", "cited", "in_one", "in_none"]
    assert frame["condition"].tolist() == ["running average", *["exact statistics"] * 2, "no such estimator"]
    assert frame["mean"].tolist() == pytest.approx([72.0, 70.0, 70.0, np.nan], nan_ok=True)
    assert frame["verdict"].tolist() == ["holds"] * 3 + ["not measured"]


def test_the_page_has_the_tables_of_claims_and_of_printed_numbers() -> None:
    page = write_paper(decide_outcome(QUESTION, {"older": TABLES}), ["older"])

    assert "| task | theirs | ours |" in page
    assert "That it learns, [older](../../older/README.md): **It learns.** (*above 50 %*)" in page
    assert page.count("| exact statistics | 70.0 [67.5, 72.5] | 3 | holds |") == 2
    assert "Nothing of younger has been measured" in page
    assert "| kin: ema | 55.0 ± 1.0% top-1 | table 1 | paper text |" in page
    assert "| images | 2 to 4 images | section 1 | paper text |" in page


def list_grey(ax: Axes) -> list[Line2D]:
    """List the lines between black, which is that of exact statistics, and white."""
    return [line for line in ax.lines if len({*to_rgb(line.get_color())}) == 1 and 0 < to_rgb(line.get_color())[0] < 1]


@pytest.mark.parametrize(
    ("plot", "by"),
    [
        (Forest("estimator", PERCENT), ("panel", "estimator")),
        (Curves("batch_size", "estimator", PERCENT), ("panel", "estimator", "batch_size")),
    ],
)
def test_printed_numbers_are_grey_and_apart(plot: Plot, by: tuple[str, ...], tmp_path: Path) -> None:
    declared = replace(QUESTION.figures["drawn"], plot=plot, score=gain(*by))
    figure, points = drawing.read_points(declared, TABLES)
    (ours,) = drawing.draw(figure, points).axes
    assert not list_grey(ours)
    assert [patch.get_label() for patch in ours.patches] == ["theirs: 2 to 4 images"]
    assert "Grey intervals" in drawing.write("drawn", declared, TABLES, tmp_path).caption

    theirs_plot, printed = make_panel(figure.plot, [KIN])
    assert printed[["mean", "low", "high", "n"]].to_numpy().tolist() == [[55.0, 53.0, 57.0, 0]]
    below = drawing.draw(Figure("", "", figure.score, theirs_plot), printed)
    (theirs,) = below.axes
    assert "% top-1" in (theirs.get_xlabel(), theirs.get_ylabel())
    assert ours.dataLim.bounds != theirs.dataLim.bounds
    assert list_grey(theirs)
    plt.close("all")


def test_a_figure_of_printed_numbers_alone_is_of_no_seeds(tmp_path: Path) -> None:
    written = drawing.write("printed", QUESTION.figures["printed"], TABLES, tmp_path)
    assert written.caption.startswith("Grey: their numbers")
    assert "seed" not in written.caption
    assert (tmp_path / "printed.png").exists()


@pytest.mark.parametrize("name", list_papers())
def test_papers_cite_claims_and_printed_numbers_that_there_are(name: str) -> None:
    """Importing a paper finds the claims and figures that it takes from questions."""
    paper = find_paper(name)
    assert paper.paper is not None
    assert paper.asks.endswith("?")
    listed = [number for figure in paper.figures.values() for number in figure.printed]
    assert all(number in paper.paper.printed.values() for number in listed)
    assert all(claim.about or not claim.is_cited for claim in paper.claims.values())


def test_the_example_of_a_paper_is_decided_and_drawn(tmp_path: Path) -> None:
    recipes = (REFERENCE.parents[1] / "docs/contributing/adding.md").read_text(encoding="utf-8")
    data, module = [block for block in recipes.split("```") if "experiments/papers/small." in block]
    (tmp_path / "small.yaml").write_text(data.removeprefix("yaml"), encoding="utf-8")
    names: dict[str, Any] = {"__file__": str(tmp_path / "small.py")}
    exec(module.removeprefix("python"), names)
    tables = load("gap", REFERENCE)

    outcome = decide_outcome(names["QUESTION"], {"gap": tables})
    drawing.write("cost", names["QUESTION"].figures["cost"], tables, tmp_path)

    costs_early = outcome.frame.loc[outcome.frame["claim"] == "costs_early", "condition"]
    assert costs_early.str.extract("(batch size [0-9]+)")[0].tolist() == ["batch size 4", "batch size 16"]
    assert {*outcome.frame["verdict"]} <= {"holds", "fails", "undecided"}
    assert "points lost" in write_paper(outcome, ["gap"])
    assert (tmp_path / "cost.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("paper=iofe", "no paper 'iofe': did you mean ioffe?"),
        ("paper=ioffe results=nowhere", "nothing that it reads has been measured in nowhere/"),
        ("paper=ioffe experiment=gap", "paper= stands without"),
    ],
)
def test_mistakes_of_the_command(words: str, message: str, call: Call) -> None:
    done = call(f"report {words}")
    assert done.code == 2
    assert message in done.err


def test_a_paper_is_redrawn_in_any_folder(tmp_path: Path, call: Call) -> None:
    for experiment in ("ghost", "small_batches"):
        (tmp_path / experiment).symlink_to(REFERENCE / experiment)
    done = call("report paper=hoffer,wu_johnson", f"results={tmp_path}")

    assert done.code == 0
    assert "Nothing of gap, model_selection, few_images, cifar10 has been measured" in (
        tmp_path / "papers" / "wu_johnson" / "README.md"
    ).read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "papers" / "hoffer").iterdir()} == {"README.md", "figures", "report.html"}


def test_where_nothing_has_been_measured_the_committed_page_is_named(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call(f"report paper=hoffer results={tmp_path}")
    assert done.code == 2
    *_, last = done.err.splitlines()
    assert last.endswith(f"it is {REFERENCE}/papers/hoffer/README.md (results={REFERENCE})")

    monkeypatch.setattr("bnlab.harness.lab.report.REFERENCE", tmp_path / "no clone")
    wheel = call(f"report paper=hoffer results={tmp_path}")
    assert wheel.err.endswith(
        "a clone of the repository has results that it is redrawn from: results=results/reference\n"
    )
