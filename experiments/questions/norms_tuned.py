"""Which norm is most accurate after 2,250 updates, each at its own learning rate?

Wu & He 2018 (group norm), Ioffe 2017 (renormalization), Ruff 2017 (gain control). Networks train on full batches of 4,
32 and 128 with a one-cycle schedule. The rate of each norm and batch size is picked by validation on seeds 100 to 102,
under exact statistics where a norm has them, and tested on seeds 103 to 109. We tried 0.025, 0.1 and 0.4. If the best
rate was the largest or smallest, we also tried the next one beyond it, a factor of four away. Batches of 128 see 32
times the images of batches of 4. All claims were written before their first number; an earlier experiment with three
rates had shown that group norm does not win in batches of 4. Networks that collapsed are left out of all claims and of
the figure.
"""

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames import paired, put_in_order, rows, score, select
from bnlab.harness.reporting.plots import Axis, Curves, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below
from experiments.margins import A_POINT, AS_ACCURATE, GAINS
from experiments.recipes import (
    RATE,
    VALIDATED,
    compute_chance,
    score_each_seed,
    select_collapses,
    select_tested,
    validate,
)

CELL = ("norm", "norm.momentum", "batch_size")
EACH = ("line", "batch_size")
NAMES = {"batch": "batch norm", "renorm": "batch renorm", "group": "group norm", "gain_control": "gain control"}
BATCH = NAMES["batch"]
EXACT = "batch norm, exact statistics"
GROUP = NAMES["group"]
GAIN = NAMES["gain_control"]
RENORMS = ("batch renorm 0.01", "batch renorm 0.1")
STATISTICS = ("running averages", "exact statistics", "no statistics")


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find test accuracies at the end, each norm at its best rate; the line is the norm, and if statistics are exact.

    `is_collapsed` says whether a network's accuracy is below half of the median of its line and batch size. A network
    that has diverged counts as collapsed, with the accuracy of chance.
    """
    tested = select_tested(tables)
    frame = rows(tested, "evaluations", 1.0, (*CELL, RATE), split="test", estimator=("ema", "none", "exact"))
    frame["line"] = _name_norms(frame) + np.where(frame["estimator"] == "exact", ", exact statistics", "")
    # Only columns that rows of diverged networks, which are made from `runs`, have as well.
    measured = frame[["run", "seed", "line", "batch_size", "norm", "step", "panel", "accuracy"]]
    measured = measured.assign(is_collapsed=select_collapses(measured, EACH))

    runs = tested["runs"]
    # A network that has diverged has no accuracy at the end. Left out, it would make its norm look better
    # than it is.
    diverged = runs[runs["status"] == "diverged"]
    lost = diverged.assign(
        line=_name_norms(diverged),
        step=diverged["steps"],
        panel=frame["panel"].iloc[0],
        accuracy=compute_chance(diverged),
        is_collapsed=True,
    )
    return pd.concat([measured, lost[list(measured)]], ignore_index=True)


def _name_norms(frame: pd.DataFrame) -> pd.Series:
    """Name the norm of each row, with the momentum that it trains with if it has one."""
    momenta = frame["norm.momentum"].map(lambda momentum: "" if np.isnan(momentum) else f" {momentum:g}").astype(str)
    named: pd.Series = frame["norm"].replace(NAMES) + momenta
    return named


def select_validated(tables: Tables) -> pd.DataFrame:
    """Find validation accuracies of the tuning seeds at their end; the line is the norm."""
    validated = validate(tables)
    return validated.assign(line=_name_norms(validated))


def compute_gains(tables: Tables) -> pd.DataFrame:
    """Find accuracies minus those of batch norm of the same seed, under both of its statistics, without collapses."""
    frame = select_accuracies(tables)
    both = []
    for name in (BATCH, EXACT):
        reference = frame[(frame["line"] == name) & ~frame["is_collapsed"]]
        others = frame[(frame["line"] != name) & ~frame["is_collapsed"]]
        # A seed whose reference has collapsed has no pair.
        matched = others[others["seed"].isin(reference["seed"])]
        gains = paired(pd.concat([reference, matched]), "accuracy", name, along="line", matching=("seed", "batch_size"))
        gains["gainer"] = gains["line"]
        gains["line"] = f"against {name}"
        both.append(gains)
    return pd.concat(both)


def name_gains(tables: Tables) -> pd.DataFrame:
    """Name the rows of `compute_gains` by their norm, and series by the statistics of these."""
    gains = select(compute_gains(tables), line=f"against {BATCH}")
    norm = gains["gainer"].str.removesuffix(", exact statistics")
    words = pd.Series("running averages", gains.index)
    words = words.mask(norm != gains["gainer"], "exact statistics").mask(norm.isin((GROUP, GAIN)), "no statistics")
    in_order = put_in_order(gains.assign(norm=norm, words=words), "words", STATISTICS)
    return put_in_order(in_order, "norm", [BATCH, *RENORMS, GAIN, GROUP])


QUESTION = Question(
    bears_on=("Q41", "H5", "F5", "F6", "F13"),
    sweeps=("norms_tuned_rates", "norms_tuned_renorm_rates", "norms_tuned", "norms_tuned_renorm"),
    columns=("accuracy",),
    figures={
        "accuracy": Figure(
            "Accuracy gained against batch norm after 2,250 updates, each norm at its own learning rate",
            "Compare the norms at one batch size: test accuracy at the end minus that of batch norm of the same seed "
            "under running averages (momentum 0.1). Running averages of batch renorm have its own momentum. Networks "
            "that collapsed, to less than half of the median of their kind, are left out. The axis is linear up to a "
            "point and logarithmic beyond.",
            score(name_gains, "accuracy", ("batch_size", "norm", "words"), scale=100),
            Forest("norm", Axis("points gained", linear=1.0), (0.0, "batch norm, running averages"), "words"),
            Headline("Gain control loses less than a point against batch norm; in batches of 4 group norm loses many",
                     {"gain_control_keeps_up": ()}, {"group_norm_wins_when_small": ()}),
            panels="batch size {batch_size}"),
        "rates": Figure(
            "Learning rates are picked by these validation accuracies",
            "Look for the highest point of the lines of a colour: validation accuracy at the end, a line for each of "
            "the seeds 100 to 102, under exact statistics where a norm has them; a network that diverged counts with "
            "chance accuracy.",
            score_each_seed(select_validated, "accuracy", ("batch_size", "line", RATE), scale=100),
            Curves(RATE, "line", VALIDATED, across=Axis("learning rate", log=True)), panels="batch size {batch_size}"),
    },
    claims={
        "group_norm_wins_when_small": Claim(
            "In batches of 4 group norm is more accurate than batch norm (known not to be so at the best of three "
            "rates).",
            score(compute_gains, "accuracy", EACH, scale=100, gainer=GROUP, batch_size=4), GAINS, lines="each"),
        "batch_norm_wins_when_moderate": Claim(
            "In batches of 32 and 128 group norm is less accurate than batch norm.",
            score(compute_gains, "accuracy", EACH, scale=100, gainer=GROUP, batch_size=(32, 128)),
            below(0.0, "points gained", AS_ACCURATE), lines="each"),
        "renorm_wins_when_small": Claim(
            "In batches of 4 batch renorm is more accurate than batch norm, both under running averages.",
            score(compute_gains, "accuracy", ("gainer", "batch_size"), scale=100, gainer=RENORMS, batch_size=4,
                  line=f"against {BATCH}"), GAINS, lines="each"),
        "renorm_keeps_up_when_moderate": Claim(
            "In batches of 32 and 128 batch renorm is less than a point less accurate than batch norm, both under "
            "running averages.",
            score(compute_gains, "accuracy", ("gainer", "batch_size"), scale=100, gainer=RENORMS, batch_size=(32, 128),
                  line=f"against {BATCH}"), above(-1.0, "points gained", A_POINT), lines="each"),
        "gain_control_keeps_up": Claim(
            "Gain control is less than a point less accurate than batch norm.",
            score(compute_gains, "accuracy", EACH, scale=100, gainer=GAIN), above(-1.0, "points gained", A_POINT),
            lines="each"),
    },
)  # fmt: skip
