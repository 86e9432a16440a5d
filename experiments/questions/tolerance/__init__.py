"""How much error in mean and variance does the accuracy tolerate, and in which layers?

They need not be close to the true values, it is said, as long as the results are good.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below
from bnlab.harness.reporting.frames import OtherThan, name_panels, rows, score
from bnlab.harness.reporting.plots import LOST, Curves, Forest
from experiments.margins import A_POINT, AS_ACCURATE


def find_doses(tables: Tables) -> pd.DataFrame:
    """Find the accuracy lost under each error in all layers at once, in panels by batch size."""
    frame = rows(tables, "doses", layer="all")
    return name_panels(frame, "batch size {batch_size}")


def find_layers(tables: Tables) -> pd.DataFrame:
    """Find the accuracy lost under an error in one layer, in panels by batch size and error; `where` is the layer."""
    frame = rows(tables, "doses", layer=OtherThan("all"))
    frame = frame.sort_values("depth", kind="stable")
    depths = frame["depth"].astype(str)
    frame["where"] = "layer " + depths
    return name_panels(frame, "batch size {batch_size}, error {dose}")


EXPERIMENT = Experiment(
    bears_on=("Q16", "F20"),
    columns=("accuracy_lost",),
    figures={
        "doses": Figure(
            "What an error in the statistics of all layers costs",
            "Read up from the size of an error: in every mean, up or down by chance, or in the logarithm of every "
            "variance, of all layers at once.",
            score(find_doses, "accuracy_lost", ("panel", "moment", "dose"), scale=100), Curves("dose", "moment", LOST),
            Finding("An error of 0.1 σ in all means already costs more than a point of accuracy", {},
                    {"small_errors_are_harmless": ("means",)})),
        "layers": Figure(
            "What an error in the statistics of one layer costs",
            "Compare the layers: errors of 0.4 and 1.6 standard deviations in every mean of one layer, up or down by "
            "chance, or as much in the logarithm of every variance.",
            score(find_layers, "accuracy_lost", ("panel", "where", "moment"), scale=100),
            Forest("where", LOST, series="moment"),
            Finding("An error of 0.4 σ in the means costs more in layers before the last",
                    {"earlier_layers_cost_more": ()})),
    },
    claims={
        "small_errors_are_harmless": Claim(
            "An error of 0.1 standard deviations in all means, or 0.1 in all logarithms of variances, costs little.",
            score("doses", "accuracy_lost", ("batch_size", "moment"), scale=100, layer="all", dose=0.1),
            below(1.0, "points", A_POINT)),
        "large_errors_cost": Claim(
            "An error of 0.8 standard deviations in all means costs more than ten points of accuracy.",
            score("doses", "accuracy_lost", ("batch_size", "moment"), scale=100, layer="all", moment="mean", dose=0.8),
            above(10.0, "points", "ten times what counts")),
        "first_layer_costs_more": Claim(
            "An error of 1.6 standard deviations in the means of one layer costs more in the first than in the last "
            "(dropped once when its numbers were known, and restored).",
            score("doses", "accuracy_lost", ("batch_size",), against=3, along="depth", scale=100, dose=1.6,
                  moment="mean", depth=1), above(0.0, "points", AS_ACCURATE)),
        "earlier_layers_cost_more": Claim(
            "An error of 0.4 standard deviations in the means of one layer costs more before the last, the third "
            "(asked when seen).",
            score("doses", "accuracy_lost", ("batch_size", "depth"), against=3, along="depth", scale=100, dose=0.4,
                  moment="mean", depth=(1, 2)), above(0.0, "points", AS_ACCURATE)),
    },
)  # fmt: skip
