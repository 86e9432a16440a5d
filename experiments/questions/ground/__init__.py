"""After how many updates are running averages good enough, by batch size and schedule?

Every batch is full, and the number of updates is set independently of the batch size. Learning rates are picked by
validation on seeds 100 to 102 and tested on seeds 103 to 109 (`python -m experiments.tune`). At a constant rate one
network is measured after 9 to 2,250 updates, at the rate that is best after 2,250. One-cycle schedules of 36 to 2,250
updates have a rate each. All claims were written before their first number; what earlier experiments had shown is said
to be known. Where exact accuracy is below 50% a network has little to lose, and nothing is claimed; networks that
collapsed, to less than half of the median accuracy, are left out. At a constant rate in batches of 16 the rates 0.025
and 0.1 tied to five digits, and the smaller was taken, at which running averages lose a point less.
"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below
from bnlab.harness.reporting.frames import (
    BEHIND,
    average,
    gap_over_layers,
    lowest,
    name_panels,
    paired,
    rows,
    score,
    select,
)
from bnlab.harness.reporting.plots import Axis, Curves
from experiments.margins import A_POINT, SIX_IMAGES
from experiments.questions.ground.plots import Cells
from experiments.tuning import RATE, RATES, VALIDATED, find_collapses, select_tested, validate

SCHEDULE = "optimizer.schedule"
CELL = ("batch_size", SCHEDULE, "steps")
CONSTANT, ONE_CYCLE = "constant", "onecycle"
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
OF_ONE_CYCLE: dict[str, Any] = {SCHEDULE: ONE_CYCLE}
NAMES = {CONSTANT: "constant rate, mid-training", ONE_CYCLE: "falling rate, at the end"}
PYTORCH: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
ALIKE = 0.05  # difference of exact accuracies up to which batch sizes are compared
PAIRS = ((4, 16), (16, 64), (64, 256))
UPDATES = Axis("updates", log=True)
IMAGES = Axis("images seen", log=True)
BEST = Axis("momentum with the lowest test loss", log=True)
LEARNED = 0.5  # exact accuracy, on average over seeds, from which on a network has something to lose
MEASURES = ("mean_gap", "kl", "output_gap")
LARGEST_FACTOR = 1.5  # between predicted and lost points
LARGEST_ERROR = 0.3  # points
LEAST_LOST = 1.0  # points, in cases that a measure is chosen by
CASE = ("run", "step", "estimator", "momentum")


def find_rows(tables: Tables) -> pd.DataFrame:
    """Find test accuracies at the best rate: at a constant rate at all steps, of one-cycle schedules at the end.

    They come with `updates` and the columns of `find_exact`.
    """
    tested = select_tested(tables, CELL)
    frame = rows(tested, "evaluations", by=(*CELL, RATE), split="test")
    is_read = (frame[SCHEDULE] == CONSTANT) | (frame["step"] == frame["steps"])
    read = frame[is_read]
    named = read.assign(updates=read["step"], panel=read[SCHEDULE].map(NAMES))
    return named.merge(find_exact(tested), on=["run", "step"])


def find_lost(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under exact statistics of the same weights: a share, negative where statistics lose."""
    frame = find_rows(tables)
    lost = paired(frame, "accuracy")
    images = lost["updates"] * lost["batch_size"]
    return lost[~lost["is_collapsed"]].assign(images=images, hollow=~lost["is_learned"])


def find_training(tables: Tables) -> pd.DataFrame:
    """Find test accuracies during one-cycle schedules of 560 updates in batches of 64, at the best rate."""
    tested = select_tested(tables, CELL)
    frame = rows(tested, "evaluations", by=CELL, split="test")
    during = select(frame, batch_size=64, steps=560, estimator=("ema", "exact", "last_batch"), **OF_ONE_CYCLE)
    return during.assign(updates=during["step"], panel="batches of 64, one-cycle, 560 updates")


def find_learned(tables: Tables) -> pd.DataFrame:
    """Find the same of running averages with momentum 0.1, where a network has something to lose."""
    lost = select(find_lost(tables), **PYTORCH)
    return lost[lost["is_learned"]]


def find_best_momenta(tables: Tables) -> pd.DataFrame:
    """Find the momentum whose running average has the lowest test loss, for each network and number of updates."""
    frame = select(find_rows(tables), estimator="ema")
    best = lowest(frame, "loss", ["run", "step"])
    return best.assign(hollow=~best["is_learned"])


def find_larger_against_smaller(tables: Tables) -> pd.DataFrame:
    """Find how much more is lost at a batch size than at a quarter of it, at equal numbers of updates.

    Only where both have learned and their exact accuracies are within five points; the line says for how many numbers
    of updates that is so.
    """
    lost = find_learned(tables)
    pairs = []
    for small, large in PAIRS:
        both = select(lost, batch_size=(small, large))
        means = both.groupby([SCHEDULE, "updates", "batch_size"])["exact_mean"].first().unstack("batch_size")
        if set(means) != {small, large}:
            continue
        is_alike = (means[small] - means[large]).abs() <= ALIKE
        alike = means[is_alike].index
        places = pd.MultiIndex.from_frame(both[[SCHEDULE, "updates"]])
        compared = both[places.isin(alike)]
        seeds = {*select(compared, batch_size=small)["seed"]} & {*select(compared, batch_size=large)["seed"]}
        compared = select(compared, seed=seeds)
        if compared.empty:
            continue
        more = paired(compared, "accuracy", small, along="batch_size", matching=("seed", SCHEDULE, "updates"))
        count = more.groupby(SCHEDULE)["updates"].transform("nunique")
        words = f"{large} against {small}, lengths compared: " + count.astype(str)
        pairs.append(more.assign(line=words))
    return pd.concat(pairs) if pairs else lost.iloc[:0].assign(line="")


def find_fall_of_momentum(tables: Tables) -> pd.DataFrame:
    """Find the best momentum after 2,250 updates over that after 144, where both have learned."""
    best = find_best_momenta(tables)
    learned = best[best["is_learned"]]
    ends = select(learned, updates=(144, 2250))
    count = ends.groupby(["batch_size", SCHEDULE])["updates"].transform("nunique")
    # Without the columns in which both ends would have to agree.
    both = ends[count == 2].drop(columns=["step", "panel"])
    values = both.rename(columns={"momentum": "best"})
    return paired(values, "best", 144, along="updates", matching=("seed", "batch_size", SCHEDULE), ratio=True)


def find_validated(tables: Tables) -> pd.DataFrame:
    """Find validation accuracies of the tuning seeds at their end, in panels by schedule and length."""
    validated = validate(tables).sort_values([SCHEDULE, "steps"])
    return name_panels(validated, f"{{{SCHEDULE}}}, {{steps}} updates")


def find_exact(tested: Tables) -> pd.DataFrame:
    """Find the exact test accuracy of each network and step, its mean over seeds, and if that is above 50%.

    `is_collapsed` says whether the network's accuracy is below half of the median.
    """
    measured = select(tested["evaluations"], split="test", estimator="exact", statistics_split="train")
    exact = measured.merge(tested["runs"][["run", *CELL]], on="run")
    place = [*CELL, "step"]
    means = exact.groupby(place)["accuracy"].transform("mean")
    exact = exact.assign(exact_mean=means, is_learned=means > LEARNED, is_collapsed=find_collapses(exact, place))
    return exact[["run", "step", "exact_mean", "is_learned", "is_collapsed"]]


def find_cases(tables: Tables) -> pd.DataFrame:
    """Find the points that each network loses under each estimator at each step, with its gaps behind the first layer.

    Only where exact accuracy is above 50% on average over seeds; collapsed networks are left out.
    """
    tested = select_tested(tables, CELL)
    runs = tested["runs"][["run", "seed", *CELL]]
    on_test = select(tested["evaluations"], split="test").merge(runs, on="run")

    lost = paired(on_test, "accuracy").drop(columns="statistics_split")
    lost["lost"] = -100 * lost["accuracy"]
    cases = lost.merge(find_exact(tested), on=["run", "step"])
    for measure in MEASURES:
        over_layers = average(tested["gaps"][tested["gaps"]["depth"] > 1], measure, CASE)
        if measure != "kl":
            over_layers = select(gap_over_layers(tested["gaps"], measure), layers=BEHIND)
        cases = cases.merge(over_layers[[*CASE, measure]], on=list(CASE))
    is_short = (cases[SCHEDULE] == ONE_CYCLE) & (cases["steps"] == 560)
    cases["is_held_out"] = is_short | (cases["batch_size"] == 16)
    return cases[cases["is_learned"] & ~cases["is_collapsed"]]


def predict_lost(fitted: pd.DataFrame, cases: pd.DataFrame, measure: str) -> np.ndarray:
    """Predict the points that cases lose: by the monotone curve over the logarithm of a gap that fits others best."""
    curve = IsotonicRegression(out_of_bounds="clip").fit(np.log(fitted[measure]), fitted["lost"])
    points: np.ndarray = curve.predict(np.log(cases[measure]))
    return points


def choose_measure(cases: pd.DataFrame) -> str:
    """Choose the measure whose curve predicts left-out batch sizes best: the smallest median factor of what is lost."""
    errors = {}
    for measure in MEASURES:
        factors = []
        for size, left_out in cases.groupby("batch_size"):
            others = cases[cases["batch_size"] != size]
            costly = left_out[left_out["lost"] > LEAST_LOST]
            if others.empty or costly.empty:
                continue
            predicted = predict_lost(others, costly, measure)
            ratio = np.maximum(predicted, 0.01) / costly["lost"]
            factors.append(np.abs(np.log(ratio)))
        errors[measure] = float(np.median(np.concatenate(factors))) if factors else np.inf
    return min(errors, key=lambda measure: errors[measure])


def find_share_of_hits(tables: Tables) -> pd.DataFrame:
    """Find for each seed the share of held-out cases that the curve predicts to a factor of 1.5 or to 0.3 points.

    Cases count that lose over 0.3 points, or that are predicted to: of all others any curve near 0 would be right.
    """
    cases = find_cases(tables)
    fitted = cases[~cases["is_held_out"]]
    tested = cases[cases["is_held_out"]]
    if fitted["batch_size"].nunique() < 2 or tested.empty:
        raise NoRows("the measure is chosen by left-out batch sizes: two are needed to fit on, and one to test on")

    measure = choose_measure(fitted)
    predicted = predict_lost(fitted, tested, measure)
    lost = tested["lost"]
    is_near = (predicted - lost).abs() <= LARGEST_ERROR
    is_alike = (lost > 0) & lost.between(predicted / LARGEST_FACTOR, predicted * LARGEST_FACTOR)
    is_seen = (lost > LARGEST_ERROR) | (predicted > LARGEST_ERROR)

    judged = tested.assign(hits=(is_near | is_alike).astype(float))[is_seen]
    return average(judged, "hits", ["seed", "batch_size", SCHEDULE])


BOTH = (36, 144, 560, 2250)  # updates after which both schedules were measured

EXPERIMENT = Experiment(
    bears_on=("Q2", "Q4", "Q8", "Q10", "Q11", "Q14", "H2"),
    sweeps=("ground_constant", "ground_onecycle"),
    columns=("accuracy", "loss", "mean_gap", "kl", "output_gap"),
    figures={
        "training": Figure(
            "The same weights under three kinds of statistics, over training",
            "Under running averages of momentum 0.1, under exact statistics, and under the statistics of the last "
            "batch alone. Only the statistics differ: the three lines belong to the same networks.",
            score(find_training, "accuracy", ("panel", "estimator", "updates"), scale=100, momentum=(0.1, None)),
            Curves("updates", "estimator", Axis("test accuracy (%)"), across=Axis("updates"))),
        "map": Figure(
            "Points of accuracy lost under running averages",
            "Read a cell as the points of test accuracy that a network loses in eval mode, bold where the 95% interval "
            "leaves out 0: under exact statistics minus under PyTorch's running averages (momentum 0.1), of the same "
            "weights. Left, one training at a "
            "constant learning rate is measured after so many updates; right, each cell is a one-cycle training of "
            "that length, at its end. Hatched: the network has little to lose yet.",
            score(find_lost, "accuracy", ("panel", "batch_size", "updates", "hollow"), scale=-100, updates=BOTH,
                  **PYTORCH),
            Cells("updates", "batch_size", ("number of updates", "batch size"),
                  "points of accuracy lost under running averages", "the same where exact accuracy is below 50%"),
            Finding("Where the learning rate falls over 560 updates or more, running averages lose less than half a "
                    "point in batches of 16 and more",
                    {"harmless_at_the_end": ("batch size 16", "batch size 64", "batch size 256")})),
        "best_momentum": Figure(
            "The best momentum, by the number of updates",
            "Read up from a number of updates the momentum, of 0.003 to 0.9, of the running average with the lowest "
            "test loss; circles are hollow, without a band, where exact accuracy is below 50%, so that little can be "
            "lost.",
            score(find_best_momenta, "momentum", ("panel", "batch_size", "updates", "hollow"), geometric=True),
            Curves("updates", "batch_size", BEST, across=UPDATES)),
        "rates": Figure(
            "Learning rates are picked by these accuracies, under exact statistics",
            "Find the highest point of a line: validation accuracy at the end, seeds 100 to 102; a network that "
            "diverged counts with that of chance.",
            score(find_validated, "accuracy", ("panel", "batch_size", RATE), scale=100),
            Curves(RATE, "batch_size", VALIDATED, across=RATES)),
    },
    claims={
        "larger_batches_do_not_lose_more": Claim(
            "At equal numbers of updates, where exact accuracies are within five points, running averages do not lose "
            "over 0.3 points more at four times the batch size.",
            score(find_larger_against_smaller, "accuracy", ("line", SCHEDULE), average="updates", scale=-100),
            below(0.3, "points", SIX_IMAGES)),
        "harmless_at_the_end": Claim(
            "From 560 updates of a one-cycle schedule on, running averages lose less than half a point at the end "
            "(known of 560 updates, from an earlier experiment at one rate).",
            score(find_learned, "accuracy", ("batch_size", "updates"), scale=-100, updates=(560, 2250),
                  **OF_ONE_CYCLE), below(0.5, "points", "half of a point that decides")),
        "constant_rates_keep_costing": Claim(
            "At a constant rate running averages still lose over a point after 2,250 updates.",
            score(find_learned, "accuracy", ("batch_size",), scale=-100, updates=2250, **AT_CONSTANT_RATE),
            above(1.0, "points", A_POINT)),
        "long_memories_cost_after_few_updates": Claim(
            "With momentum 0.01 running averages lose over five points after 144 updates of a one-cycle schedule.",
            score(lambda tables: find_lost(tables).query("is_learned"), "accuracy", ("batch_size",), scale=-100,
                  updates=144, estimator="ema", momentum=0.01, **OF_ONE_CYCLE),
            above(5.0, "points", "0.99 to the power of 144 is a quarter: that much of 0 and 1 is left")),
        "the_best_momentum_falls": Claim(
            "The best momentum is at most half as large after 2,250 updates as after 144.",
            score(find_fall_of_momentum, "best", ("batch_size", SCHEDULE), geometric=True),
            below(0.5, "times", "momenta are a factor of three apart")),
        "one_curve": Claim(
            "What a network loses follows from its gap: one monotone curve, chosen and fitted without batches of 16 "
            "and without one-cycle schedules of 560 updates, is within a factor of 1.5 or 0.3 points in nine of ten "
            "cases of these that lose over 0.3 points or are predicted to.",
            score(find_share_of_hits, "hits", ("batch_size", SCHEDULE)),
            above(0.9, "of the cases", "as good as one reads a number off a curve")),
    },
)  # fmt: skip
