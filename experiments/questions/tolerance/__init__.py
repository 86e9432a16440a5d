"""How much error in mean and variance does the accuracy tolerate, and in which layers?

They need not be close to the true values, it is said, as long as the results are good.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Headline, Tables, above, below
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import LOST, Curves
from experiments.margins import A_POINT, AS_ACCURATE

DRAWN = (0.05, 0.1, 0.2, 0.4, 0.8)  # of errors; larger ones are in the tables


def compute_doses(tables: Tables) -> pd.DataFrame:
    """Find the accuracy lost under each error in all layers at once, in panels by batch size."""
    frame = rows(tables, "doses", layer="all")
    return name_panels(frame, "batch size {batch_size}")


EXPERIMENT = Experiment(
    bears_on=("Q16", "F20"),
    columns=("accuracy_lost",),
    figures={
        "doses": Figure(
            "What an error in the statistics of all layers costs",
            "Read up from the size of an error: in every mean, up or down by chance, or in the logarithm of every "
            "variance, of all layers at once.",
            score(compute_doses, "accuracy_lost", ("panel", "moment", "dose"), scale=100, dose=DRAWN),
            Curves("dose", "moment", LOST),
            Headline("An error of 0.1 σ in all means already costs more than a point of accuracy", {},
                    {"small_errors_are_harmless": ("means",)})),
    },
    claims={
        "small_errors_are_harmless": Claim(
            "An error of 0.1 standard deviations in all means, or 0.1 in all logarithms of variances, costs little.",
            score("doses", "accuracy_lost", ("batch_size", "moment"), scale=100, layer="all", dose=0.1),
            below(1.0, "points", A_POINT), lines="each"),
        "large_errors_cost": Claim(
            "An error of 0.8 standard deviations in all means costs more than ten points of accuracy.",
            score("doses", "accuracy_lost", ("batch_size", "moment"), scale=100, layer="all", moment="mean", dose=0.8),
            above(10.0, "points", "ten times what counts"), lines="each"),
        "earlier_layers_cost_more": Claim(
            "An error of 0.4 standard deviations in the means of one layer costs more before the last, the third.",
            score("doses", "accuracy_lost", ("batch_size", "depth"), against=3, along="depth", scale=100, dose=0.4,
                  moment="mean", depth=(1, 2)), above(0.0, "points", AS_ACCURATE),
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
