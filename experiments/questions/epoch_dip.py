"""Is a running average less noisy at the end of an epoch than within it?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab import theory
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, below, within
from bnlab.harness.reporting.frames import interval, lowest, name_panels, overlay, rows, score, select
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis

SHARES = (1.0,)  # of the training
TIMES = Axis("variance / that of independent batches", log=True)
LAYERS: dict[str, Any] = {"average": "layer", "geometric": True}
CONDITION = ("batch_size", "last_batch")
KNOWN = ("momentum", "position", "batches", "spread", "last_share")


def errors(tables: Tables) -> pd.DataFrame:
    """Of each layer and position: measured and predicted variance of the EMA, and their ratio to independent batches'.

    The prediction knows the spread of the batches' means, and nothing of the EMA.
    """
    frame = rows(tables, "within_epoch", SHARES, estimator="ema_debiased")
    # Where batches share out all images evenly, no small one is left that could be kept.
    frame = frame[frame["last_batch"].eq("dropped") | frame["last_share"].lt(1)]
    known = frame[[*KNOWN]].to_numpy(float).T
    predicted, independent = theory.epoch_noise(*known), theory.ema_noise(known[0], known[3])
    return frame.assign(measured=frame["noise"] / independent, predicted=predicted / independent,
                        times=frame["noise"] / predicted)  # fmt: skip


def score_course(tables: Tables) -> pd.DataFrame:
    """Measured and predicted (dashed) variance by layer, a panel for each batch size and kind of last batch."""
    frame = name_panels(errors(tables), "batch size {batch_size}, last batch {last_batch}")
    columns = {"measured": "measured", "dashed": "predicted"}
    by = ("panel", "position", "depth")
    return overlay(**{kind: interval(frame, column, by, geometric=True) for kind, column in columns.items()})


def at_end(tables: Tables) -> pd.DataFrame:
    """The errors at the last position of an epoch."""
    return errors(tables).query("position == batches")


def find_dip(tables: Tables) -> pd.DataFrame:
    """Of equal batches, the errors at the end of an epoch and where theory has the largest; `place` says which."""
    frame = select(errors(tables), last_batch="dropped")
    highest = lowest(frame.assign(least=-frame["predicted"]), "least", ("run", "layer"))
    end = frame.query("position == batches")
    return pd.concat([highest.assign(place="highest"), end.assign(place="end")])


EXPERIMENT = Experiment(
    name="epoch_dip",
    question="Is a running average less noisy at the end of an epoch than within it?",
    answers=("F18", "Q9", "Q10"),
    source="Sampling without replacement: the batches of an epoch share out the same images, so that their errors "
    "cancel once the epoch is complete.",
    columns={"within_epoch": ("layer", "depth", "last_batch", "last_share", "position", "batches", "spread",
                              "noise")},
    figures=(
        Figure("course", "The noise of the running average in the course of an epoch",
               "Weights as at the end of training, 24 epochs in orders of their own: mean square error of the average "
               "with momentum {momentum}, over the variance that independent batches would give, by the number of "
               "batches since the epoch began. Dashed: theory for batches without replacement. Kept: the images that "
               "fill no batch are a small last one, with the weight of any other; dropped: they are left out.",
               score_course,
               Curves("position", "depth", TIMES, dashed="predicted")),
    ),
    claims=(
        Claim("end_is_better_than_independent", "At the end of an epoch of equal batches the variance of the running "
              "mean is less than three quarters of that for independent batches.",
              score(at_end, "measured", CONDITION, **LAYERS, last_batch="dropped"),
              below(0.75, "times", "theory has 0.48 for 35 batches and momentum 0.1; about half way to 1"),
              answers=("Q10",)),
        Claim("dips", "The variance of the running mean is lower at the end of an epoch of equal batches than where "
              "theory has its largest value, by 15% and more.",
              score(find_dip, "noise", CONDITION, against="highest", along="place", ratio=True, **LAYERS),
              below(0.85, "times", "theory has 0.66; about half way to 1"),
              answers=("Q10",)),
        Claim("small_batch_undoes_it", "A small last batch, kept, makes the variance of the running mean larger at the "
              "end of an epoch, by half and more.",
              score(at_end, "noise", CONDITION, against="dropped", along="last_batch", ratio=True, **LAYERS),
              above(1.5, "times", "theory has 3 for 40 images after batches of 256"),
              answers=("Q9", "Q10")),
        Claim("theory_predicts_the_course", "Theory predicts the variance of the running mean within a quarter, on "
              "average over the batches of an epoch.",
              score(errors, "times", CONDITION, average=("layer", "position"), geometric=True),
              within(0.8, 1.25, "times", "24 epochs leave about a tenth to chance"),
              answers=("Q10",)),
        Claim("theory_predicts_the_end", "Theory predicts the variance of the running mean at the end of an epoch "
              "within a third.",
              score(at_end, "times", CONDITION, **LAYERS),
              within(0.75, 4 / 3, "times", "a single position is left more to chance"),
              answers=("Q10",)),
    ),
)  # fmt: skip
