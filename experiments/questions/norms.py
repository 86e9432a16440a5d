"""How accurate are networks with each norm, in batches of 2 to 256 images?

Wu & He 2018 (group norm), Ioffe 2017 (renormalization), Ruff 2017 (gain control). All networks with one batch size have
the same learning rate, which was chosen for batch norm.
"""

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below
from bnlab.harness.reporting.frames import paired, put_in_order, rows, score, select
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import A_POINT, AS_ACCURATE

BATCH, EXACT, GROUP, GAIN = "batch norm", "batch norm, exact statistics", "group norm", "gain control"
NAMES = {"batch": BATCH, "renorm": "batch renorm", "group": GROUP, "gain_control": GAIN, "none": "no norm"}
EACH, SAME, OVER_EXACT = ("line", "batch_size"), ("seed", "data", "batch_size"), f"against {EXACT}"
BETTER = above(0.0, "points gained", AS_ACCURATE)


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end; the line is the norm, and whether statistics are exact."""
    settings = ("data", "norm", "batch_size")
    frame = rows(tables, "evaluations", 1.0, settings, estimator=("ema", "none", "exact"))
    is_exact = frame["estimator"] == "exact"
    statistics = np.where(is_exact, ", exact statistics", "")
    norms = frame["norm"].replace(NAMES)
    frame["panel"] = frame["data"]
    frame["line"] = norms + statistics
    return frame.drop(columns=["estimator", "momentum"])  # in which norms differ


def find_gains(tables: Tables) -> pd.DataFrame:
    """Find accuracies minus those of batch norm from the same seed; the line says under which statistics."""
    frame = find_accuracies(tables)
    both = []
    for name in (BATCH, EXACT):
        gains = paired(frame, "accuracy", name, along="line", matching=SAME)
        gains["gainer"] = gains["line"]
        gains["line"] = f"against {name}"
        both.append(gains)
    return pd.concat(both)


def find_gains_in_panels(tables: Tables) -> pd.DataFrame:
    """Find the same gains of other norms, the data in words."""
    gains = find_gains(tables)
    gains["panel"] = gains["data"].replace({"glyphs": "characters"})
    norms = tuple(NAMES.values())
    others = select(gains, gainer=norms)
    return put_in_order(others, "gainer", norms)


EXPERIMENT = Experiment(
    bears_on=("F5", "F6", "Q18", "H5"),
    sweeps=("norms", "norms_digits"),
    columns=("accuracy",),
    figures={"accuracy": Figure(
        "Accuracy of networks with other norms, against batch norm under exact statistics",
        "Test accuracy minus that of the network with batch norm of the same seed and batch size, under exact "
        "statistics; right of 0 is better. Batch norm and batch renorm are under running averages. The axis is linear "
        "up to a point and logarithmic beyond.",
        score(find_gains_in_panels, "accuracy", ("panel", "gainer", "batch_size"), scale=100, line=OVER_EXACT),
        Forest("gainer", Axis("accuracy − that of batch norm (points)", linear=1.0), mark=(0.0, EXACT),
               series="batch_size"),
        Finding("On characters, group norm loses in batches of 64, and gain control keeps up",
                {"batch_norm_wins_when_moderate": (), "gain_control_keeps_up": ()}))},
    claims={
        "group_norm_wins_when_small": Claim(
            "On characters, in batches of 4, group norm is better than batch norm, also under exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GROUP, data="glyphs", batch_size=4),
            BETTER, ("F5", "F6", "H5")),
        "group_norm_wins_when_tiny": Claim(
            "On digits, in batches of 2, group norm is more accurate than batch norm under exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GROUP, data="digits", batch_size=2, line=OVER_EXACT),
            BETTER, ("F5", "F6", "H5")),
        "batch_norm_wins_when_moderate": Claim(
            "On characters, in batches of 64, group norm is worse than batch norm, also under exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GROUP, data="glyphs", batch_size=64),
            below(0.0, "points gained", AS_ACCURATE), ("F5",)),
        "no_norm_costs": Claim(
            "On characters a network without norms is more than a point worse than with batch norm, in batches of 4 "
            "and 64.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=NAMES["none"], data="glyphs"),
            below(-1.0, "points gained", A_POINT), ("F5",)),
        "renorm_wins_when_small": Claim(
            "On characters, in batches of 4, batch renorm is better than batch norm, both under running averages.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=NAMES["renorm"], data="glyphs", batch_size=4,
                  line=f"against {BATCH}"), BETTER, ("F6",)),
        "batches_of_two_hurt_batch_norm": Claim(
            "On digits batch norm, under exact statistics, is over a point worse after batches of 2 than of 64.",
            score(find_accuracies, "accuracy", EACH, against=64, along="batch_size", matching=("seed",), scale=100,
                  line=EXACT, data="digits", batch_size=2), below(-1.0, "points gained", A_POINT), ("H5",)),
        "gain_control_keeps_up": Claim(
            "On characters gain control is less than a point worse than batch norm, under either statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GAIN, data="glyphs"),
            above(-1.0, "points", A_POINT), ("Q18",)),
        "gain_control_keeps_up_on_digits": Claim(
            "On digits gain control is less than a point worse than batch norm under exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GAIN, data="digits", line=OVER_EXACT),
            above(-1.0, "points", A_POINT), ("Q18",)),
    },
)  # fmt: skip
