"""The table of docs/howto/averaged_weights.md has the numbers of committed tables, all at the end of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import score, select
from bnlab.harness.reporting.question import Score, Tables
from bnlab.harness.reporting.wording import round_numbers
from experiments.questions import real
from experiments.recipes import RATE, SCHEDULE
from tests.checks.outcomes import ROOT, read_tables

PAGE = ROOT / "docs" / "howto" / "averaged_weights.md"


def find_other_rows() -> Iterator[str]:
    """Find rows that the page lacks, and those that it has without a source."""
    expected = [*write_rows()]
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "[" in line]
    for row in sorted({*expected} - {*shown}):
        yield f"{PAGE.name} lacks: {row}"
    for row in sorted({*shown} - {*expected}):
        yield f"{PAGE.name} has what no table gives: {row}"


def write_rows() -> Iterator[str]:
    """Write the rows: lost under copied statistics, under averaged ones, and gained under new ones."""
    on_cifar10 = read_tables("real")
    for words, decay in (("short EMA, 2%", 0.99), ("long EMA, 18%", 0.999)):
        for schedule in ("cosine", "constant"):
            yield _write_row(f"{words} | CIFAR-10, {schedule}", on_cifar10, _score_real(decay, schedule))
    yield _write_row("SWA, last quarter | CIFAR-10, one-cycle", read_tables("cifar10"), _score_swa())

    on_characters = read_tables("averaging_windows")
    for words, window in (("short EMA, 2.6%", 0.0256), ("long EMA, 20%", 0.2)):
        for name, schedule in (("one-cycle", "onecycle"), ("constant", "constant")):
            yield _write_row(f"{words} | characters, {name}", on_characters, _score_windows(window, schedule))
    yield _write_row("SWA, last quarter | characters, constant", read_tables("weight_averaging"), _score_swa())


def _score_real(decay: float, schedule: str) -> list[Score]:
    """Score an average of the ResNet-20 that was trained from a rate of 0.1."""

    def lose_at_end(tables: Tables) -> pd.DataFrame:
        return select(real.compute_lost_by_averages(tables), panel=real.END)

    network: dict[str, Any] = {SCHEDULE: schedule, RATE: 0.1}
    lost = [
        score(lose_at_end, "accuracy", ("decay",), scale=-100, decay=decay, buffers=buffers, **network)
        for buffers in ("copied", "averaged")
    ]
    gained = score(real.subtract_trained, "accuracy", ("line",), scale=100, line=f"decay {decay:g}", **network)
    return [*lost, gained]


def _score_windows(window: float, schedule: str) -> list[Score]:
    """Score an average of the narrow network, whose window is a share of the updates."""
    average: dict[str, Any] = {"at": 1.0, "scale": 100, "window": window, SCHEDULE: schedule}
    lost = [
        score("averaged_weights", "accuracy_lost", (SCHEDULE,), statistics=statistics, **average)
        for statistics in ("kept", "averaged")
    ]
    trained: dict[str, Any] = {"against": 0.0, "along": "window", "matching": ("run", "statistics")}
    gained = score("averaged_weights", "accuracy", (SCHEDULE,), statistics="recomputed", **trained, **average)
    return [*lost, gained]


def _score_swa() -> list[Score]:
    """Score SWA, in `cifar10` or `weight_averaging`, under statistics of plain training images."""
    average: dict[str, Any] = {"at": 1.0, "split": "test", "statistics_split": "train", "averaging": "swa"}
    by = ("averaging",)
    lost = [
        score("evaluations", "accuracy", by, against="exact", scale=-100, estimator=estimator, **average)
        for estimator in ("stale", "averaged")
    ]
    trained: dict[str, Any] = {"against": "none", "along": "averaging", "matching": ("seed", "batch_size")}
    gained = score("evaluations", "accuracy", by, estimator="exact", scale=100, **trained, **average)
    return [*lost, gained]


def _write_row(words: str, tables: Tables, scores: list[Score]) -> str:
    """Write a row: each number with its 95% interval over seeds."""
    cells = []
    for compute in scores:
        (result,) = compute(tables).to_dict("records")
        mean, low, high = round_numbers(result["mean"], result["low"], result["high"], digits=2)
        cells.append(f"{mean} [{low}, {high}]")
    return f"| {words} | {result['n']} | {' | '.join(cells)} |"
