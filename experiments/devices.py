"""python -m experiments.devices: compare networks trained on a CPU and on a GPU with the same settings and seed.

Experiments that were measured on both kinds of device show the comparison on their pages. The pairs are found in the
committed tables by the name of the network, and kept in results/reference/devices.csv even after a table is removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import average, interval
from bnlab.harness.reporting.wording import format_number
from bnlab.harness.schema import read_frame
from bnlab.lab.command import run_command
from bnlab.lab.folders import REFERENCE

PAIRS = REFERENCE / "devices.csv"
_KEY = ["run", "estimator", "momentum"]
_SETTINGS = ["norm", "batch_size", "seed"]
_STATISTICS = {"exact": "exact statistics", "ema": "running averages", "none": "no statistics"}


def main() -> int:
    """Find the pairs in the committed tables, and add them to those that are known."""
    return run_command(_update, sys.argv[1:], usage=str(__doc__))


def _update(words: list[str]) -> int:
    """Add the pairs of the committed tables to the file; the exit code."""
    if words:
        raise UserError(f"{words[0]}: the command takes no words")
    found = find_pairs(REFERENCE)
    if PAIRS.exists():
        found = pd.concat([pd.read_csv(PAIRS), found]).drop_duplicates(_KEY, keep="last")
    found.sort_values(_KEY).to_csv(PAIRS, index=False, float_format="%.6g")
    print(f"{PAIRS}: {found['run'].nunique()} networks that were trained on both")
    return 0


def find_pairs(results: Path) -> pd.DataFrame:
    """Find networks of the same name that were trained on a CPU and on a GPU, by the tables of all experiments.

    Returns:
        A row a network and estimator: run, estimator, momentum, norm, batch_size, seed; `cpu` and `gpu`, the test
        accuracies at the end, 0 to 1.
    """
    measured = []
    for path in sorted(results.glob("*/tables/evaluations.parquet")):
        runs = read_frame(path.with_name("runs.parquet"))
        evaluations = read_frame(path)
        if "accuracy" in evaluations:
            measured.append(_select_end(runs, evaluations))
    frame = pd.concat(measured, ignore_index=True)

    is_gpu = frame["device"].str.contains("NVIDIA")
    on_cpu = frame[~is_gpu].drop_duplicates(_KEY)
    on_gpu = frame[is_gpu].drop_duplicates(_KEY)
    pairs = on_cpu.merge(on_gpu[[*_KEY, "accuracy"]], on=_KEY, suffixes=("", " gpu"))
    renamed = pairs.rename(columns={"accuracy": "cpu", "accuracy gpu": "gpu"})
    return renamed[[*_KEY, *_SETTINGS, "cpu", "gpu"]]


def _select_end(runs: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Select the accuracies at the end of training on test images as they are."""
    settings = runs[["run", "steps", "device", *_SETTINGS]]
    frame = evaluations.merge(settings, on="run")
    is_wanted = (
        (frame["step"] == frame["steps"])
        & (frame["split"] == "test")
        & (frame["shift"] == "none")
        & frame["statistics_split"].isin(["train", "none"])
        & frame["estimator"].isin(_STATISTICS)
    )
    return frame[is_wanted]


def describe_devices(runs: pd.DataFrame) -> str:
    """Write the comparison as a table in Markdown, for an experiment that was trained on both; empty for others.

    Args:
        runs: its table `runs`.
    """
    is_gpu = runs["device"].str.contains("NVIDIA")
    if is_gpu.all() or not is_gpu.any() or not PAIRS.exists():
        return ""

    lines = [
        "**Trained on a CPU and on a GPU.** Parts of this experiment were trained on either. Some networks of all "
        "experiments were trained on both, with the same settings and seed. Their test accuracy at the end on the GPU "
        "minus that on the CPU, in points, averaged over orders of the images and over momenta:",
        "",
        "| norm, batch size | statistics | GPU − CPU | networks | seeds |",
        "|---|---|---|--:|--:|",
    ]
    for row in compare(pd.read_csv(PAIRS)).to_dict("records"):
        number = format_number(row["mean"], row["low"], row["high"])
        network = f"{row['norm']}, {row['batch_size']}"
        lines.append(f"| {network} | {row['statistics']} | {number} | {row['networks']} | {row['n']} |")
    return "\n".join(lines)


def compare(pairs: pd.DataFrame) -> pd.DataFrame:
    """Compare the accuracies of pairs, in points, over seeds: a row a norm, batch size and kind of statistics."""
    by = ["norm", "batch_size", "statistics"]
    frame = pairs.assign(
        difference=100 * (pairs["gpu"] - pairs["cpu"]),
        statistics=pairs["estimator"].map(_STATISTICS),
    )
    of_seeds = average(frame, "difference", [*by, "seed"])
    compared = interval(of_seeds, "difference", by)
    networks = frame.groupby(by)["run"].nunique().rename("networks").reset_index()
    return compared.merge(networks, on=by)


if __name__ == "__main__":
    sys.exit(main())
