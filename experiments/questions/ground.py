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

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, below
from bnlab.harness.reporting.frames import lowest, name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import LOST_OF_ANY_SIZE, Axis, Curves
from experiments.curve import CELL, SCHEDULE, find_exact, find_share_of_hits
from experiments.margins import A_POINT, SIX_IMAGES
from experiments.tuning import RATE, RATES, VALIDATED, select_tested, validate

CONSTANT, ONE_CYCLE = "constant", "onecycle"
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
OF_ONE_CYCLE: dict[str, Any] = {SCHEDULE: ONE_CYCLE}
NAMES = {CONSTANT: "constant rate", ONE_CYCLE: "one-cycle, at the end"}
PYTORCH: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
ALIKE = 0.05  # difference of exact accuracies up to which batch sizes are compared
PAIRS = ((4, 16), (16, 64), (64, 256))
UPDATES = Axis("updates", log=True)
IMAGES = Axis("images seen", log=True)
BEST = Axis("momentum with the lowest test loss", log=True)


def find_rows(tables: Tables) -> pd.DataFrame:
    """Find test accuracies at the best rate: at a constant rate at all steps, of one-cycle schedules at the end.

    Returns:
        The rows with `updates`, and the columns of `find_exact`.
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


HOLLOW = "Hollow: exact accuracy is below 50% there, so that little can be lost."

EXPERIMENT = Experiment(
    bears_on=("Q2", "Q4", "Q8", "Q10", "Q11", "Q14", "H2"),
    sweeps=("ground_constant", "ground_onecycle"),
    columns=("accuracy", "loss", "mean_gap", "kl", "output_gap"),
    figures={
        "map": Figure(
            "Points lost under running averages, by the number of updates",
            "Test accuracy of the same network under exact statistics minus that under the running average of momentum "
            f"0.1. The axis is linear up to 0.3 points and logarithmic beyond. {HOLLOW}",
            score(find_lost, "accuracy", ("panel", "batch_size", "updates", "hollow"), scale=-100, **PYTORCH),
            Curves("updates", "batch_size", LOST_OF_ANY_SIZE, across=UPDATES)),
        "map_by_images": Figure(
            "Points lost under running averages, by the number of images seen",
            f"The same against updates times batch size. {HOLLOW}",
            score(find_lost, "accuracy", ("panel", "batch_size", "images", "hollow"), scale=-100, **PYTORCH),
            Curves("images", "batch_size", LOST_OF_ANY_SIZE, across=IMAGES)),
        "best_momentum": Figure(
            "The best momentum, by the number of updates",
            f"Of 0.003 to 0.9, that of the running average with the lowest test loss. {HOLLOW}",
            score(find_best_momenta, "momentum", ("panel", "batch_size", "updates", "hollow"), geometric=True),
            Curves("updates", "batch_size", BEST, across=UPDATES)),
        "accuracy": Figure(
            "Accuracy under exact statistics, by the number of updates",
            "At learning rates that are tuned for each batch size and length (at a constant rate for 2,250 updates).",
            score(find_rows, "accuracy", ("panel", "batch_size", "updates"), scale=100, estimator="exact"),
            Curves("updates", "batch_size", Axis("test accuracy (%)"), across=UPDATES)),
        "rates": Figure(
            "Learning rates are picked by these accuracies, under exact statistics",
            "Validation accuracy at the end, seeds 100 to 102; a network that diverged counts with that of chance.",
            score(find_validated, "accuracy", ("panel", "batch_size", RATE), scale=100),
            Curves(RATE, "batch_size", VALIDATED, across=RATES)),
        "rates_running": Figure(
            "Under running averages these rates would have been picked",
            "The same under running averages of momentum 0.1.",
            score(find_validated, "running", ("panel", "batch_size", RATE), scale=100),
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
