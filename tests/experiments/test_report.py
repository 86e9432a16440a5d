"""bnlab report, on copies of the reference tables."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnlab.harness import load
from bnlab.harness.lab import report
from bnlab.harness.reporting import watched
from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.schema import read_key, write_frame
from experiments import reference
from experiments.questions import momentum, quickstart
from tests.experiments.commands import ROOT, SWEEP, Call
from tests.experiments.questions.test_real_claims import SEVEN, plant

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
    figures = {"gap": quickstart.EXPERIMENT.figures["gap"]}
    monkeypatch.setattr(quickstart, "EXPERIMENT", replace(quickstart.EXPERIMENT, figures=figures))


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
        ("watch=nowhere.parquet", ["nowhere.parquet: ", "watch.history.to_parquet('nowhere.parquet')"]),
        ("watch=a.parquet name=mine", ["watch=", "experiment="]),
        ("-m", ["-m: ", "--help"]),
    ],
)
def test_mistakes(words: str, named: list[str], call: Call) -> None:
    done = call(f"report {words}")

    assert done.code == 2
    assert all(each in done.err for each in named), done.err
    assert done.err.count("\n") <= 2


def write_history(path: Path, difference: float = 0.02, **columns: Any) -> Path:
    """A history of three comparisons, the first before there were exact statistics."""
    exact = [None, 0.6, 0.7]
    running = [0.1, 0.6 - difference, 0.7]
    history = pd.DataFrame({"update": [0, 100, 200], "metric": "accuracy", "running": running, "exact": exact})
    history = history.astype({"exact": float})
    history["lost"] = history["exact"] - history["running"]
    path.parent.mkdir(exist_ok=True)
    history.assign(**columns).to_parquet(path)
    return path


@pytest.mark.parametrize("has_map", [False, True])
def test_watched_trainings_are_drawn_beside_the_map(
    has_map: bool, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "reference")
    if has_map:
        for name, table in plant(SEVEN, range(7)).items():
            (tmp_path / "real" / "tables").mkdir(parents=True, exist_ok=True)
            table.to_parquet(tmp_path / "real" / "tables" / f"{name}.parquet")
    first = write_history(tmp_path / "small" / "watch.parquet")
    second = write_history(tmp_path / "large" / "watch.parquet", 0.05)
    done = call(f"report watch={first},{second}", f"results={tmp_path}")

    assert done.code == 0
    assert done.err.count("\n") == done.err.count(f" {tmp_path}/") == (not has_map)
    assert (tmp_path / "watch" / "figures" / "map.png").exists() is has_map
    page = (tmp_path / "watch" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1 + has_map


def test_what_watched_trainings_have_lost_is_in_points(tmp_path: Path) -> None:
    """Histories in files of one name are called by their paths; of two rows of one update the last one counts."""
    small = write_history(tmp_path / "small" / "watch.parquet")
    large = write_history(tmp_path / "large" / "watch.parquet", 0.05, update=[0, 100, 100])
    tables = watched.read_histories([small, large])
    (figure,) = watched.declare_figures(tables).values()

    drawn = figure.score(tables)
    assert drawn["mean"].round(9).tolist() == [2.0, 0.0, 0.0]
    assert drawn["update"].tolist() == [100, 200, 100]
    assert drawn["line"].tolist() == [str(small), str(small), str(large)]
    lower = tables[watched.WATCHED].assign(lost=[-0.02, 0.0, 0.0])  # as of a loss
    (of_loss,) = watched.declare_figures({watched.WATCHED: lower}).values()
    assert of_loss.score({})["mean"].tolist() == [-0.02, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_validations_without_a_finite_number_are_left_out_and_counted(bad: float, tmp_path: Path) -> None:
    path = write_history(tmp_path / "watch.parquet")
    history = pd.read_parquet(path).dropna(subset=["exact"])
    history.loc[history.index[-1], ["running", "lost"]] = [bad, -bad]

    (figure,) = watched.declare_figures({watched.WATCHED: history.assign(line="a")}).values()

    means = figure.score({})["mean"]
    assert means.isna().sum() == 1
    assert means.dropna().round(9).tolist() == [2.0]  # in points all the same
    assert "1 validation " in figure.caption


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"lost": "much"}, "'lost'"),
        ({"exact": float("nan"), "lost": float("nan")}, "exact statistics"),
        ({"running": float("inf"), "lost": float("-inf")}, "running averages"),
    ],
)
def test_histories_that_are_none(columns: dict[str, Any], named: str, tmp_path: Path, call: Call) -> None:
    path = write_history(tmp_path / "watch.parquet", **columns)
    done = call(f"report watch={path}", f"results={tmp_path / 'results'}")

    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: {path}: ") and named in done.err
    assert not (tmp_path / "results").exists()


def test_a_damaged_history_and_a_table_of_something_else(folder: Path, call: Call) -> None:
    path = folder / "damaged.parquet"
    path.write_text("no parquet", encoding="utf-8")
    for other in (folder / "quickstart" / "tables" / "runs.parquet", path):
        done = call(f"report watch={other}")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(f"error: {other}: ")


def test_what_fails_is_named_and_the_rest_is_decided_and_drawn(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tables: Tables) -> pd.DataFrame:
        raise KeyError("oops")

    claims = {**quickstart.EXPERIMENT.claims}
    claims["default_costs_early"] = replace(claims["default_costs_early"], score=fail)
    figures = {"estimators": replace(quickstart.EXPERIMENT.figures["estimators"], score=fail)}
    figures["gap"] = quickstart.EXPERIMENT.figures["gap"]
    monkeypatch.setattr(quickstart, "EXPERIMENT", replace(quickstart.EXPERIMENT, claims=claims, figures=figures))

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
    monkeypatch.delattr(momentum, "EXPERIMENT")
    monkeypatch.setattr(quickstart, "EXPERIMENT", replace(quickstart.EXPERIMENT, figures={}))
    done = call("report", f"results={folder}")

    assert done.code == 1
    assert re.match(r"momentum .* experiment=experiments\.questions\.momentum\.EXPERIMENT: ", done.err)
    assert (folder / "quickstart" / "README.md").exists()


def test_the_figures_of_any_sweep(results: Path, call: Call) -> None:
    done = call("report name=adhoc", f"results={results}")

    assert done.code == 0
    assert done.err == ""
    assert re.match(r"4 networks, 2 seeds\b.*\b32, 256\b", done.out)
    assert done.out.endswith(f"{results}/adhoc/report.html\n")

    names = sorted(path.name for path in (results / "adhoc" / "figures").glob("*.png"))
    assert names == ["accuracy.png", "accuracy_lost.png", "gap.png", "gap_training.png"]

    page = (results / "adhoc" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
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
    figures = quickstart.EXPERIMENT.figures
    empty = replace(figures["gap"], score=lambda tables: figures["gap"].score(tables)[:0])
    monkeypatch.setattr(quickstart, "EXPERIMENT", replace(quickstart.EXPERIMENT, figures={"gap": empty}))
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
