"""Is what running averages lose in mid-training lag: does it vanish if the learning rate is cut?

The networks of `real` at constant rates of 0.1 and 0.4, a ResNet-20 on JPEG copies of CIFAR-10 in batches of 128, are
trained for 1,123 updates. From there each goes on four times, with the optimizer as it was and on the same batches: at
the same rate, at a quarter, at a sixteenth, and at 0, where the weights stand still. All claims were written before the
first training. Of the first 1,123 updates of seeds 0 to 3 it was known, from `real`, that running averages lose points.

At rate 0 what running means were off by has to shrink by the momentum, to 0.9 to the power of k after k updates, until
only noise is left: of the batches, and of the 5,000 augmented training images that exact statistics are of. The
*systematic* part of an error is its part along the error at the cut, over all channels of the deeper layers: noise of
later batches knows nothing of that direction. All 10,000 test images are predicted.

Two seeds were planned, for three hours of one core; four take no more.
"""

from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames import score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below, within
from experiments.margins import COSTS_A_POINT
from experiments.recipes import RATE

KEPT, QUARTER, SIXTEENTH, STOPPED = 1.0, 0.25, 0.0625, 0.0
FACTORS = {KEPT: "the same rate", QUARTER: "a quarter", SIXTEENTH: "a sixteenth", STOPPED: "rate 0"}
LATER = (10, 20, 44, 60)
AT_REST: dict[str, Any] = {"factor": STOPPED}
PER_UPDATE = 0.9  # of an error is left after an update that adds none


def join_runs(tables: Tables, table: str) -> pd.DataFrame:
    """Join the rows of a table with the seeds and rates of their networks."""
    return tables[table].merge(tables["runs"][["run", "seed", RATE]], on="run")


def compute_lost(tables: Tables) -> pd.DataFrame:
    """Find the points that running averages lose."""
    lost = join_runs(tables, "cut")
    return lost.assign(points=100 * lost["lost"])


def compute_less_with_rate(tables: Tables) -> pd.DataFrame:
    """Subtract what is lost at a quarter of a rate from what is lost at that, averaged over the updates of `LATER`."""
    lost = select(compute_lost(tables), updates=LATER)
    wide = lost.groupby(["seed", RATE, "factor"])["points"].mean().unstack("factor")
    compared = {
        "a quarter of the rate": wide[KEPT] - wide[QUARTER],
        "a sixteenth, against a quarter": wide[QUARTER] - wide[SIXTEENTH],
    }
    frames = [less.rename("less").reset_index().assign(words=words) for words, less in compared.items()]
    return pd.concat(frames)


def compute_errors(tables: Tables) -> pd.DataFrame:
    """Compute the error of running means over the deeper layers.

    Returns:
        For each network, factor and number of updates `error` and `noise` (σ, root mean squares), `times_noise` (their
        ratio), `systematic` (σ), `expected`, what that would be if the error at the cut shrank by 0.9 with each update,
        and `times_expected` (their ratio).
    """
    layers = join_runs(tables, "cut_layers")
    deeper = layers[layers["depth"] > 1]
    squares = deeper.assign(error=deeper["mean_gap"] ** 2, noise=deeper["noise"] ** 2)
    means = squares.groupby(["seed", RATE, "factor", "updates"])[["error", "noise", "along_cut"]].mean()
    # At the cut it is the square of the error.
    at_cut = means["along_cut"].groupby(["seed", RATE, "factor"]).transform("first")
    left = means["along_cut"] / at_cut
    expected = np.power(PER_UPDATE, means.index.get_level_values("updates"))
    return pd.DataFrame(
        {
            "error": means["error"] ** 0.5,
            "noise": means["noise"] ** 0.5,
            "times_noise": (means["error"] / means["noise"]) ** 0.5,
            "systematic": left * at_cut**0.5,
            "expected": expected * at_cut**0.5,
            "times_expected": left / expected,
        }
    ).reset_index()


def select_lost(tables: Tables) -> pd.DataFrame:
    """Find what is drawn of the points lost, in panels by rate."""
    lost = compute_lost(tables)
    return lost.assign(panel=name_rates(lost), line=lost["factor"].map(FACTORS))


def select_errors(tables: Tables) -> pd.DataFrame:
    """Find what is drawn of the errors at rate 0, in panels by rate."""
    errors = select(compute_errors(tables), **AT_REST)
    names = {"error": "error", "noise": "expected noise", "systematic": "systematic part", "expected": "0.9ᵏ"}
    drawn = [errors.assign(line=name, value=errors[column]) for column, name in names.items()]
    together = pd.concat(drawn)
    return together.assign(panel=name_rates(together))


def name_rates(frame: pd.DataFrame) -> pd.Series:
    """Name the panel of each row by the rate before the cut."""
    return "rate " + frame[RATE].map("{:g}".format).astype(str)


QUESTION = Question(
    bears_on=("Q12", "Q17", "Q20", "H2"),
    columns=("lost", "accuracy", "exact_accuracy", "mean_gap", "along_cut", "noise"),
    remarks=("Trained with the code of commit 39583aa3, after the claims had been committed.",),
    command="""python -m experiments.questions.rate_cut.cut data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# 25 minutes of one core a network""",
    figures={
        "lost": Figure(
            "Points of accuracy lost under running averages after the learning rate is cut, on CIFAR-10",
            "Compare the lines: points of test accuracy that the same weights lose under running averages of momentum "
            "0.1 against exact statistics, after the rate of a network is multiplied by 1, a quarter, a sixteenth or "
            "0. At rate 0 the weights stand still. A ResNet-20 on JPEG copies of CIFAR-10, cut after 1,123 updates.",
            score(select_lost, "points", ("panel", "line", "updates")),
            Curves("updates", "line", Axis("points of accuracy lost"), across=Axis("updates after the cut"))),
        "error": Figure(
            "Error of running means on weights that stand still",
            "Compare the systematic part with what momentum 0.1 leaves of it: the error of running means, in standard "
            "deviations, root mean square over the deeper layers, after the rate is set to 0. A systematic part "
            "below 0, which noise can give, is not drawn.",
            score(select_errors, "value", ("panel", "line", "updates")),
            Curves("updates", "line", Axis("error (σ)", log=True),
                   across=Axis("updates after the cut"))),
    },
    claims={
        "the_error_shrinks_by_the_momentum": Claim(
            "At rate 0 the systematic part of the error of running means is 0.9 to the power of k of that at the cut "
            "after k updates, to a quarter, after each of 5, 10 and 20 updates, at each of the two rates.",
            score(compute_errors, "times_expected", (RATE, "updates"), updates=(5, 10, 20), **AT_REST),
            within(0.8, 1.25, "times", "after 20 updates it is 12%, and noise may add some percent of that"),
            lines="each"),
        "noise_is_left": Claim(
            "At rate 0 the error of running means is less than one and a half times the expected noise after each of "
            "44 and 60 updates, at each of the two rates.",
            score(compute_errors, "times_noise", (RATE, "updates"), geometric=True, updates=(44, 60), **AT_REST),
            below(1.5, "times the noise", "batches that normalize with their own statistics leave a bias as well"),
            lines="each"),
        "the_loss_vanishes": Claim(
            "At rate 0 running averages lose less than 0.3 points after each of 44 and 60 updates, at each of the two "
            "rates.",
            score(compute_lost, "points", (RATE, "updates"), updates=(44, 60), **AT_REST),
            below(0.3, "points", "30 of 10,000 test images, about the standard error at 90% accuracy"),
            lines="each"),
        "the_loss_stays_at_the_same_rate": Claim(
            "At the same rate running averages go on losing over a point, averaged over 10, 20, 44 and 60 updates, at "
            "each of the two rates.",
            score(compute_lost, "points", (RATE,), average="updates", updates=LATER, factor=KEPT), COSTS_A_POINT,
            lines="each"),
        "the_smaller_the_rate_the_less_is_lost": Claim(
            "A quarter of the rate loses less than the rate itself, and a sixteenth less than a quarter, averaged over "
            "10, 20, 44 and 60 updates, at each of the two rates.",
            score(compute_less_with_rate, "less", (RATE, "words")),
            above(0.0, "points less", "at 0 the rate does not matter"), lines="each"),
        "a_sixteenth_loses_little": Claim(
            "At a sixteenth of the rate running averages lose less than a point, averaged over 44 and 60 updates, at "
            "each of the two rates.",
            score(compute_lost, "points", (RATE,), average="updates", updates=(44, 60), factor=SIXTEENTH),
            below(1.0, "points", COSTS_A_POINT.reason), lines="each"),
    },
)  # fmt: skip
