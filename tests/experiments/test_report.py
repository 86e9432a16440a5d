"""bnlab report, on copies of the reference tables."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnlab.harness import load
from bnlab.harness.reporting.question import Tables
from bnlab.harness.schema import read_key, write_frame
from experiments import reference
from experiments.questions import momentum, quickstart
from tests.experiments.commands import ROOT, SWEEP, Call

TABLES = ROOT / "results" / "reference" / "quickstart" / "tables"
FOUND = "31.8 [28.2, 35.5]"
"""Points that the default loses after 10% of the quickstart's training at batch size 256."""
SWEEP_COMMAND = shlex.join(["bnlab", "sweep", "-m", *(word for word in SWEEP if word != "-m")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of the quickstart."""
    shutil.copytree(TABLES, tmp_path / "quickstart" / "tables")
    return tmp_path


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".parquet")


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the quickstart one of its figures: they take a second each."""
    figures = {"gap": quickstart.QUESTION.figures["gap"]}
    monkeypatch.setattr(quickstart, "QUESTION", replace(quickstart.QUESTION, figures=figures))


@pytest.mark.usefixtures("one_figure")
def test_one_experiment(folder: Path, call: Call) -> None:
    done = call("report experiment=quickstart", f"results={folder}")

    assert done.code == 0
    assert done.err == ""
    figures = ["quickstart/figures/gap.pdf", "quickstart/figures/gap.png"]
    assert list_files(folder) == [*figures, "quickstart/report.html"]
    assert re.search(rf" {re.escape(FOUND)} +n=15 +holds\n", done.out)


@pytest.mark.usefixtures("one_figure")
def test_all_of_a_folder(folder: Path, call: Call) -> None:
    (folder / "momentum" / "tables").mkdir(parents=True)
    done = call("report", f"results={folder}")

    assert done.code == 0
    assert done.err.startswith("momentum ")
    assert {"ANSWERS.md", "HYPOTHESES.md"} <= {*list_files(folder)}
    assert {"quickstart/README.md", "quickstart/report.html"} <= {*list_files(folder)}

    text = (folder / "ANSWERS.md").read_text(encoding="utf-8")
    page = (folder / "quickstart" / "report.html").read_text(encoding="utf-8")
    assert "27 points†" in text
    assert "(quickstart/README.md)" in text
    assert "(momentum/README.md)" not in text

    own = (folder / "quickstart" / "README.md").read_text(encoding="utf-8")
    assert shlex.join(["bnlab", "sweep", "experiment=quickstart", f"results={folder}"]) in own
    assert f"| {FOUND} | 15 | holds |" in own
    assert page.count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("experiment=quikstart", ["quickstart"]),
        ("results=nowhere", ["nowhere/", "bnlab sweep experiment=quickstart"]),
        ("name=mine results=nowhere", ["'mine'", "nowhere/"]),
        ("seed=3", ["seed=3: ", "experiment=NAME"]),
        ("name=", ["name=: ", "experiment=NAME"]),
        ("name=mine figure.width=wide", ["figure.width=wide: ", "1.5", "20"]),
        ("name=mine figure.width=0", ["figure.width=0: ", "1.5", "20"]),
        ("name=mine figure.format=png", ["figure.format=png: ", "pdf, svg"]),
        ("name=mine figure.style=no.mplstyle", ["figure.style=no.mplstyle: "]),
        ("name=mine name=yours", ["name=yours: ", "experiment=NAME"]),
        ("-m", ["-m: ", "--help"]),
    ],
)
def test_mistakes(words: str, named: list[str], call: Call) -> None:
    done = call(f"report {words}")

    assert done.code == 2
    assert all(each in done.err for each in named), done.err
    assert done.err.count("\n") <= 2


def test_what_fails_is_named_and_the_rest_is_decided_and_drawn(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tables: Tables) -> pd.DataFrame:
        raise KeyError("oops")

    claims = {**quickstart.QUESTION.claims}
    claims["default_costs_early"] = replace(claims["default_costs_early"], score=fail)
    figures = {"estimators": replace(quickstart.QUESTION.figures["estimators"], score=fail)}
    figures["gap"] = quickstart.QUESTION.figures["gap"]
    monkeypatch.setattr(quickstart, "QUESTION", replace(quickstart.QUESTION, claims=claims, figures=figures))

    done = call("report", f"results={folder}")

    assert done.code == 1
    where = "tests/experiments/test_report.py:"
    of_claim, of_figure = done.err.splitlines()
    assert of_claim.startswith("claim default_costs_early ") and where in of_claim
    assert of_figure.startswith("figure estimators ") and where in of_figure
    assert f"({where}" in done.out
    assert (folder / "quickstart" / "figures" / "gap.png").exists()

    page = (folder / "quickstart" / "README.md").read_text(encoding="utf-8")
    assert page.count("| holds |") > 3
    assert page.count("KeyError: 'oops'") == 1


def test_a_question_that_cannot_be_imported_is_left_out(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "quickstart", folder / "momentum")
    monkeypatch.delattr(momentum, "QUESTION")
    monkeypatch.setattr(quickstart, "QUESTION", replace(quickstart.QUESTION, figures={}))
    done = call("report", f"results={folder}")

    assert done.code == 1
    assert re.match(r"momentum .* experiment=experiments\.questions\.momentum\.QUESTION: ", done.err)
    assert (folder / "quickstart" / "README.md").exists()


def test_the_figures_of_any_sweep(results: Path, call: Call) -> None:
    done = call("report name=adhoc", f"results={results}")

    assert done.code == 0
    assert done.err == ""
    assert re.match(r"4 networks, 2 seeds\b.*\b32, 256\b", done.out)
    assert done.out.endswith(f"{results}/adhoc/report.html\n")

    names = sorted(path.name for path in (results / "adhoc" / "figures").glob("*.png"))
    assert names == ["accuracy.png", "accuracy_lost.png", "cost.png", "gap.png", "gap_training.png"]

    page = (results / "adhoc" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    assert len(rows) == 1 + 2 * 4, "of each batch size two momenta, the cumulative average and exact statistics"
    assert "src=" not in page.replace('src="data:image', "")
    assert SWEEP_COMMAND in page


def read_commands(page: Path) -> list[str]:
    """Read the commands of a report, a line each."""
    (block,) = re.findall(r"<pre><code>(.*?)</code></pre>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return html.unescape(block).splitlines()


@pytest.mark.usefixtures("no_pictures")
def test_the_commands_of_a_page_make_a_sweep_of_several_parts_again(tmp_path: Path, call: Call) -> None:
    first = tmp_path / "first"
    quick = ["steps=2", "data.images=200", "evaluate_at=final", "device=cpu", "threads=1", "hydra/launcher=basic"]
    for words in (["-m", "seed=0,1", "momentum=[0.1,0.5]"], ["seed=2"], ["-m", "seed=0,1", "momentum=[0.1,0.5]"]):
        assert call("sweep", *words, *quick, "name=parts", f"results={first}").code == 0
    assert call("report name=parts", f"results={first}").code == 0

    commands = read_commands(first / "parts" / "report.html")
    assert len(commands) == 2, "the third sweep had nothing left to do"

    again = tmp_path / "again"
    for command in commands:
        program, name, *words = shlex.split(command.replace(str(first), str(again)))
        assert program == "bnlab"
        assert call(name, *words).code == 0
    for table in ("runs", "evaluations"):
        keys = ["run"] if table == "runs" else ["run", "estimator", "momentum"]
        pd.testing.assert_frame_equal(load("parts", again)[table][keys], load("parts", first)[table][keys])


@pytest.mark.usefixtures("no_pictures")
def test_a_question_of_another_sweep_has_a_folder_there_and_the_commands_of_that_sweep(
    results: Path, call: Call
) -> None:
    (results / "adhoc").rename(results / "mine")
    assert call("report name=mine", f"results={results}").code == 0
    own_report = (results / "mine" / "report.html").read_bytes()

    assert call("report experiment=quickstart name=mine", f"results={results}").code in (0, 1)

    assert (results / "mine" / "report.html").read_bytes() == own_report

    (command,) = read_commands(results / "mine" / "quickstart" / "report.html")
    assert command.startswith(SWEEP_COMMAND)


def test_own_sweeps_are_hinted_at_with_the_command(results: Path, call: Call) -> None:
    for word in ("", " experiment=adhoc"):
        done = call(f"report{word}", f"results={results}")
        assert done.code == 2
        (line,) = done.err.splitlines()
        assert line.endswith(f" {shlex.join(['bnlab', 'report', 'name=adhoc', f'results={results}'])}")


def test_a_figure_without_values_is_left_out(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = quickstart.QUESTION.figures
    empty = replace(figures["gap"], score=lambda tables: figures["gap"].score(tables)[:0])
    monkeypatch.setattr(quickstart, "QUESTION", replace(quickstart.QUESTION, figures={"gap": empty}))
    done = call("report name=quickstart", f"results={folder}")

    assert done.code == 0, "the name of a question means the question"
    assert FOUND in done.out
    assert done.err.startswith("figure gap: ")
    assert not (folder / "quickstart" / "figures").exists()


def test_committed_tables_have_what_their_question_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = folder / "quickstart" / "tables"
    path = tables / "gaps.parquet"
    gaps = pd.read_parquet(path)
    key = ["run", "step", "estimator", "momentum", "statistics_split", "layer"]
    measured = gaps.assign(kl=1.0, channels=8)
    schema = pa.Schema.from_pandas(measured).with_metadata({"key": json.dumps(key)})
    write_frame(path, measured, schema)
    gaps[:0].to_parquet(tables / "drift.parquet")
    monkeypatch.setattr(reference, "REFERENCE", folder)

    reference.shorten_all()

    assert {*pd.read_parquet(path)} == {*gaps, "channels"}
    assert read_key(pq.read_schema(path)) == key
    assert not (tables / "drift.parquet").exists()
