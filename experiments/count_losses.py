"""python -m experiments.count_losses: list what is lost once the learning rate has fallen to 0, in LOSSES.md.

The page counts the networks of all committed experiments

- whose layers are ordinary batch norms, so that each batch is normalized whole,
- that were trained with SGD in shuffled batches of 16 to 256 images,
- at a learning rate that falls to 0, one-cycle or along a cosine, over 560 updates or more,
- to the end, without freezing batch norm before it,
- and whose weights are as training left them, neither averaged nor changed afterwards.

What they lose are points of test accuracy, on images as in training: under exact statistics of the training images, as
training shows them, minus under running averages of momentum 0.1.

A configuration is all settings that a training reads, but for the seed. Networks are named by these settings, so that
a network that several experiments have measured has the same name in all of them, and counts once.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.registry import REFERENCE
from bnlab.harness.reporting.frames import interval, select
from bnlab.harness.reporting.question import Tables
from bnlab.harness.reporting.tables import load
from bnlab.harness.reporting.wording import format_number, round_numbers
from experiments.recipes import RATE, RUNNING, SCHEDULE, select_accuracies, subtract_exact

PAGE = REFERENCE / "LOSSES.md"
LITTLE = 0.2  # points
LEAST_UPDATES = 560
COUNTED_NETWORKS: dict[str, Any] = {
    "norm": "batch",
    "optimizer": "sgd",
    "batch_size": range(16, 257),
    "order": "shuffled",
    SCHEDULE: ("onecycle", "cosine"),
    "status": "finished",
    "freeze_at": 1.0,
    "averaging": "none",
}
# Weights that were changed after training are in no table of evaluations: their experiments have tables of their own.
COUNTED_EVALUATIONS: dict[str, Any] = {
    "split": "test",
    "shift": "none",
    "statistics_split": ("train", "train_augmented"),
}
_LOW_BITS = "experiments.questions.quantized.network.build_network"
_ABOUT = """
All configurations of the committed experiments with ordinary batch norm that were trained to the end with SGD in
shuffled batches of 16 to 256 images, over 560 updates or more, at a rate that falls to 0, and whose weights were not
averaged or changed afterwards. Points are of test accuracy: under exact statistics of the training images, as training
shows them, minus under running averages of momentum 0.1; means over n seeds, with 95% intervals.
"""
_SHOWN = ["data", "model", "batch_size", "steps", SCHEDULE, RATE, "precision", "model.bits", "model.depthwise"]
_NUMBERS = ["mean", "low", "high"]


def main() -> int:
    """Write the page."""
    return run_command(_write_page, sys.argv[1:], usage=str(__doc__))


def _write_page(_words: list[str]) -> int:
    PAGE.write_text(format_page(compute_losses(load_committed())), encoding="utf-8")
    print(PAGE)
    return 0


def format_page(losses: pd.DataFrame) -> str:
    """Format the page: what is counted, and a row for each configuration, the largest loss first.

    Args:
        losses: rows of `compute_losses`.
    """
    count = f"Running averages lose {say_count(losses)}, the others {say_others(losses)}."
    lines = [
        "# What running averages lose once the learning rate has fallen to 0",
        "",
        *(_ABOUT.strip().splitlines()),
        "",
        f"{count} A configuration counts by its mean over seeds.",
        "",
        "| points lost | n | data | model | batch size | updates | schedule | peak rate | weights | measured in |",
        "|---|--:|---|---|--:|--:|---|--:|---|---|",
    ]
    for row in losses[::-1].to_dict("records"):
        experiments = ", ".join(f"[{name}]({name}/README.md)" for name in row["experiments"].split(", "))
        model = "low-bit CNN" if row["model"] == _LOW_BITS else row["model"]
        cells = [format_number(*(row[name] for name in _NUMBERS)), row["n"], row["data"], model]
        cells += [row["batch_size"], row["steps"], row[SCHEDULE], row[RATE], _describe_weights(row), experiments]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _describe_weights(row: Mapping[Hashable, Any]) -> str:
    """Say what is unusual about a network's weights: how they were rounded, and their convolutions."""
    words = []
    if row["precision"] == "bfloat16":
        words.append("bfloat16")
    if pd.notna(row["model.bits"]):
        words.append(f"{row['model.bits']:.0f} bits")
    if row["model.depthwise"] is True:
        words.append("depthwise")
    return ", ".join(words)


def load_committed() -> dict[str, Tables]:
    """Load the tables of all committed experiments that have evaluations, by the experiments' names."""
    names = [path.parts[-3] for path in sorted(REFERENCE.glob("*/tables/evaluations.parquet"))]
    return {name: load(name, REFERENCE) for name in names}


def compute_losses(experiments: Mapping[str, Tables]) -> pd.DataFrame:
    """Compute what running averages lose in each configuration that is counted.

    Args:
        experiments: the tables of each experiment, by its name.

    Returns:
        A row for each configuration, the largest loss last: the `experiments` that have measured it, the settings that
        tell it apart, and those of `interval` over seeds: `mean`, `low`, `high` (points) and `n`.
    """
    parts = []
    for name, tables in experiments.items():
        networks = select(tables["runs"], **COUNTED_NETWORKS)
        counted = {
            "runs": networks[networks["steps"] >= LEAST_UPDATES],
            "evaluations": select(tables["evaluations"], **COUNTED_EVALUATIONS),
        }
        accuracies = select_accuracies(counted, by=["run"], at=[1.0])
        lost = select(subtract_exact(accuracies), line=RUNNING)
        parts.append(lost.assign(experiments=name))

    lost = pd.concat(parts)
    lost["configuration"] = lost["run"].str.partition("/")[0]  # what follows is the seed
    # A network that was trained again on another machine has another loss there: the average over experiments counts.
    losses = interval(lost, "accuracy", ["configuration"], average="experiments", scale=-100)

    configurations = lost.groupby("configuration")
    names = configurations["experiments"].agg(lambda measured_in: ", ".join(measured_in.unique()))
    # Tables of an older experiment lack newer settings, which `first` takes from another one.
    settings = configurations.first().reindex(columns=_SHOWN)
    described = losses.join(settings, on="configuration").join(names, on="configuration")
    return described.sort_values("mean", ignore_index=True)


def say_count(losses: pd.DataFrame) -> str:
    """Say how many configurations lose little, as `less than 0.2 points in 24 of 26 configurations`.

    Args:
        losses: rows of `compute_losses`.
    """
    is_little = losses["mean"] < LITTLE
    return f"less than {LITTLE} points in {is_little.sum()} of {len(losses)} configurations"


def say_others(losses: pd.DataFrame) -> str:
    """Say what the other configurations lose, the largest loss first, as `2.6 and 0.57 points`.

    Args:
        losses: rows of `compute_losses`.
    """
    others = losses[losses["mean"] >= LITTLE].sort_values("mean", ascending=False)
    rows = others[_NUMBERS].itertuples(index=False)
    numbers = [round_numbers(mean, low, high, digits=2)[0] for mean, low, high in rows]
    return f"{' and '.join(numbers)} points"


if __name__ == "__main__":
    sys.exit(main())
