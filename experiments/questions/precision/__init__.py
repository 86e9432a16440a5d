"""Does training in bfloat16 change how far running averages are off, which momentum is best, or how many points are
lost?

Kalamkar et al. 2019 (arXiv 1905.12322): training in bfloat16 needs the same settings as in float32. Here forward passes
run under autocast; weights and running averages stay in float32. There were five seeds from the start, and all claims
were written before their numbers were known.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import (
    DEEPER,
    RATIO_OVER_LAYERS,
    gap_over_layers,
    lowest,
    paired,
    rows,
    score,
    select,
)
from bnlab.harness.reporting.plots import GAP, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, below, within
from experiments.margins import A_POINT, FLAT, HARDLY_SEEN, SIX_IMAGES
from experiments.recipes import EACH, PYTORCH

LATE = 1.0
SHARES = (0.55, LATE)  # of the training
NETWORKS = ("batch_size", "precision")  # settings in which networks differ, beside the seed
EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
AGAINST_FLOAT32: dict[str, Any] = {
    "along": "precision",
    "against": "float32",
    "matching": ("seed", "batch_size"),
}  # networks of the same seed


def average_gaps(tables: Tables) -> pd.DataFrame:
    """Average the gaps of running averages at each momentum over the deeper layers."""
    measured = rows(tables, "gaps", SHARES, NETWORKS, estimator="ema")
    gaps = gap_over_layers(measured, "mean_gap")
    return select(gaps, layers=DEEPER)


def select_best_momenta(tables: Tables) -> pd.DataFrame:
    """Select for each network the momentum with the smallest gap; `best` is that momentum."""
    best = lowest(average_gaps(tables), "mean_gap", [*EACH, "precision", "seed"])
    # `paired` compares rows of the same momentum, if there is such a column: here momenta are what is
    # compared.
    best["best"] = best["momentum"]
    return best.drop(columns="momentum")


def compute_losses(tables: Tables) -> pd.DataFrame:
    """Compute by how much running averages are less accurate than exact statistics of the same network."""
    measured = rows(tables, "evaluations", SHARES, NETWORKS, momentum=(0.1, None))
    lost = paired(measured, "accuracy", "exact")
    lost["lost"] = -lost["accuracy"]
    return lost


QUESTION = Question(
    bears_on=("Q40",),
    columns=("accuracy", "mean_gap", "largest_gap"),
    figures={
        "gap": Figure(
            "Gap against the momentum, after training in float32 and in bfloat16",
            "Compare the two lines of a panel: the gap of running averages, root mean square over the deeper "
            "layers. Their lowest points are the best momenta.",
            score(average_gaps, "mean_gap", (*EACH, "precision", "momentum"), geometric=True),
            Curves("momentum", "precision", GAP, mark=PYTORCH),
            Headline("Training in bfloat16 changes neither gaps nor the best momentum: the lines coincide",
                    {"gap_is_alike": (), "best_momentum_is_alike": ()}),
            panels="{panel}, batch size {batch_size}"),
    },
    claims={
        "bfloat16_is_as_accurate": Claim(
            "Under exact statistics networks trained in bfloat16 are within a point of those trained in float32.",
            score("evaluations", "accuracy", ("batch_size", "precision"), at=LATE, scale=100, estimator="exact",
                  **AGAINST_FLOAT32), within(-1.0, 1.0, "points gained", A_POINT), lines="each"),
        "gap_is_alike": Claim(
            "The gap of PyTorch's running average in the deeper layers is within a quarter of that after training in "
            "float32.",
            score("gaps", "mean_gap", EACH, at=SHARES, ratio=True, **EMA, **AGAINST_FLOAT32, **RATIO_OVER_LAYERS),
            within(0.8, 1.25, "times", HARDLY_SEEN), lines="each"),
        "best_momentum_is_alike": Claim(
            "The momentum with the smallest gap is within a factor of two of that after training in float32.",
            score(select_best_momenta, "best", EACH, ratio=True, geometric=True, **AGAINST_FLOAT32),
            within(0.5, 2.0, "times", FLAT), lines="each"),
        "cost_is_alike": Claim(
            "What PyTorch's running average costs against exact statistics differs by less than a point from what it "
            "costs after training in float32.",
            score(compute_losses, "lost", EACH, scale=100, **AGAINST_FLOAT32),
            within(-1.0, 1.0, "points lost", A_POINT), lines="each"),
        "autocast_measures_the_same": Claim(
            "Exact statistics measured under autocast are nowhere 0.05 standard deviations from those measured in "
            "float32, in the layer where they differ most.",
            score("autocast", "largest_gap", NETWORKS, at=LATE, measured_in="bfloat16", predicted_in="float32"),
            below(0.05, "σ", "half of an error that costs four points or more in all means"), lines="each"),
        "either_predicts_alike": Claim(
            "A network that predicts in float32 under statistics measured in bfloat16 is within 0.3 points of one with "
            "statistics measured in float32.",
            score("autocast", "accuracy", NETWORKS, at=LATE, scale=100, against="float32", along="measured_in",
                  predicted_in="float32"), within(-0.3, 0.3, "points gained", SIX_IMAGES), lines="each"),
    },
)  # fmt: skip
