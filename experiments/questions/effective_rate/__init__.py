"""Do the points that running averages lose follow the effective learning rate, rate over squared size of the weights?

Batch norm makes a network the same at any size of the weights before it, so that an update turns large weights less
(van Laarhoven 2017, arXiv 1706.05350). The effective rate of a network is the learning rate over the squared norm of a
convolution's weights, averaged geometrically over its convolutions. These are the networks of `fashion`,
`step_schedule` and `scaled_batches`, at all steps at which they are measured; nothing is trained for it. All claims
were written before the first training. Of `real` it was known that one rate costs less on a schedule that began with a
higher one.

Correlations are by ranks, over all networks and steps of a seed.
"""

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames import paired, score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above
from experiments.recipes import SCHEDULE, name_dataset, score_each_seed, select_lost

CELL = ("data", "batch_size", SCHEDULE)
EFFECTIVE, GIVEN = "effective rate", "learning rate"
LEAST_DRAWN = 1e-4  # learning rate


def select_rates(tables: Tables) -> pd.DataFrame:
    """Find what running averages lose at each step, with the columns `rate`, `effective` and `dataset`."""
    norms = tables["weight_norms"]
    logarithms = np.log(norms["rate"] / norms["weight_norm"] ** 2)
    places = norms.assign(logarithm=logarithms).groupby(["run", "step"], as_index=False)
    rates = places[["rate", "logarithm"]].mean()
    lost = select_lost(tables, CELL).merge(rates, on=["run", "step"])
    return lost.assign(effective=np.exp(lost["logarithm"]), dataset=name_dataset(lost))


def compute_correlations(tables: Tables) -> pd.DataFrame:
    """Correlate, for each seed, what is lost with either rate, by ranks; `line` names the rate."""
    correlations = []
    for (dataset, seed), rows in select_rates(tables).groupby(["dataset", "seed"]):
        lost = -rows["accuracy"]
        for line, column in ((EFFECTIVE, "effective"), (GIVEN, "rate")):
            correlation = lost.corr(rows[column], method="spearman")
            correlations.append({"dataset": dataset, "seed": seed, "line": line, "correlation": correlation})
    return pd.DataFrame(correlations)


def compute_gain(tables: Tables) -> pd.DataFrame:
    """Subtract the correlation with the learning rate from that with the effective one."""
    return paired(compute_correlations(tables), "correlation", GIVEN, along="line", matching=("dataset", "seed"))


def select_drawn(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: a line for each schedule and batch size, in panels by data set."""
    rates = select_rates(tables)
    # At the end of a cosine nothing is lost, at a rate that would take most of the axis.
    rates = rates[rates["rate"] > LEAST_DRAWN]
    # All seeds of a step are drawn at one place, the geometric mean of theirs.
    place = rates.groupby([*CELL, "step"])["logarithm"].transform("mean")
    line = rates[SCHEDULE] + ", batches of " + rates["batch_size"].astype(str)
    return rates.assign(panel=rates["dataset"], line=line, at=np.exp(place))


QUESTION = Question(
    bears_on=("Q13", "Q17", "H2"),
    columns=("accuracy", "weight_norm", "rate"),
    remarks=(
        "**Not trained.** Of the networks that were planned these are those of `fashion`. Those of `step_schedule` and "
        "`scaled_batches` were not trained, so that the claims are decided on one of two data sets.",
    ),
    command="""# of the networks of three experiments, which are neither trained nor measured again:
bnlab sweep experiment=fashion name=effective_rate data.root=/usr/share/datasets/fashion-mnist \
'measurements=[evaluations,experiments.questions.effective_rate.measurement.WeightNorms]'
bnlab sweep experiment=step_schedule name=effective_rate data.download=true and the same measurements
bnlab sweep experiment=scaled_batches name=effective_rate data.download=true and the same measurements""",
    figures={
        "lost": Figure(
            "Points of accuracy lost under running averages, by the effective learning rate",
            "Compare the lines, which would lie on one curve if the effective rate alone decided: points of test "
            "accuracy that running averages of momentum 0.1 lose against exact statistics of the same weights, by the "
            "learning rate over the squared norm of a convolution's weights (geometric means over layers and seeds). "
            "A ResNet-20; each point of a line is a measured step. Steps at rates under 0.0001 are left out. Images of "
            "CIFAR-10 are JPEG copies.",
            score_each_seed(select_drawn, "accuracy", ("panel", "line", "at"), scale=-100),
            Curves("at", "line", Axis("points of accuracy lost"),
                   across=Axis("learning rate / squared norm of the weights", log=True)),
            networks="Fashion-MNIST; ResNet-20"),
    },
    claims={
        "losses_follow_the_effective_rate": Claim(
            "The points lost correlate with the effective rate by over 0.8, on each of the two data sets.",
            score(lambda tables: select(compute_correlations(tables), line=EFFECTIVE), "correlation", ("dataset",)),
            above(0.8, "rank correlation", "a third of the ranks' variance is left to all else"), lines="each"),
        "more_closely_than_the_learning_rate": Claim(
            "The points lost correlate more with the effective rate than with the learning rate itself, on each of "
            "the two data sets.",
            score(compute_gain, "correlation", ("dataset",)),
            above(0.0, "rank correlation more", "at 0 either says as much"), lines="each"),
    },
)  # fmt: skip
