"""bnlab report name=NAME with the words of a figure, on a copy of the committed quickstart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.experiments.commands import ROOT, Call


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(ROOT / "results" / "reference" / "quickstart" / "tables", folder / "first" / "tables")
    return folder


def test_one_command_draws_a_figure_and_prints_its_means(results: Path, call: Call) -> None:
    words = "x=momentum colour=estimator panels=layer where.batch_size=[32,256] where.estimator=ema,ema_debiased"
    done = call(f"report name=first {words} figure.width=3.25 results={results}")

    assert (done.code, done.err) == (0, "")
    figures = results / "first" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == [
        f"gap_by_momentum_estimator_layer.{end}" for end in ("pdf", "png")
    ]
    assert not (results / "first" / "report.html").exists(), "one figure is no report"
    assert "layer 9, batch size 256" in done.out


def test_versus_prints_paired_differences(results: Path, call: Call) -> None:
    words = "value=accuracy x=batch_size versus=ema where.momentum=0.1 where.estimator=ema_debiased versus=ema"
    doubled = call(f"report name=first {words} results={results}")
    assert doubled.code == 2
    assert "versus=ema: " in doubled.err

    words = "value=accuracy x=batch_size versus=exact where.momentum=0.1 where.estimator=ema"
    done = call(f"report name=first {words} at=0.1 results={results}")
    assert (done.code, done.err) == (0, "")
    assert "-31.8 [-35.5, -28.2] 15" in done.out, "what PyTorch's running average costs at batch size 256"
    assert (results / "first" / "figures" / "accuracy_by_batch_size_versus_exact.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("name=first x=momentun", ["'momentun'", "momentum"]),
        ("name=first value=acuracy", ["value=acuracy", "accuracy"]),
        ("name=first versus=exakt value=accuracy", ["no estimator exakt", "cumulative, ema"]),
        ("name=first where.batch_size=[4", ["where.batch_size=[4", "YAML"]),
        ("name=first where.batch_size=7 x=momentum", ["first: no batch_size 7: there are 4, 32, 256"]),
        ("x=momentum", ["x=", "name=NAME"]),
        ("paper=evalnorm x=momentum", ["paper="]),
    ],
)
def test_mistakes(words: str, said: list[str], results: Path, call: Call) -> None:
    done = call(f"report {words} results={results}")

    assert done.code == 2
    assert all(part in done.err for part in said), done.err
