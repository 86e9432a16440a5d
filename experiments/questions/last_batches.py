"""Are running averages insensitive to the last few batches, and what does that cost in lag?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, Rows, name_panels, rows, score
from bnlab.harness.reporting.plots import EstimatorCurves, Points
from bnlab.harness.reporting.style import Axis

SHARES = (1.0,)  # of the training
SHOWN = (0.01, DEFAULT_MOMENTUM, 0.5, None)  # of the momenta, where they are lines
SETTING = ("panel", "estimator", "momentum")
KALMAN = "kalman(per=layer)"
LINES = ("ema", "cumulative", KALMAN, "predictive")
FOLLOWED, MOVED = Axis("share of a shift that is followed", (-0.03, 1.1)), Axis("change by other batches (σ)", log=True)


def find_changes(panel: str) -> Rows:
    """What each average has followed and how far it is moved; `panel` names the panels, see `name_panels`."""
    return lambda tables: name_panels(rows(tables, "last_batches", SHARES), panel)


def score_trade(tables: Tables) -> pd.DataFrame:
    """What each average has followed and how far it is moved, a panel for each batch size and number of batches."""
    find = find_changes("batch size {batch_size}, last {last}")
    followed = score(find, "followed", SETTING, average="layer")(tables)["mean"]
    moved = score(find, "moved", SETTING, average="layer", geometric=True)(tables)
    return moved.rename(columns={"mean": "moved"}).assign(followed=followed)[[*SETTING, "followed", "moved", "n"]]


def score_ema(value: str, momentum: float, last: int) -> Score:
    """A column for the EMA of a momentum and so many last batches."""
    return score("last_batches", value, ("batch_size",), SHARES, average="layer",
                 estimator="ema", momentum=momentum, last=last)  # fmt: skip


def score_forecast(value: str, against: str, *, ratio: bool = False) -> Score:
    """The forecast's value for the last 16 batches against that of PyTorch's momentum, or of Kalman's filter."""

    def find_two(tables: Tables) -> pd.DataFrame:
        return rows(tables, "last_batches", SHARES, estimator=("predictive", against), last=16,
                    momentum=(DEFAULT_MOMENTUM, None))  # fmt: skip

    return score(find_two, value, ("batch_size",), against=against, ratio=ratio, average="layer", geometric=ratio)


EXPERIMENT = Experiment(
    name="last_batches",
    question="Are running averages insensitive to the last few batches, and what does that cost in lag?",
    answers=("Q6",),
    source="The running average is said to be good because it is not too sensitive to the last few mini-batches.",
    columns={"last_batches": ("layer", "last", "followed", "moved")},
    figures=(
        Figure("trade", "Stability against delay",
               "Across: the share by which an average follows when the means of the last batches are a standard "
               "deviation higher; upwards: how far it moves when the batches before them take their place, in standard "
               "deviations, averages over layers and seeds. Right and low is better.",
               score_trade, Points(("followed", FOLLOWED), ("moved", MOVED), "estimator")),
        Figure("followed", "How soon a shift is followed",
               "The share by which an average follows when the means of so many last batches of the training are a "
               "standard deviation higher, averaged over layers; at 1 it has followed.",
               score(find_changes("batch size {batch_size}"), "followed", (*SETTING, "last"), average="layer",
                     estimator=LINES, momentum=SHOWN),
               EstimatorCurves(FOLLOWED, x="last")),
    ),
    claims=(
        Claim("few_batches_make_it", "The last 16 batches make most of PyTorch's running average.",
              score_ema("followed", DEFAULT_MOMENTUM, 16),
              above(0.5, "share", "more than half of it; 1 - 0.9^16 = 0.81 by its definition, whatever the batches")),
        Claim("one_batch_is_little", "The last batch alone does not move PyTorch's running average by much.",
              score_ema("moved", DEFAULT_MOMENTUM, 1),
              below(0.1, "σ", "the mean of 100 independent values is off by as much")),
        Claim("stable_is_slow", "A running average with momentum 0.01 has not followed half of a shift after 64 "
              "batches.",
              score_ema("followed", 0.01, 64),
              below(0.5, "share", "less than half; 1 - 0.99^64 = 0.47 by its definition, whatever the batches")),
        Claim("forecast_is_steadier", "At the end of training the last 16 batches move predictive momentum's average "
              "less than PyTorch's.",
              score_forecast("moved", "ema", ratio=True), below(1.0, "times", "at 1 both are moved as far")),
        Claim("forecast_follows_faster", "Where the last 16 batches are a standard deviation higher, predictive "
              "momentum follows further than PyTorch's running average.",
              score_forecast("followed", "ema"), above(0.0, "share", "at 0 both follow as far")),
        Claim("forecast_follows_faster_than_kalman", "Where the last 16 batches are a standard deviation higher, "
              "predictive momentum follows further than Kalman's filter, which is fitted periodically.",
              score_forecast("followed", KALMAN), above(0.0, "share", "at 0 both follow as far")),
    ),
)  # fmt: skip
