"""How much error in mean and variance does the accuracy tolerate, and in which layers?

It is said that they need not be close to the true values, as long as the results are good.
"""

from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import LOST, Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, above, below
from experiments.margins import A_POINT, AS_ACCURATE

DRAWN = (0.05, 0.1, 0.2, 0.4, 0.8)  # of errors; larger ones are in the tables

QUESTION = Question(
    bears_on=("Q19", "F20"),
    columns=("accuracy_lost",),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. All fifteen decide 4 of 10 conditions that the first five left undecided, and the added seeds alone "
        "decide these in the same way. No verdict of the first five became undecided or was reversed.",
    ),
    figures={
        "doses": Figure(
            "What an error in the statistics of all layers costs",
            "Points lost by the size of an error: in every mean, or in the logarithm of every variance, of all layers "
            "at once, up or down at random.",
            score("doses", "accuracy_lost", ("batch_size", "moment", "dose"), scale=100, layer="all", dose=DRAWN),
            Curves("dose", "moment", LOST,
                   across=Axis("error (σ of the mean, log of the variance)", log=True, ticks="values")),
            Headline("An error of 0.1 σ in all means already costs more than a point of accuracy", {},
                    {"small_errors_are_harmless": ("means",)}),
            panels="batch size {batch_size}"),
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
            "An error of 0.4 standard deviations in the means of one layer costs more in the first or second layer "
            "than in the third, which is the last.",
            score("doses", "accuracy_lost", ("batch_size", "depth"), against=3, along="depth", scale=100, dose=0.4,
                  moment="mean", depth=(1, 2)), above(0.0, "points", AS_ACCURATE),
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
