"""bnlab report, on copies of the reference tables."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.reporting.experiment import Tables
from experiments import reference
from experiments.questions import quickstart
from tests.experiments.commands import ROOT, Call

TABLES = ROOT / "results" / "reference" / "quickstart" / "tables"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of the quickstart."""
    shutil.copytree(TABLES, tmp_path / "quickstart" / "tables")
    return tmp_path


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".parquet")


def test_one_experiment(folder: Path, call: Call) -> None:
    done = call("report experiment=quickstart", f"results={folder}")
    assert done.code == 0 and done.err == ""
    names = ("accuracy.pdf", "accuracy.png", "estimators.pdf", "estimators.png", "gap.pdf", "gap.png")
    assert list_files(folder) == [f"quickstart/figures/{name}" for name in names]
    assert "    after 10% of training, batch size 256   31.8 [28.2, 35.5]       n=15  holds\n" in done.out


def test_all_of_a_folder(folder: Path, call: Call) -> None:
    (folder / "momentum" / "tables").mkdir(parents=True)
    done = call("report", f"results={folder}")
    assert done.code == 0 and "momentum is left out" in done.err
    assert {"ANSWERS.md", "quickstart/README.md", "report.html"} <= {*list_files(folder)}
    text, page = (folder / "ANSWERS.md").read_text(), (folder / "report.html").read_text()
    assert "the start, lag and noise cost" in text and "In sorted batches" not in text
    own = (folder / "quickstart" / "README.md").read_text()
    assert f"bnlab sweep experiment=quickstart results={folder}" in own
    assert "| after 10% of training, batch size 256 | 31.8 [28.2, 35.5] | 15 | holds |" in own
    assert page.count("data:image/png;base64,") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("experiment=quikstart", "did you mean 'quickstart'?"),
        (
            "experiment=quickstart results=nowhere",
            "no results for 'quickstart' in nowhere/; run: bnlab sweep ",
        ),
        ("results=nowhere", "no results in nowhere/; run: bnlab sweep experiment=quickstart"),
        ("name=mine", "name=mine: there are experiment=NAME, beside it name=NAME, and results=FOLDER"),
        ("seed=3", "seed=3: there are experiment=NAME"),
        ("quickstart", "quickstart: there are experiment=NAME"),
        ("-m", "-m: no such option"),
    ],
)
def test_mistakes(words: str, message: str, call: Call) -> None:
    done = call(f"report {words}")
    assert done.code == 2 and message in done.err and done.err.count("\n") <= 2


def test_errors_of_a_question_have_their_line(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tables: Tables) -> None:
        raise KeyError("oops")

    claim = replace(quickstart.EXPERIMENT.claims["default_costs_early"], score=fail)  # type: ignore[arg-type]
    broken = replace(quickstart.EXPERIMENT, claims={"broken": claim})
    monkeypatch.setattr(quickstart, "EXPERIMENT", broken)
    done = call("report experiment=quickstart", f"results={folder}")
    assert done.code == 2 and "claims of quickstart (claim broken): tests/experiments/test_report.py:" in done.err


def test_a_figure_without_values_is_left_out(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = quickstart.EXPERIMENT.figures
    empty = replace(figures["gap"], score=lambda tables: figures["gap"].score(tables)[:0])
    monkeypatch.setattr(quickstart, "EXPERIMENT", replace(quickstart.EXPERIMENT, figures={"gap": empty}))
    done = call("report experiment=quickstart", f"results={folder}")
    assert done.code == 0 and "figure gap: the tables have no value for it; it is left out" in done.err


def test_committed_tables_have_what_their_question_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = folder / "quickstart" / "tables"
    gaps = pd.read_parquet(tables / "gaps.parquet")
    gaps.assign(kl=1.0, channels=8).to_parquet(tables / "gaps.parquet")
    gaps[:0].to_parquet(tables / "drift.parquet")
    monkeypatch.setattr(reference, "REFERENCE", folder)
    assert reference.main() == 0
    assert {*pd.read_parquet(tables / "gaps.parquet")} == {*gaps, "channels"}
    assert not (tables / "drift.parquet").exists()
