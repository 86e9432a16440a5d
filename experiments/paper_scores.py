"""Frames that pages on papers need and no experiment has, as how much curves fall, or how far a momentum is off."""

import pandas as pd

from bnlab.harness.reporting.frames import DEEPER, gap_over_layers, name_panels, over_best, rows, select
from bnlab.harness.reporting.question import Tables
from experiments.questions.shift import select_predictions


def compute_falls(tables: Tables) -> pd.DataFrame:
    """Sum how much test accuracy falls between neighbouring checkpoints of a network, with exact and running averages.

    A curve that never falls has 0. Two checkpoints that are far apart hide what happens between them.
    """
    curves = rows(tables, "evaluations", split="test", estimator=("ema", "exact"), momentum=(0.1, None))
    # `diff` subtracts the row before, which has to be the checkpoint before.
    curves = curves.sort_values("step")
    by_network = curves.groupby(["run", "estimator"])["accuracy"]
    falls = -by_network.diff().clip(upper=0)
    totals = falls.groupby([curves["run"], curves["estimator"]]).transform("sum")
    # Each row of a network has its total, so that one row is enough.
    last = curves.assign(falls=totals).drop_duplicates(["run", "estimator"], keep="last")
    return last.assign(panel="")


def select_blocks(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end where images come in blocks of a class; the line is the norm.

    Renorm has its momentum beside it. Running averages are those that it trains with, and PyTorch's of batch norm.
    """
    settings = ("epochs", "norm", "norm.momentum")
    frame = rows(tables, "evaluations", 1.0, settings, estimator=("ema", "exact"), order="blocks:16", split="test")
    is_renorm = frame["norm"] == "renorm"
    norm_momentum = frame["norm.momentum"].where(is_renorm, 0.1)
    # Exact statistics have no momentum. Of the running averages only those of the norm's momentum are kept.
    is_kept = frame["momentum"].isna() | (frame["momentum"] == norm_momentum)

    renorm = "batch renorm " + norm_momentum.astype(str)
    frame["line"] = renorm.where(is_renorm, "batch norm")
    named = frame[is_kept].astype({"epochs": int})
    return name_panels(named, "{epochs} epochs")


def select_mixtures(tables: Tables) -> pd.DataFrame:
    """Find accuracies under statistics of test images, told apart by these and by pseudo-samples, not by estimator."""
    predictions = select_predictions(tables)
    of_test_images = predictions[predictions["images"].notna()]
    return of_test_images.drop(columns=["estimator", "momentum"])


def compute_times_over_best(tables: Tables) -> pd.DataFrame:
    """Divide each momentum's gap of the mean at the end, in the deeper layers, by that of a network's best one."""
    gaps = gap_over_layers(rows(tables, "gaps", 1.0, estimator="ema"), "mean_gap")
    return over_best(select(gaps, layers=DEEPER), "mean_gap")
