"""How much error in mean and variance does the accuracy tolerate, and which gap tells what an estimator costs?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import OtherThan, Rows, name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import Curves, Forest
from bnlab.harness.reporting.style import Axis

SHARES = (1.0,)  # of the training, at which doses are measured; correlations are over all measured steps
EACH = ("batch_size", "moment")
POINT, NETWORK = ("run", "step", "estimator", "momentum", "statistics_split"), ("run", "panel", "batch_size", "seed")
METRICS = ("mean_gap", "var_gap", "kl", "tid_mean", "tid_std")
SHOWN = (*METRICS, "logit_gap")
LOST = Axis("accuracy lost (points)")
READ = "Test accuracy under exact statistics minus that of the same network after an error of that size in "


def find_doses(panel: str) -> Rows:
    """Accuracy lost under each error; `panel` names the panels, see `name_panels`."""
    return lambda tables: name_panels(rows(tables, "doses", SHARES), panel)


def find_twins(tables: Tables) -> pd.DataFrame:
    """Errors of means and of logarithms of variances, in all layers, that move normalized values as far."""
    frame = rows(tables, "doses", SHARES, layer="all")
    return frame[frame["dose"] == frame["moment"].map({"mean": 0.4, "var": 0.8})]


def find_ends(tables: Tables) -> pd.DataFrame:
    """The same error in the means of one layer alone, the first and the last; the column `place` says which."""
    frame = rows(tables, "doses", SHARES, moment="mean", dose=1.6)
    ends = select(frame, depth=(1, frame["depth"].max()))
    return ends.assign(place=ends["depth"].eq(1).map({True: "first", False: "last"}), layer="")


def correlate(tables: Tables) -> pd.DataFrame:
    """Of each network and metric, averaged over layers: Spearman's correlation with the accuracy that is lost.

    Over all estimators, momenta and steps, of which there are more than two; 0 where one of the two does not vary.
    """
    gaps = rows(tables, "gaps").groupby([*POINT], dropna=False)[[*METRICS]].mean().reset_index()
    lost = paired(rows(tables, "evaluations"), "accuracy")
    both = lost.assign(lost=-lost["accuracy"]).merge(gaps, on=[*POINT])
    found = [
        (*key, metric, correlation)
        for key, network in both.groupby([*NETWORK], sort=False)
        if len(network) > 2
        for metric, correlation in network[["lost", *SHOWN]].corr(method="spearman")["lost"].fillna(0)[1:].items()
    ]
    return pd.DataFrame(found, columns=[*NETWORK, "metric", "correlation"])


def score_better(metric: str, other: str) -> Score:
    """How much higher the correlation of a metric is than that of another one."""
    return score(correlate, "correlation", ("batch_size",), against=other, along="metric", metric=metric)


EXPERIMENT = Experiment(
    name="dose_response",
    question="How much error in mean and variance does the accuracy tolerate, and which gap tells what it costs?",
    answers=("F20", "Q16"),
    source="They need not be close to the true values, it is said, as long as the results are good.",
    columns={"doses": ("layer", "moment", "dose", "depth", "accuracy_lost"),
             "gaps": ("layer", *METRICS), "evaluations": ("accuracy", "logit_gap")},
    figures=(
        Figure("doses", "What an error in the statistics of all layers costs",
               READ + "every mean, up or down by chance, in standard deviations, or in the logarithm of every "
               "variance. At twice the error a variance moves normalized values about as far as a mean does.",
               score(find_doses("batch size {batch_size}"), "accuracy_lost", ("panel", "moment", "dose"), scale=100,
                     layer="all"),
               Curves("dose", "moment", LOST)),
        Figure("layers", "What the same error costs in one layer alone",
               READ + "the means or the logarithms of the variances of one layer, all others being exact.",
               score(find_doses("batch size {batch_size}, error {dose:g}"), "accuracy_lost",
                     ("panel", "moment", "depth"), scale=100, depth=OtherThan(0)),
               Curves("depth", "moment", LOST)),
        Figure("ranking", "How well each gap predicts the order of accuracy losses",
               "Spearman's rank correlation of a gap, averaged over layers, with the accuracy that is lost against "
               "exact statistics, over all estimators, momenta and measured steps of a network. mean_gap, var_gap and "
               "kl are distances from exact statistics, tid from those of training batches; logit_gap is measured at "
               "the network's output.",
               score(correlate, "correlation", ("panel", "metric")),
               Forest("metric", Axis("rank correlation", (-1, 1)), mark=(0.0, "no relation"))),
    ),
    claims=(
        Claim("small_errors_are_harmless", "An error of 0.1 standard deviations in all means, or of 0.1 in all "
              "logarithms of variances, costs less than a point of accuracy.",
              score("doses", "accuracy_lost", EACH, SHARES, scale=100, layer="all", dose=0.1),
              below(1.0, "points", "less than a point decides between no two networks of this size")),
        Claim("large_errors_cost", "An error of 0.8 standard deviations in all means costs more than ten points of "
              "accuracy.",
              score("doses", "accuracy_lost", EACH, SHARES, scale=100, layer="all", moment="mean", dose=0.8),
              above(10.0, "points", "ten times what counts")),
        Claim("means_cost_more", "An error in all means costs more accuracy than one in all variances that moves "
              "normalized values as far.",
              score(find_twins, "accuracy_lost", ("batch_size",), against="var", along="moment", scale=100),
              above(0.0, "points more", "a shift by 0.4 of a standard deviation, or a factor of exp(0.4) for the "
                    "standard deviation; at 0 both cost the same")),
        Claim("first_layer_costs_more", "An error of 1.6 standard deviations in the means of one layer alone costs "
              "more accuracy in the first layer than in the third, which is the last.",
              score(find_ends, "accuracy_lost", ("batch_size",), against="last", along="place", scale=100),
              above(0.0, "points", "at 0 both cost the same")),
        Claim("exact_ranks_better", "The distance of the mean from the exact one ranks what estimators cost in "
              "accuracy better than that from the means of training batches.",
              score_better("mean_gap", "tid_mean"),
              above(0.0, "rank correlation", "at 0 both rank alike; how high the correlations themselves are was seen "
                    "in an earlier trial, and is shown but not claimed")),
        Claim("both_moments_rank_better", "A divergence from exact statistics that counts mean and variance ranks what "
              "estimators cost in accuracy better than the distance of the mean alone.",
              score_better("kl", "mean_gap"), above(0.0, "rank correlation", "at 0 both rank alike")),
    ),
)  # fmt: skip
