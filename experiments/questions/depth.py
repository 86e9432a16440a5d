"""Does the gap grow from layer to layer, and does a norm without a batch in between stop that?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import average, name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import GAP, Curves

SHARES = (0.1, 1.0)  # of the training
BY = ("model.name", "model.depth", "norm.every_second")
NORMS = {"none": "batch norm everywhere", "group": "every second a group norm"}
EVERYWHERE, MIXED = NORMS.values()
LINE = ("panel", "line", "depth")
EACH = ("panel", "network")
HALF = ("run", "seed", *EACH, "estimator", "momentum", "statistics_split", "half")
READ = (
    "In standard deviations of the layer, at one step of networks that are trained in batches of {batch_size}. Where "
    "every second norm is a group norm, the batch norms that remain keep their numbers."
)


def find_gaps(tables: Tables) -> pd.DataFrame:
    """Gaps behind the first layer, by network and norms in words; `depth` is the place where batch norm is everywhere.

    In the first layer images come in as they are: what is before a layer has no part in its gap there.
    """
    frame = rows(tables, "gaps", SHARES, BY)
    known = ["model.name", "layer", "depth"]
    places = frame.loc[frame["norm.every_second"].eq("none"), known].drop_duplicates()
    placed = frame.drop(columns="depth").merge(places, on=known[:2])
    network = ("ResNet-" + placed["model.depth"].astype(int).astype(str)).where(
        placed["model.name"] == "resnet", "plain net"
    )
    return placed.assign(network=network, norms=placed["norm.every_second"].replace(NORMS)).query("depth > 1")


def find_lines(tables: Tables) -> pd.DataFrame:
    """The gaps in panels by network and share of the training."""
    found = find_gaps(tables).sort_values("depth", kind="stable")
    return name_panels(found.rename(columns={"panel": "when", "norms": "line"}), "{network}, {when}")


def find_halves(tables: Tables) -> pd.DataFrame:
    """The gaps with the column `half` of a network, first or second."""
    found = find_gaps(tables)
    behind = found["depth"] - 1
    first = 2 * behind <= behind.groupby(found["network"]).transform("max")
    return found.assign(half=first.map({True: "first", False: "second"}))


def find_growth(tables: Tables) -> pd.DataFrame:
    """How many times as large the gap is in a network's second half as in its first, over layers."""
    means = average(select(find_halves(tables), norms=EVERYWHERE), "mean_gap", HALF, geometric=True)
    return paired(means, "mean_gap", "first", along="half", ratio=True)


def find_blocking(tables: Tables) -> pd.DataFrame:
    """How many times as large the gaps with group norms in between are, in the same layers and from the same seed."""
    found = find_halves(tables)
    return paired(found, "mean_gap", EVERYWHERE, along="norms", matching=("seed", "network"), ratio=True)


def score_growth(estimator: str) -> Score:
    """By network and share of the training."""
    return score(find_growth, "mean_gap", EACH, geometric=True, estimator=estimator)


def score_blocking(estimator: str) -> Score:
    """In the second half, by network and share of the training."""
    return score(find_blocking, "mean_gap", EACH, average="layer", geometric=True, half="second",
                 estimator=estimator)  # fmt: skip


EXPERIMENT = Experiment(
    name="depth",
    question="Does the gap grow from layer to layer, and does a norm without a batch in between stop that?",
    answers=("F12", "H7"),
    source="Huang et al. 2022 (estimation shift, arXiv 2203.10778): the error of one layer's statistics shifts "
    "the input of the next; a norm that needs no batch, one in each block, takes the shift away. Running averages err "
    "by lag and noise; precise statistics only because the layers before normalize with their batches. After each "
    "pooling a channel has fewer pixels, which makes both less certain as well.",
    columns={"gaps": ("layer", "depth", "mean_gap")},
    figures=tuple(
        Figure(name, title, f"Distance of {what} from the exact population mean by layer, from the second on. {READ}",
               score(find_lines, "mean_gap", LINE, geometric=True, estimator=estimator), Curves("depth", "line", GAP))
        for name, estimator, title, what in (
            ("running", "ema", "The gap of running averages by layer", "the EMA's mean"),
            ("precise", "precise", "The gap of precise statistics by layer", "precise BN's mean"),
        )
    ),
    claims=tuple(
        claim
        for estimator, words in (("ema", "running averages"), ("precise", "precise statistics"))
        for claim in (
            Claim(f"{estimator}_grows", f"With batch norm everywhere the gap of {words} is larger in the second half "
                  "of the network than in the first.",
                  score_growth(estimator), above(1.0, "times", "at 1 it does not grow"), answers=("H7",)),
            Claim(f"{estimator}_is_blocked", f"With a group norm in place of every second batch norm the gap of "
                  f"{words} in the batch norms that remain in the second half is smaller than in the same layers with "
                  "batch norm everywhere.",
                  score_blocking(estimator), below(1.0, "times", "at 1 they block nothing"), answers=("F12",)),
        )
    ),
)  # fmt: skip
