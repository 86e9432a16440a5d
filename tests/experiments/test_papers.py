"""Papers, redrawn: what their files declare, what is drawn of it, and the committed pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from bnlab.harness.errors import UserError
from bnlab.harness.lab.papers import make_paper, read_paper
from bnlab.harness.lab.registry import REFERENCE
from bnlab.harness.lab.reproduction import make_experiments
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.outcome import decide_outcome
from tests.experiments.commands import Call

# Seeds 0, 1, 2 gain 2 points against the reference, give or take.
GAINS = pd.DataFrame(
    {"run": list("abcabc"), "step": 9, "estimator": ["ema"] * 3 + ["exact"] * 3, "momentum": np.nan, "split": "test"}
)
GAINS["accuracy"] = [0.72, 0.71, 0.73, 0.70, 0.69, 0.71]
RUNS = pd.DataFrame({"run": list("abc"), "seed": [0, 1, 2], "batch_size": 8, "steps": 9, "data": "planted"})
TABLES = {"runs": RUNS, "evaluations": GAINS}


def declare(**changed: Any) -> dict[str, Any]:
    """Declare a paper with a claim and a figure on planted tables."""
    gain = {"source": "evaluations", "value": "accuracy", "by": ["panel", "estimator"], "at": 1.0, "scale": 100}
    declared = yaml.safe_load("""
        {name: planted, title: A paper, authors: Nobody, year: 2020, arxiv: "1234.5678", question: Is it so,
         read: [{what: abstract, source: abstract}], not_read: [], setting: [[task, theirs, ours]], differs: [all],
         printed: [
           {id: kin, panel: kin, series: ema, x: 8, unit: "% top-1", value: 55.0, sd: 1.0, where: 1, source: a},
           {id: range, span: [2, 4], axis: images, unit: images, where: section 1, source: text}]}
    """)
    claim = {"text": "It gains a point.", "lines": "each", "margin": {"above": 1.0, "unit": "points"}}
    claim["score"] = {**gain, "by": ["batch_size"], "against": "exact", "estimator": "ema"}
    figure = {"title": "Drawn", "score": gain, "marks": ["kin", "range"]}
    figure["plot"] = {"kind": "Forest", "by": "estimator", "axis": {"label": "%"}}
    return {**declared, "claims": {"gains": claim}, "figures": {"drawn": figure}, **changed}


def test_planted_tables_give_the_expected_verdict() -> None:
    (experiment,) = make_experiments(make_paper(declare()))
    (row,) = decide_outcome(experiment, TABLES).frame.to_dict("records")
    assert row["mean"] == pytest.approx(2.0)
    assert row["verdict"] == "holds"

    declared = declare()
    declared["claims"]["gains"]["margin"] = {"below": 1.0, "unit": "points"}
    (experiment,) = make_experiments(make_paper(declared))
    assert [*decide_outcome(experiment, TABLES).frame["verdict"]] == ["fails"]


def list_grey(ax: Axes) -> list[Line2D]:
    """List the lines between black, which is that of exact statistics, and white."""
    return [line for line in ax.lines if len({*to_rgb(line.get_color())}) == 1 and 0 < to_rgb(line.get_color())[0] < 1]


@pytest.mark.parametrize("kind", ["Forest", "Curves"])
def test_printed_numbers_are_grey_and_apart(kind: str) -> None:
    declared = declare()
    if kind == "Curves":
        declared["figures"]["drawn"]["score"]["by"] = ["panel", "estimator", "batch_size"]
        declared["figures"]["drawn"]["plot"] |= {"kind": "Curves", "x": "batch_size"}
    (experiment,) = make_experiments(make_paper(declared))
    figure: Figure = experiment.figures["drawn"]
    (ours,) = drawing.draw(figure, figure.score(TABLES)).axes
    assert not list_grey(ours)
    assert [patch.get_label() for patch in ours.patches] == ["theirs: 2 to 4 images"]

    assert figure.below is not None
    printed = figure.below.score(TABLES)
    assert printed[["mean", "low", "high", "n"]].to_numpy().tolist() == [[55.0, 53.0, 57.0, 0]]
    below = drawing.draw(Figure("", "", figure.score, figure.below.plot), printed)
    (theirs,) = below.axes
    assert "% top-1" in (theirs.get_xlabel(), below.get_supylabel())
    assert ours.dataLim.bounds != theirs.dataLim.bounds
    assert list_grey(theirs)
    plt.close("all")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["colour"], 1, "planted: no key 'colour'"),
        (["printed", 0, "valu"], 1, "planted, printed: no key 'valu'; did you mean value?"),
        (["claims", "gains", "margin", "abov"], 1, "planted, claim gains: no key 'abov'; did you mean above?"),
        (["figures", "drawn", "plot", "kind"], "Bars", "planted, figure drawn: kind 'Bars'; must be one of"),
        (["figures", "drawn", "marks", 0], "kim", "planted, figure drawn: no printed number 'kim'; did you mean kin?"),
        (["claims", "gains"], {"of": "gap.x"}, "planted, claim gains: no claim 'gap.x'"),
        (["printed", 0], {"id": "a"}, "planted, printed: where is missing"),
        (["printed", 0], 3, "planted, printed: 3 is no mapping"),
        (["claims", "gains", "margin"], {"unit": "points"}, "planted, claim gains: its margin needs above, below or"),
        (["claims", "gains", "score"], {"value": "accuracy"}, "planted, claim gains: its score needs a source"),
        (["figures", "drawn", "plot", "axis"], "LOSS", "axis='*bnlab.harness.reporting.plots.LOSS"),
        (["figures", "drawn"], {"of": "gap.x"}, "planted, figure drawn: no figure 'gap.x'"),
        (["differs", 0], {"It differs": "much"}, "planted: put quotes around"),
    ],
)
def test_mistakes_in_a_file_are_named_in_a_line(path: list[Any], value: Any, message: str) -> None:
    declared = declare()
    place: Any = declared
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message) as caught:
        make_experiments(make_paper(declared))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("paper=iofe", "no paper 'iofe': did you mean ioffe?"),
        ("paper=ioffe results=nowhere", "nothing that ioffe reads has been measured in nowhere/"),
        ("paper=ioffe experiment=gap", "paper= stands without"),
    ],
)
def test_mistakes_of_the_command(words: str, message: str, call: Call) -> None:
    done = call(f"report {words}")
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("text", ["name: [a", "- a list"])
def test_a_file_that_declares_nothing_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr("bnlab.harness.lab.papers.list_papers", lambda: {"broken": path})
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: "):
        read_paper("broken")


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
