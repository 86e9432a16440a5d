"""Does the average of two networks that were trained apart need new statistics, and do these repair it?

Channels are matched before weights are averaged, as Jordan et al. (2023, REPAIR) do: they find that activations of the
average vary too little, and that new statistics mend most of it in a wide network. Ours are narrow, 32 to 128 channels.
Fifteen seeds from the start; all claims were written before their first number.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, within
from bnlab.harness.reporting.frames import name_panels, rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import A_POINT, SIX_IMAGES

NAMES = {
    "none": "one network",
    "apart": "averaged as they are",
    "matched": "averaged after matching",
}
ONE, APART, MATCHED = NAMES.values()
KINDS = {
    "exact": "exact statistics",
    "precise": "precise statistics",
    "stale": "running averages",
}
EACH = ("batch_size", "line")
WRECKED = "ten points are seen without any test"


def find_matched(tables: Tables) -> pd.DataFrame:
    """Find the rows at the end of training under stale statistics and under those of all training images."""
    frame = rows(tables, "matched_weights", 1.0)
    most = frame.groupby("run")["images"].transform("max")
    is_whole = frame["images"].isin([0]) | (frame["images"] == most)
    frame = frame[is_whole].copy()
    frame["line"] = frame["change"].map(NAMES)
    frame["kind"] = frame["statistics"].map(KINDS)
    return name_panels(frame, "batch size {batch_size}, {kind}")


EXPERIMENT = Experiment(
    bears_on=("Q11", "F15", "H9"),
    columns=("accuracy", "accuracy_lost", "var_gap"),
    figures={
        "accuracy": Figure(
            "How the average of two networks predicts that were trained apart",
            "Test accuracy of one network and of averages, under old and under new statistics.",
            score(find_matched, "accuracy", ("panel", "line"), scale=100, statistics=("exact", "stale")),
            Forest("line", Axis("test accuracy (%)")),
            Finding("The average of networks that were trained apart predicts once they have been matched",
                    {"matching_is_needed": ()})),
    },
    claims={
        "matched_averages_need_new_ones": Claim(
            "Under the mean of their running averages two matched and averaged networks lose over ten points against "
            "exact statistics.",
            score(find_matched, "accuracy_lost", EACH, scale=100, line=MATCHED, statistics="stale"),
            above(10.0, "points lost", WRECKED), ("Q11", "F15", "H9")),
        "new_ones_do_not_repair_all": Claim(
            "Under exact statistics the matched average is over a point worse than one of the two networks.",
            score(find_matched, "accuracy", EACH, scale=-100, against=ONE, along="line",
                  matching=("run", "statistics"), line=(ONE, MATCHED), statistics="exact"),
            above(1.0, "points", A_POINT), ("H9",)),
        "matching_is_needed": Claim(
            "Under exact statistics the average is over ten points better after matching than without.",
            score(find_matched, "accuracy", EACH, scale=100, against=APART, along="line",
                  matching=("run", "statistics"), line=(APART, MATCHED), statistics="exact"),
            above(10.0, "points", WRECKED), ("H9",)),
        "one_pass_is_enough": Claim(
            "For the matched average statistics in one pass lose less than 0.3 points against those taken layer by "
            "layer.",
            score(find_matched, "accuracy_lost", EACH, scale=100, line=MATCHED, statistics="precise"),
            within(-0.3, 0.3, "points lost", SIX_IMAGES), ("Q11", "F15")),
    },
)  # fmt: skip
