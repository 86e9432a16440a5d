"""Do group norm and batch renorm beat batch norm in small batches once each has its own learning rate?

Wu & He 2018 (group norm), Ioffe 2017 (renormalization), Yan et al. 2020 (MABN): on ImageNet both do. In `norms` neither
does, at the learning rate that was chosen for batch norm. Here each norm has, at each batch size, the one of three that
is best on validation images, on average over seeds. All claims were written before their first number; eleven of the
fifteen seeds that were planned are measured.
"""

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below
from bnlab.harness.reporting.frames import average, lowest, name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import Axis, Curves, Forest
from experiments.margins import A_POINT, AS_ACCURATE

RATE = "optimizer.lr"
NAMES = {"batch": "batch norm", "renorm": "batch renorm", "group": "group norm"}
BATCH, RENORM, GROUP = NAMES.values()
EXACT = ", exact statistics"
SMALL, MODERATE = 4, 64
EACH = ("line", "batch_size")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end; the line is the norm, and whether statistics are exact."""
    settings = ("norm", "batch_size", RATE)
    frame = rows(tables, "evaluations", 1.0, settings, split=("val", "test"), estimator=("ema", "none", "exact"))
    is_exact = frame["estimator"] == "exact"
    statistics = np.where(is_exact, EXACT, "")
    norms = frame["norm"].replace(NAMES)
    frame["line"] = norms + statistics
    return frame.drop(columns=["estimator", "momentum"])  # in which norms differ


def find_tuned(tables: Tables) -> pd.DataFrame:
    """Find accuracies on test images, of each line and batch size at the learning rate with the best validation."""
    frame = find_accuracies(tables)
    keys = [*EACH, RATE]
    validated = select(frame, split="val")
    means = average(validated, "accuracy", keys)
    means["error"] = 1 - means["accuracy"]
    best = lowest(means, "error", EACH)

    tested = select(frame, split="test")
    return tested.merge(best[keys])


def find_gains(tables: Tables) -> pd.DataFrame:
    """Find accuracies minus those of batch norm from the same seed under the same statistics, if the norm has them."""
    tuned = find_tuned(tables)
    both = []
    for name in (BATCH, BATCH + EXACT):
        gains = paired(tuned, "accuracy", name, along="line", matching=("seed", "batch_size"))
        gains["gainer"] = gains["line"]
        gains["line"] = f"against {name}"
        both.append(gains)
    return pd.concat(both)


EXPERIMENT = Experiment(
    bears_on=("F5", "F6", "F13"),
    columns=("accuracy",),
    figures={
        "accuracy": Figure(
            "Accuracy by norm, each at its own learning rate",
            "Test accuracy at the end, at the best of three learning rates by validation, under running averages where "
            "nothing else is said.",
            score(lambda tables: name_panels(find_tuned(tables), "batch size {batch_size}"), "accuracy",
                  ("panel", "line"), scale=100),
            Forest("line", Axis("test accuracy (%)")),
            Finding("At batch 64 group norm is less accurate than batch norm also at its own learning rate",
                    {"batch_norm_wins_when_moderate": ()})),
        "rates": Figure(
            "Accuracy against the learning rate by norm",
            "Test accuracy at the end, under running averages where nothing else is said. Learning rates are those of "
            "batches of 128.",
            score(lambda tables: name_panels(find_accuracies(tables), "batch size {batch_size}"), "accuracy",
                  ("panel", "line", RATE), scale=100, split="test"),
            Curves(RATE, "line", Axis("test accuracy (%)"), across=Axis("learning rate", log=True, ticks="values"))),
    },
    claims={
        "group_norm_wins_when_small": Claim(
            "In batches of 4, each at its own learning rate, group norm is more accurate than batch norm, also under "
            "exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GROUP, batch_size=SMALL),
            above(0.0, "points gained", AS_ACCURATE), ("F5", "F6")),
        "batch_norm_wins_when_moderate": Claim(
            "In batches of 64, each at its own learning rate, group norm is less accurate than batch norm, also under "
            "exact statistics.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=GROUP, batch_size=MODERATE),
            below(0.0, "points gained", AS_ACCURATE), ("F5",)),
        "renorm_wins_when_small": Claim(
            "In batches of 4, each at its own learning rate, batch renorm is more accurate than batch norm, both under "
            "running averages.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=RENORM, batch_size=SMALL, line=f"against {BATCH}"),
            above(0.0, "points gained", AS_ACCURATE), ("F6", "F13")),
        "renorm_keeps_up_when_moderate": Claim(
            "In batches of 64, each at its own learning rate, batch renorm is less than a point less accurate than "
            "batch norm, both under running averages.",
            score(find_gains, "accuracy", EACH, scale=100, gainer=RENORM, batch_size=MODERATE,
                  line=f"against {BATCH}"), above(-1.0, "points gained", A_POINT), ("F13",)),
        "small_batches_cost_batch_norm": Claim(
            "Batch norm is less accurate in batches of 4 than of 64, each at its own learning rate, under running "
            "averages and under exact statistics.",
            score(find_tuned, "accuracy", EACH, against=MODERATE, along="batch_size", matching=("seed", "line"),
                  scale=100, line=(BATCH, BATCH + EXACT)), below(0.0, "points gained", AS_ACCURATE), ("F5",)),
    },
)  # fmt: skip
