"""Do running averages rank configurations as exact statistics do, so that a search finds the same one?

Searches compare configurations by their validation accuracy under running averages, many of them before the end of
training (successive halving). Twelve configurations of learning rate, width and weight decay for each of fifteen seeds;
all claims were written before their first number.
"""

import pandas as pd
from scipy.stats import kendalltau

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, within
from bnlab.harness.reporting.frames import lowest, rows, score, select, share_name
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import A_POINT, SIX_IMAGES

HALF, END = SHARES = (0.5, 1.0)  # of the training
SETTINGS = ("optimizer.lr", "model.width", "optimizer.weight_decay")
SEARCH = ["panel", "seed"]  # what a search compares configurations in
RULES = {"ema": "the EMA", "predictive": "predictive momentum"}
SHOWN = {"ema": "EMA (momentum 0.1)", "predictive": "predictive momentum"}


def find_accuracies(tables: Tables, split: str) -> pd.DataFrame:
    """Find the accuracies on a split of all configurations, half-way and at the end."""
    frame = rows(tables, "evaluations", SHARES, SETTINGS, split=split, statistics_split="train")
    return frame.drop(columns="momentum")


def find_agreement(tables: Tables) -> pd.DataFrame:
    """Find Kendall's rank correlation of configurations under an estimator with those under exact statistics."""
    validated = find_accuracies(tables, "val")
    checkpoint = ["panel", "run"]
    exact = select(validated, estimator="exact").set_index(checkpoint)
    expected = exact["accuracy"].rename("expected")
    pairs = validated.join(expected, on=checkpoint)

    keys = [*SEARCH, "estimator"]
    correlations = []
    for key, group in pairs.groupby(keys, sort=False):
        test = kendalltau(group["accuracy"], group["expected"])
        correlations.append((*key, test.statistic))
    return pd.DataFrame(correlations, columns=[*keys, "tau"])


def find_picks(tables: Tables) -> pd.DataFrame:
    """Find what each estimator picks by validation; `cost` is the exact statistics' test accuracy that it gives up."""
    validated = find_accuracies(tables, "val")
    validated["error"] = 1 - validated["accuracy"]
    picks = lowest(validated, "error", [*SEARCH, "estimator"])

    tested = find_accuracies(tables, "test")
    at_the_end = select(tested, estimator="exact", panel=share_name(END))
    accuracies = at_the_end.set_index("run")["accuracy"]
    picks["tested"] = picks["run"].map(accuracies)

    of_exact = select(picks, estimator="exact").set_index(SEARCH)
    best = of_exact["tested"].rename("best")
    picks = picks.join(best, on=SEARCH)
    picks["cost"] = picks["best"] - picks["tested"]
    return picks


EXPERIMENT = Experiment(
    bears_on=("Q17", "Q29"),
    columns=("accuracy",),
    figures={"agreement": Figure(
        "Agreement on the order of twelve configurations with exact statistics",
        "Kendall's rank correlation of validation accuracies; 1 is the same order.",
        score(lambda tables: find_agreement(tables).replace({"estimator": SHOWN}).rename(columns={"estimator": "line"}),
              "tau", ("panel", "line"), line=(*SHOWN.values(),)),
        Forest("line", Axis("Kendall's τ"), mark=(1.0, "the same order")),
        Finding("Running averages rank configurations as exact statistics do at the end, much less so half-way",
                {"order_is_kept_at_the_end": (), "order_is_lost_half_way": ()}))},
    claims={
        "order_is_kept_at_the_end": Claim(
            "At the end the EMA puts configurations nearly into the order of exact statistics: Kendall's rank "
            "correlation is above 0.8.",
            score(find_agreement, "tau", ("panel",), estimator="ema", panel=share_name(END)),
            above(0.8, "of τ", "nine of ten pairs are in the same order")),
        "order_is_lost_half_way": Claim(
            "Half-way it agrees less: the rank correlation is more than 0.2 lower than at the end.",
            score(find_agreement, "tau", ("estimator",), against=share_name(HALF), along="panel", matching=("seed",),
                  estimator="ema", panel=share_name(END)),
            above(0.2, "of τ", "one pair more in ten is turned round")),
        **{f"{rule}_picks_as_well_at_the_end": Claim(
            f"The configuration that is best under {words} at the end is as accurate as that under exact statistics, "
            "to 0.3 points.",
            score(find_picks, "cost", ("panel",), scale=100, estimator=rule, panel=share_name(END)),
            within(-0.3, 0.3, "points", SIX_IMAGES)) for rule, words in RULES.items()},
        "ema_misleads_half_way": Claim(
            "The configuration that is best half-way under the EMA ends over a point less accurate than the one "
            "that is best half-way under exact statistics.",
            score(find_picks, "cost", ("panel",), scale=100, estimator="ema", panel=share_name(HALF)),
            above(1.0, "points", A_POINT)),
    },
)  # fmt: skip
