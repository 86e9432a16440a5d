"""Claims of questions whose trainings are to come, on planted tables, until committed ones have verdicts.

What is planted: exact accuracy rises by 10 points over the training, to 90%. Running averages lose 50 points times the
learning rate, so 20 in batches of 512; after a drop what they lost before shrinks by 0.9 with each update. The last
batch loses half of that, and two points more in batches of 32; self-tuned averages lose two fifths of it. Seeds differ
a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.lab.registry import find_question
from bnlab.harness.reporting.outcome import decide
from bnlab.harness.updates import lr_factor

TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
STEP_SHARES = (0.2, 0.35, 0.5, 0.5018, 0.5053, 0.5178, 0.625, 0.75, 0.7518, 0.7553, 0.7678, 1.0)
STEPS = {32: 22496, 128: 5616, 512: 1392}
PEAKS = {32: 0.025, 128: 0.1, 512: 0.4}
SEEDS = (0, 1, 2)
UNDECIDABLE = {"one seed", "not measured", "cannot be scored", "not tested"}

Cells = list[tuple[str, int, tuple[float, ...]]]
OF_STEPS: Cells = [("step", 128, STEP_SHARES)]
OF_SIZES: Cells = [(schedule, size, TENTHS) for schedule in ("constant", "cosine") for size in (32, 512)]
Tables = dict[str, pd.DataFrame]


def find_rate(schedule: str, step: int, size: int) -> float:
    return PEAKS[size] * lr_factor(schedule, step - 1, STEPS[size])


def lose(schedule: str, step: int, size: int) -> float:
    """The points that running averages lose."""
    lost = 50 * find_rate(schedule, step, size)
    if schedule == "step":
        for drop in (STEPS[size] // 2, 3 * STEPS[size] // 4):
            if step > drop:
                before = 50 * find_rate(schedule, drop, size)
                lost = max(lost, before * 0.9 ** (step - drop))
    return lost


def plant(cells: Cells) -> Tables:
    tables: dict[str, list[dict[str, object]]] = {"runs": [], "evaluations": []}
    for (schedule, size, shares), seed in product(cells, SEEDS):
        run = f"{schedule}-{size}/{seed}"
        described = {"run": run, "seed": seed, "data": "cifar10", "batch_size": size, "steps": STEPS[size]}
        settings = {"optimizer.schedule": schedule, "optimizer.lr": 0.1, "status": "finished"}
        tables["runs"].append({**described, **settings})
        for share in shares:
            step = round(share * STEPS[size])
            place = {"run": run, "step": step, "epoch": 16 * share}
            exact = 80 + 10 * share + 0.1 * seed
            # Seeds differ in what is lost, too.
            lost = lose(schedule, step, size) * (1 + 0.02 * seed)
            tables["evaluations"] += [{**place, **row} for row in plant_rows(exact, lost, size, seed)]
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def plant_rows(exact: float, lost: float, size: int, seed: int) -> Iterator[dict[str, object]]:
    """The rows of one network and step."""
    noisy = lost / 2 + (2.0 + 0.1 * seed if size == 32 else 0.0)
    statistics = [
        ("ema", 0.1, "train", lost),
        ("last_batch", None, "train", noisy),
        ("predictive", None, "train", 0.4 * lost),
        ("exact", None, "train", 0.3),
        ("exact", None, "train_augmented", 0.0),
    ]
    for estimator, momentum, population, points in statistics:
        named = {"estimator": estimator, "momentum": momentum, "statistics_split": population}
        yield {**named, "split": "test", "shift": "none", "accuracy": (exact - points) / 100}


def judge(name: str, tables: Tables) -> dict[str, list[str]]:
    """The verdicts of each claim; none of them is without one."""
    verdicts = decide(find_question(name), {name: tables})
    unscored = verdicts[verdicts["verdict"].isin(UNDECIDABLE)]
    assert unscored.empty, unscored[["claim", "condition", "verdict", "note"]].to_string()
    return {str(claim): rows["verdict"].to_list() for claim, rows in verdicts.groupby("claim", sort=False)}


def list_not_holding(found: dict[str, list[str]]) -> set[str]:
    return {claim for claim, verdicts in found.items() if {*verdicts} != {"holds"}}


def test_step_schedule() -> None:
    found = judge("step_schedule", plant(OF_STEPS))
    assert list_not_holding(found) == set()
    assert len(found["little_is_lost_after_a_hundred_updates"]) == 2


def test_scaled_batches() -> None:
    found = judge("scaled_batches", plant(OF_SIZES))
    # In batches of 32 the last batch loses 2 points of its own, running averages 1.25; over the last third of a cosine
    # running averages lose 2 points in batches of 512.
    expected = {
        "the_last_batch_gains_on_the_way": ["fails", "holds"],
        "the_last_third_of_a_cosine_costs_little": ["holds", "fails"],
    }
    assert {claim: found[claim] for claim in list_not_holding(found)} == expected


PLANTED = {"step_schedule": OF_STEPS, "scaled_batches": OF_SIZES}


@pytest.mark.slow  # as those of all other questions
@pytest.mark.parametrize("name", PLANTED)
def test_figures_are_drawn(name: str, tmp_path: Path) -> None:
    from bnlab.harness.reporting import drawing  # which takes long to import

    tables = plant(PLANTED[name])
    for key, figure in find_question(name).figures.items():
        drawing.write(key, figure, tables, tmp_path)
        assert (tmp_path / f"{key}.png").exists()
