"""Do running averages go wrong if weights oscillate between two integers in quantization-aware training?

Nagel et al. 2022 say that they do in networks with depthwise convolutions, above all at 3 bits, and measure the
statistics again after training. The claims were written before any number was known; `bnlab report paper=quantized`
decides them.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import average, paired, rows, score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above
from experiments.margins import A_POINT, AS_ACCURATE
from experiments.recipes import name_lines

NETWORKS = ("model.bits", "model.depthwise")
OF_THREE_BITS: dict[str, Any] = {"model.bits": 3, "model.depthwise": True}
OF_FOUR_BITS: dict[str, Any] = {"model.bits": 4, "model.depthwise": True}
KINDS = {True: "depthwise", False: "full convolutions"}


def compute_losses(tables: Tables) -> pd.DataFrame:
    """Compute accuracies minus those under exact statistics, at 55% of training and at its end.

    The column `line` names a network, as "3 bits, depthwise".
    """
    frame = rows(tables, "evaluations", (0.55, 1.0), NETWORKS)
    bits = frame["model.bits"].astype(str)
    kinds = frame["model.depthwise"].map(KINDS)
    return paired(frame.assign(line=bits + " bits, " + kinds), "accuracy")


def find_added(tables: Tables) -> pd.DataFrame:
    """Subtract what running averages lose at 8 bits from what they lose at 3, at the end; momentum 0.1."""
    losses = select(compute_losses(tables), panel="at the end of training", estimator="ema", momentum=0.1)
    added = paired(losses, "accuracy", 8, along="model.bits", matching=("seed", "model.depthwise"))
    return select(added, **{"model.bits": 3})


def name_layers(tables: Tables) -> pd.DataFrame:
    """Find the divergence in each layer of the depthwise networks, at the end, momentum 0.1; `line` is the bits.

    The column `kind` is depthwise or pointwise: layers of the two kinds alternate behind the first.
    """
    frame = rows(tables, "gaps", 1.0, NETWORKS, estimator="ema", momentum=0.1, **{"model.depthwise": True})
    is_depthwise = frame["depth"] % 2 == 0
    named = frame.assign(kind=is_depthwise.map({True: "depthwise", False: "pointwise"}))
    return name_lines(named, "model.bits", {3: "3 bits", 4: "4 bits", 8: "8 bits"})


def find_layers(tables: Tables) -> pd.DataFrame:
    """Average the divergence over the layers of a kind, geometrically; the first layer is left out."""
    layers = name_layers(tables)
    # The first convolution is not rounded.
    blocks = layers[layers["depth"] > 1]
    return average(blocks, "kl", ["run", "seed", "step", "panel", "model.bits", "line", "kind"], geometric=True)


ROUNDED = "characters; CNN with rounded weights"

QUESTION = Question(
    bears_on=("Q38",),
    sweeps=("quantized", "quantized_full"),
    columns=("accuracy", "kl", "mean_gap", "var_gap"),
    figures={
        "kl": Figure(
            "Divergence of running averages from exact statistics, layer by layer and by bits",
            "Compare the lines: the divergence at the end of training, with momentum 0.1 and depthwise convolutions. "
            "Layer 1 keeps its precision. Layers 2, 4 and 6 are depthwise, 3, 5 and 7 pointwise.",
            score(name_layers, "kl", ("panel", "line", "depth"), geometric=True),
            Curves("depth", "line", Axis("KL divergence (nats)", log=True)), networks=ROUNDED),
    },
    claims={
        "three_bits_cost": Claim(
            "With 3-bit weights and depthwise convolutions, running averages (momentum 0.1) lose over a point against "
            "exact statistics.",
            score("evaluations", "accuracy", ("model.bits",), at=1.0, against="exact", scale=-100, estimator="ema",
                  momentum=0.1, **OF_THREE_BITS), above(1.0, "points lost", A_POINT), lines="each"),
        "four_bits_cost": Claim(
            "With 4-bit weights and depthwise convolutions, they lose accuracy, too.",
            score("evaluations", "accuracy", ("model.bits",), at=1.0, against="exact", scale=-100, estimator="ema",
                  momentum=0.1, **OF_FOUR_BITS), above(0.0, "points lost", AS_ACCURATE),
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
