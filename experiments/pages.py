"""Pages on all questions of a folder of results: a README.md for each, and the answers in words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bnlab.harness.lab.registry import REFERENCE, is_shipped
from bnlab.harness.reporting.frames import average, interval
from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import Catalogue, write_answers, write_experiment
from bnlab.harness.reporting.tables import load
from bnlab.harness.reporting.wording import format_number
from experiments.holdout import describe_added_seeds

FIGURES = tuple(f"F{number}" for number in range(1, 22))
"""Numbers of the literature's figures that questions may bear on."""
_PAIRS = REFERENCE / "devices.csv"  # networks that were trained on a CPU and on a GPU; some are in no table any more
_STATISTICS = {"exact": "exact statistics", "ema": "running averages", "none": "no statistics"}


def write_pages(outcomes: Sequence[Outcome], results: Path) -> None:
    """Write the README.md of each question, and, unless all are the user's own, the pages of answers."""
    # Devices and added seeds are facts about the committed tables, not about a user's results.
    is_reference = results.resolve() == REFERENCE
    pages = {}
    for outcome in outcomes:
        name = outcome.experiment.name
        devices = describe_devices(load(name, results)["runs"]) if is_reference else ""
        pages[f"{name}/README.md"] = write_experiment(outcome, devices)

    if any(is_shipped(outcome.experiment.name) for outcome in outcomes):
        added_seeds = describe_added_seeds(outcomes, results) if is_reference else None
        pages |= write_answers(read_catalogue(), outcomes, added_seeds)
    for name, page in pages.items():
        path = results / name
        path.write_text(adapt_links(page, results, name), encoding="utf-8")
        print(path)


def adapt_links(page: str, results: Path, name: str) -> str:
    """Let links out of the folder of results, which are written as from results/reference, lead from where it is.

    Args:
        page: in Markdown.
        results: the folder of results.
        name: of the page's file in it, such as `ground/README.md`.
    """
    folder = Path(name).parent

    def adapt(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(REFERENCE / folder / match[1]))
        if target.is_relative_to(REFERENCE):  # to a file beside it, which the other folder has as well
            return match[0]
        return "](" + os.path.relpath(target, results / folder)

    # The match ends before the anchor of a heading, which stays as it is.
    return re.sub(r"\]\((\.\./[^)#]+)", adapt, page)


def describe_devices(runs: pd.DataFrame) -> str:
    """Compare accuracies on a CPU and on a GPU, for an experiment that was trained on both; empty for others."""
    is_gpu = runs["device"].str.contains("NVIDIA")

    if is_gpu.all() or not is_gpu.any():
        return ""

    lines = [
        "**Trained on a CPU and on a GPU.** Parts of this experiment were trained on either. Some networks of all "
        "experiments were trained on both, with the same settings and seed. Their test accuracy at the end on the GPU "
        "minus that on the CPU, in points, averaged over orders of the images and over momenta:",
        "",
        "| norm, batch size | statistics | GPU − CPU | networks | seeds |",
        "|---|---|---|--:|--:|",
    ]

    # Some of these networks are no longer in the tables, so that the pairs have a file of their own.
    pairs = pd.read_csv(_PAIRS)
    by = ["norm", "batch_size", "estimator"]
    pairs["difference"] = 100 * (pairs["gpu"] - pairs["cpu"])
    # A network with running averages of several momenta has as many rows, and counts once.
    networks = pairs.groupby(by)["run"].nunique().rename("networks")
    # Values are averaged within each seed first, because only seeds are independent of each other.
    compared = interval(average(pairs, "difference", [*by, "seed"]), "difference", by).join(networks, on=by)
    for row in compared.to_dict("records"):
        number = format_number(row["mean"], row["low"], row["high"])
        named = f"{row['norm']}, {row['batch_size']} | {_STATISTICS[row['estimator']]}"
        lines.append(f"| {named} | {number} | {row['networks']} | {row['n']} |")
    return "\n".join(lines)


def read_catalogue() -> Catalogue:
    """Read the questions Q1, Q2, … with their answers, the hypotheses with conclusions, and what stands around them."""
    folder = Path(__file__).with_name("answers")
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    # The other five files are popped, so that only questions are left.
    first = pages.pop("first")
    situations = pages.pop("situations")
    index = {}
    for part in pages.pop("index").split("## ")[1:]:
        topic, _, links = part.partition("\n")
        index[topic] = links.strip()
    last = pages.pop("last")

    hypotheses = {}
    for part in pages.pop("hypotheses").strip().split("\n\n"):
        heading, _, conclusion = part.partition("\n")
        number, _, hypothesis = heading.partition(". ")
        hypotheses[number] = (hypothesis, conclusion)

    # As words, Q10 would come before Q2.
    numbers = sorted(pages, key=lambda number: int(number[1:]))
    questions = {number: pages[number] for number in numbers}
    return Catalogue(questions, hypotheses, first, situations, index, last)
