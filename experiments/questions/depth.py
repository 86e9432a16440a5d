"""Does the gap grow from layer to layer, and does a norm that needs no batch, placed in between, stop that?

Huang et al. 2022 (estimation shift): the error of one layer's statistics shifts the input of the next, unless a norm
that needs no batch lies between them. Running averages err by lag and noise; precise statistics err only because of the
layers before.
"""

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames import gap_over_layers, paired, rows, score, select
from bnlab.harness.reporting.plots import GAP, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below

NORMS = {"none": "batch norm everywhere", "group": "every second a group norm"}
EVERYWHERE = NORMS["none"]
RULES = {"ema": "running averages", "precise": "precise statistics"}
EACH = ("panel", "network")


def compute_gaps(tables: Tables) -> pd.DataFrame:
    """Find gaps in the deeper layers.

    `line` is the norms in words, `depth` a layer's place where batch norm is everywhere, `half` that of its network.
    """
    gaps = number_layers(tables)
    is_deeper = gaps["depth"] > 1
    deeper = gaps[is_deeper].sort_values("depth", kind="stable")

    is_resnet = deeper["model"] == "resnet"
    layers = deeper["model.depth"].astype(str)
    resnet = "ResNet-" + layers
    network = resnet.where(is_resnet, "plain net")

    depth = deeper["depth"]
    last = deeper.groupby("model")["depth"].transform("max")
    # Depths count from 1, so that depth − 1 layers lie before a layer.
    is_first_half = 2 * (depth - 1) < last
    half = np.where(is_first_half, "first", "second")
    return deeper.assign(network=network, half=half)


def number_layers(tables: Tables) -> pd.DataFrame:
    """Give layers the depth of the layer of the same name in the network with batch norm everywhere."""
    settings = ("model", "model.depth", "norm.every_second")
    frame = rows(tables, "gaps", (0.1, 1.0), settings)
    frame["line"] = frame["norm.every_second"].map(NORMS)

    # The table counts batch norms alone. Beside group norms its depth is not the place among all norms.
    everywhere = select(frame, line=EVERYWHERE)
    layers = everywhere[["model", "layer", "depth"]].drop_duplicates()
    return frame.drop(columns="depth").merge(layers)


def compute_growth(tables: Tables) -> pd.DataFrame:
    """Divide the gap over the layers of a network's second half by that of its first."""
    gaps = compute_gaps(tables)
    everywhere = select(gaps, line=EVERYWHERE)
    averaged = []
    for _, half in everywhere.groupby("half", sort=False):
        # One half at a time: `gap_over_layers` does not tell halves apart, and would average over both.
        over_layers = gap_over_layers(half, "mean_gap")
        averaged.append(over_layers)
    both = pd.concat(averaged)
    return paired(both, "mean_gap", "first", along="half", ratio=True)


FINDINGS = {
    "ema": Headline("At the end of training the gap of running averages grows with depth",
                   {"ema_grows": ("at the end of training",)}),
    "precise": Headline("The gap of precise statistics grows with depth", {"precise_grows": ()}),
}  # fmt: skip

QUESTION = Question(
    bears_on=("H7", "F12"),
    columns=("mean_gap",),
    figures={rule: Figure(
        f"The gap of {words} by layer",
        "The gap from the second layer on, in batches of {batch_size}. With group norms in between, batch norms keep "
        "their layer numbers.",
        score(compute_gaps, "mean_gap", ("network", "panel", "line", "depth"), geometric=True, estimator=rule),
        Curves("depth", "line", GAP), FINDINGS[rule], "{network}, {panel}") for rule, words in RULES.items()},
    claims={
        **{f"{rule}_grows": Claim(
            f"With batch norm everywhere the gap of {words} is larger in the network's second half than in its first.",
            score(compute_growth, "mean_gap", EACH, geometric=True, estimator=rule),
            above(1.0, "times", "1 means that it does not grow"), lines="each") for rule, words in RULES.items()},
        **{f"{rule}_is_blocked": Claim(
            f"With every second norm a group norm, the gap of {words} in batch norms of the second half is smaller.",
            score(compute_gaps, "mean_gap", EACH, against=EVERYWHERE, along="line", matching=("seed", "network"),
                  ratio=True, average="layer", geometric=True, estimator=rule, half="second"),
            below(1.0, "times", "1 means that they block nothing"), lines="each") for rule, words in RULES.items()},
    },
)  # fmt: skip
