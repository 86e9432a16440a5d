"""Is a running average less noisy at the end of an epoch than within it?"""

from __future__ import annotations

import pandas as pd

from bnlab import theory
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import average, interval, lowest, overlay, rows, select
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis

SHARES = (1.0,)  # of the training
NETWORK = ("batch_size", "last_batch", "seed")
TIMES = Axis("variance / that of independent batches", log=True)
CONDITION = ("batch_size", "last_batch")
KNOWN = ("momentum", "position", "batches", "spread", "last_share")


def errors(tables: Tables) -> pd.DataFrame:
    """Of each layer and position: measured and predicted variance of the EMA, and their ratio to independent batches'.

    The prediction knows the spread of the batches' means, and nothing of the EMA.
    """
    frame = rows(tables, "within_epoch", SHARES, estimator="ema_debiased")
    known = frame[[*KNOWN]].to_numpy(float).T
    predicted, independent = theory.epoch_noise(*known), theory.ema_noise(known[0], known[3])
    return frame.assign(measured=frame["noise"] / independent, predicted=predicted / independent,
                        times=frame["noise"] / predicted)  # fmt: skip


def score_course(tables: Tables) -> pd.DataFrame:
    """Measured and predicted (dashed) variance by layer, a panel for each batch size and kind of last batch."""
    frame = errors(tables)
    panel = "batch size " + frame["batch_size"].astype(str) + ", last batch " + frame["last_batch"]
    frame = frame.assign(panel=panel).sort_values(["batch_size", "last_batch"], kind="stable")
    by = ("panel", "position", "depth")
    columns = {"measured": "measured", "dashed": "predicted"}
    return overlay(**{kind: interval(frame, column, by, geometric=True) for kind, column in columns.items()})


def at_end(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last position of an epoch."""
    return frame[frame["position"] == frame["batches"]]


def over_layers(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Geometric mean over layers, then over seeds."""
    return interval(average(frame, value, NETWORK, geometric=True), value, CONDITION, geometric=True)


def score_end(tables: Tables) -> pd.DataFrame:
    """How many times the variance from independent batches that at an epoch's end is, of batches of one size."""
    return over_layers(at_end(select(errors(tables), last_batch="dropped")), "measured")


def score_dip(tables: Tables) -> pd.DataFrame:
    """How many times the variance where theory has the largest that at the end is, of batches of one size."""
    frame = select(errors(tables), last_batch="dropped")
    key = [*NETWORK, "layer"]
    highest = lowest(frame.assign(least=-frame["predicted"]), "least", key).set_index(key)["noise"]
    end = at_end(frame).join(highest.rename("highest"), on=key)
    return over_layers(end.assign(ratio=end["noise"] / end["highest"]), "ratio")


def score_small(tables: Tables) -> pd.DataFrame:
    """How many times the variance without the small last batch that with it is, at the end of an epoch."""
    end = at_end(errors(tables))
    dropped = select(end, last_batch="dropped").set_index(["run", "layer"])["noise"].rename("dropped")
    kept = select(end, last_batch="kept").join(dropped, on=["run", "layer"])
    return over_layers(kept.assign(ratio=kept["noise"] / kept["dropped"]), "ratio")


def score_fit(end: bool) -> Score:
    """How many times the predicted variance the measured one is, at the end of an epoch or over all of it."""

    def scored(tables: Tables) -> pd.DataFrame:
        frame = errors(tables)
        return over_layers(at_end(frame) if end else frame, "times")

    return scored


EXPERIMENT = Experiment(
    name="epoch_dip",
    question="Is a running average less noisy at the end of an epoch than within it?",
    answers=("F18", "Q10"),
    source="Sampling without replacement: the batches of an epoch share out the same images, so that their errors "
    "cancel once the epoch is complete.",
    columns={"within_epoch": ("layer", "depth", "last_batch", "last_share", "position", "batches", "spread",
                              "noise")},
    figures=(
        Figure("course", "The noise of the running average in the course of an epoch",
               "Weights as at the end of training, 24 epochs in orders of their own: mean square error of the average "
               "with PyTorch's momentum, over the variance that independent batches would give, by the number of "
               "batches since the epoch began. Dashed: theory for batches without replacement. Kept: the images that "
               "fill no batch are a small last one, with the weight of any other; dropped: they are left out.",
               score_course,
               Curves("position", "depth", TIMES, dashed="predicted")),
    ),
    claims=(
        Claim("end_is_better_than_independent", "At the end of an epoch of equal batches the variance is less than "
              "three quarters of that for independent batches.",
              score_end, below(0.75, "times", "theory has 0.48 for 35 batches and momentum 0.1; about half way to 1")),
        Claim("dips", "It is lower at the end than where theory has its largest value, by 15% and more.",
              score_dip, below(0.85, "times", "theory has 0.66; about half way to 1")),
        Claim("small_batch_undoes_it", "A small last batch, kept, makes the end of an epoch noisier by half and more.",
              score_small, above(1.5, "times", "theory has 3 for 40 images after batches of 256")),
        Claim("theory_predicts_the_course", "Theory predicts the variance, over all of an epoch, within a quarter.",
              score_fit(end=False), within(0.8, 1.25, "times", "24 epochs leave about a tenth to chance")),
        Claim("theory_predicts_the_end", "It predicts it at the end of an epoch within a third.",
              score_fit(end=True), within(0.75, 4 / 3, "times", "a single position is left more to chance")),
    ),
)  # fmt: skip
