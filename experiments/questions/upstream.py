"""Does it matter whether the layers before normalize with their batch or with the population?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import OtherThan, interval, overlay, rows, score, select
from bnlab.harness.reporting.plots import GAP, LOST, VARIANCE_GAP, Curves, EstimatorCurves
from experiments.margins import SIX_IMAGES

SHARES = (0.2, 1.0)  # of the training
LARGER = 4  # times the batch size
EACH, DEPTH = ("panel", "batch_size"), ("panel", "batch_size", "depth")
LAYERS: dict[str, Any] = {"average": "layer", "geometric": True}
READ = (
    "Both are of all training images and of the same weights. The first layer has no batch norm before it, there both "
    "are the same. Dashed: inversely proportional to the batch size, from the smallest one on. Each batch size has "
    "weights of its own. At 1024 rounding in torch's batch norm is larger than the distance."
)
INVERSE = "theory has 4; other batch sizes trained other weights, which may add a factor of 2"


def score_gap(column: str) -> Score:
    """A gap of precise statistics by depth, and (dashed) that of the smallest batch size, divided by the batch size."""

    def scored(tables: Tables) -> pd.DataFrame:
        gaps = rows(tables, "gaps", SHARES, estimator="precise", depth=OtherThan(1))
        measured = interval(gaps, column, DEPTH, geometric=True)
        smallest = measured["batch_size"].min()
        start = select(measured, batch_size=smallest).set_index(["panel", "depth"])["mean"]
        index = pd.MultiIndex.from_frame(measured[["panel", "depth"]])
        falling = start.reindex(index).to_numpy() * smallest / measured["batch_size"]
        return overlay(measured=measured, dashed=measured.assign(mean=falling))

    return scored


def find_size_ratios(tables: Tables) -> pd.DataFrame:
    """How many times the gap of each batch size that of a quarter of it is, of the same layer and seed."""
    gaps = rows(tables, "gaps", SHARES, estimator="precise", depth=OtherThan(1))
    smaller = gaps.assign(batch_size=LARGER * gaps["batch_size"])
    both = gaps.merge(smaller, on=["panel", "seed", "layer", "batch_size"], suffixes=("", "_smaller"))
    return both.assign(times=both["mean_gap_smaller"] / both["mean_gap"])


EXPERIMENT = Experiment(
    name="upstream",
    question="Does it matter whether the layers before normalize with their batch or with the population?",
    answers=("Q3", "Q8"),
    source="Tools for precise BN pool the moments of batches that normalize themselves; inference has no batch. By "
    "Jensen's inequality E[1/σ of a batch] is larger than 1/σ by a share of the order of 1/n_eff. Images lie "
    "channels-last, where torch 2.13's batch norm on a CPU adds up float32 values one after the other: over the "
    "million values of a batch of 1024 its rounding is larger than what is measured.",
    columns={"gaps": ("layer", "depth", "mean_gap", "var_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("gap", "How far the mean in batches is from the exact one",
               "Distance of precise BN's mean from the exact one, in standard deviations, by layer. " + READ,
               score_gap("mean_gap"), Curves("batch_size", "depth", GAP, dashed="1 / batch size")),
        Figure("variance", "How far the variance in batches is from the exact one",
               "Root mean square over channels of the logarithm of the ratio, by layer. " + READ,
               score_gap("var_gap"), Curves("batch_size", "depth", VARIANCE_GAP, dashed="1 / batch size")),
        Figure("cost", "Accuracy lost under precise BN, by batch size",
               "Test accuracy of the same network under exact statistics minus that under precise BN; above 0 exact "
               "statistics are better.",
               score("evaluations", "accuracy", (*EACH, "estimator", "momentum"), SHARES, against="exact", scale=-100,
                     estimator="precise"),
               EstimatorCurves(LOST, zero="exact population", x="batch_size")),
    ),
    claims=(
        Claim("grows_with_depth", "Precise BN's mean is farther from the exact one in the third layer than in the "
              "second.",
              score("gaps", "mean_gap", EACH, SHARES, against=2, along="depth", ratio=True, **LAYERS,
                    estimator="precise", depth=OtherThan(1)),
              above(1.0, "times", "at 1 depth makes no difference")),
        Claim("shrinks_with_batch", "A batch four times as large brings precise BN's mean four times nearer to the "
              "exact one, to a factor of 2.",
              score(find_size_ratios, "times", EACH, **LAYERS), within(2.0, 8.0, "times", INVERSE)),
        Claim("nearer_than_running", "Precise BN's mean is less than half as far from the exact one as the running "
              "average's.",
              score("gaps", "mean_gap", EACH, SHARES, against="ema", ratio=True, **LAYERS, estimator="precise",
                    depth=OtherThan(1)),
              below(0.5, "times", "an average has half of its noise with a quarter of the momentum")),
        Claim("costs_nothing", "At the end of training, in batches of 16 and more, precise BN costs less than 0.3 "
              "points against exact statistics.",
              score("evaluations", "accuracy", EACH, (1.0,), against="exact", scale=-100, estimator="precise",
                    batch_size=(16, 64, 256, 1024)),
              within(-0.3, 0.3, "points lost", SIX_IMAGES)),
    ),
)  # fmt: skip
