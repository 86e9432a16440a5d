"""Would another score, several averages or another memory make predictive momentum better?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, below, within
from bnlab.harness.reporting.frames import name_panels, paired, rows, score
from bnlab.harness.reporting.plots import EstimatorCurves
from bnlab.harness.reporting.style import Axis

SHARES = (1.0,)  # of the training
SCORES, CHOICES = ("qlike", "squared_error"), ("best_five", "softmax")
REMEDIES = ("best_five", "short_memory", "followed_memory")
SHOWN = ("softmax", *REMEDIES)


def score_times(column: str, estimators: tuple[str, ...], *shares: float) -> Score:
    """How many times the gap of `predictive` theirs is, over layers, at shares of training or over all of it."""
    over = ("layer",) if shares else ("layer", "epoch")
    return score("gaps", column, ("estimator", "batch_size"), shares, against="predictive", ratio=True, average=over,
                 geometric=True, estimator=estimators)  # fmt: skip


def find_ratios(tables: Tables) -> pd.DataFrame:
    """The gap over that of `predictive` in the same layer at the same step, in panels by batch size."""
    frame = rows(tables, "gaps", estimator=("predictive", *SHOWN))
    return name_panels(paired(frame, "mean_gap", "predictive", ratio=True), "batch size {batch_size}")


EXPERIMENT = Experiment(
    name="forecasts",
    question="Would another score, several averages or another memory make predictive momentum better?",
    answers=("Q6", "Q10"),
    source="Patton 2011 for the scores that noise in what is forecast leaves in order: squared error and QLIKE; "
    "Bernaciak & Griffin 2022 for weights by softmax. The memories were chosen on the networks of `quickstart`, whose "
    "numbers were known before these claims; those of the networks here were not.",
    columns={"gaps": ("layer", "mean_gap", "var_gap")},
    figures=(
        Figure("gap", "The gap of variants against that of predictive momentum",
               "Gap of the mean over that of predictive momentum in the same layer of the same network at the same "
               "step, geometric mean over layers; below 1 the variant is nearer. Best five and softmax average several "
               "momenta; the short memory scores the last 2% of the past, the followed one the last 1, 3, 10 or 30%, "
               "whichever has chosen best. {schedule}",
               score(find_ratios, "mean_gap", ("panel", "estimator", "momentum", "epoch"), average="layer",
                     geometric=True),
               EstimatorCurves(Axis("gap / that of predictive momentum", log=True))),
    ),
    claims=(
        Claim("score_is_no_matter", "Scoring variances by QLIKE or by their squared error changes the gap of the "
              "variance by less than a tenth, tiny batches included.",
              score_times("var_gap", SCORES),
              within(0.9, 1.1, "times", "the gap is flat around the best momentum")),
        Claim("choice_is_no_matter", "Averaging the best five momenta, or all by softmax, changes the gap of the mean "
              "by less than a tenth.",
              score_times("mean_gap", CHOICES),
              within(0.9, 1.1, "times", "the same")),
        Claim("memory_mends_the_end", "At the end of a one-cycle schedule a short memory of the forecasts' errors, a "
              "memory whose length follows from them, or averaging the best five momenta makes the gap smaller by a "
              "tenth or more.",
              score_times("mean_gap", REMEDIES, *SHARES),
              below(0.9, "times", "what would be worth another part")),
        Claim("memory_hurts_nowhere", "Over the whole training these three make the gap larger by less than 5%.",
              score_times("mean_gap", REMEDIES),
              below(1.05, "times", "less than seeds differ by")),
    ),
)  # fmt: skip
