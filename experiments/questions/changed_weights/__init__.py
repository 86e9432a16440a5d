"""If weights are changed after training, do they need new statistics, and how many images or passes do these take?

Networks are averaged (Izmailov et al. 2018), pruned and rounded, so that their running averages describe other weights.
Averages of networks are said to need new statistics. Jordan et al. (2023, REPAIR) match the channels of two networks
that were trained apart before they average them: activations of the average vary too little, and new statistics repair
most of that in a wide network. Ours are narrow, 32 to 128 channels. There were fifteen seeds from the start, and all
claims were written before their numbers were known. They are not blind to the unchanged networks, all 30 of which
repeat settings and seeds of `gap`.
"""

import pandas as pd

from bnlab.harness.reporting.frames import put_in_order, rows, score, select
from bnlab.harness.reporting.plots import LOST, LOST_OF_ANY_SIZE, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, within
from experiments.margins import A_POINT, COSTS_A_POINT, SIX_IMAGES
from experiments.recipes import name_lines

NAMES = {
    "none": "unchanged",
    "averaged": "two networks averaged",
    "pruned": "a third pruned",
    "rounded:8": "rounded to 8 bits",
    "rounded:4": "rounded to 4 bits",
}
REMEDIES = {
    "stale:0": "running averages, old",
    "exact:32": "exact statistics of 32 images",
    "exact:512": "exact statistics of 512 images",
    "precise:0": "precise BN, one pass over all images",
}
AVERAGED = NAMES["averaged"]
PRUNED = NAMES["pruned"]
EIGHT_BITS = NAMES["rounded:8"]
FOUR_BITS = NAMES["rounded:4"]
EACH = ("batch_size", "line")
LITTLE = within(-0.3, 0.3, "points lost", SIX_IMAGES)
# What is averaged of two networks that were trained apart.
AVERAGES = {"none": "one network", "apart": "averaged as they are", "matched": "averaged after matching"}
ONE = AVERAGES["none"]
APART = AVERAGES["apart"]
MATCHED = AVERAGES["matched"]
BRANCHES = "two branches of one training"
TRAINED_APART = "two networks trained apart, matched"
WRECKED = "nobody needs a test to see ten points"


def compute_losses(tables: Tables) -> pd.DataFrame:
    """Find all rows at the end of training; the line is what was done to the weights, `is_all` tells samples apart."""
    frame = rows(tables, "changed_weights", 1.0)
    networks = frame.groupby("run")
    # No column has the number of all training images. It is the largest one in a network's rows.
    most = networks["images"].transform("max")
    changes = frame["change"]
    frame["is_all"] = frame["images"] == most
    frame["line"] = changes.map(NAMES)
    return frame


def compute_remedies(tables: Tables) -> pd.DataFrame:
    """Find what each change loses under old statistics, under those of few images, and under those of one pass.

    `name` is the change, and the line is what the statistics are of.
    """
    frame = compute_losses(tables)
    frame["name"] = frame["line"]
    is_one_pass = (frame["statistics"] == "precise") & frame["is_all"]
    # `REMEDIES` names one pass over all images by 0, however many they are.
    frame["images"] = frame["images"].mask(is_one_pass, 0)
    frame["kind"] = frame["statistics"] + ":" + frame["images"].astype(str)

    return put_in_order(name_lines(frame, "kind", REMEDIES), "name", NAMES.values())


def select_matched(tables: Tables) -> pd.DataFrame:
    """Find averages of networks that were trained apart, at the end, under stale statistics and those of all images."""
    frame = rows(tables, "matched_weights", 1.0)
    most = frame.groupby("run")["images"].transform("max")
    is_of_all = frame["images"] == most
    is_stale = frame["images"] == 0
    return name_lines(frame[is_of_all | is_stale], "change", AVERAGES)


def select_merged(tables: Tables) -> pd.DataFrame:
    """Find what two branches and two matched networks lose under their averaged statistics, once they are averaged."""
    branches = select(compute_losses(tables), line=AVERAGED, statistics="stale").assign(line=BRANCHES)
    apart = select(select_matched(tables), line=MATCHED, statistics="stale").assign(line=TRAINED_APART)
    return pd.concat([branches, apart])


QUESTION = Question(
    bears_on=("Q20", "Q24", "H4", "H9", "F2", "F15"),
    sweeps=("changed_weights", "matched_weights"),
    columns=("accuracy", "accuracy_lost", "mean_gap", "var_gap"),
    figures={
        "lost": Figure(
            "What changed weights lose, by the statistics that they predict with",
            "Compare the points beside a change: points of test accuracy lost against exact statistics of all "
            "training images. The axis is linear up to 0.3 points, and logarithmic beyond.",
            score(compute_remedies, "accuracy_lost", ("batch_size", "name", "line"), scale=100),
            Forest("name", LOST_OF_ANY_SIZE, series="line"),
            Headline("Networks rounded to 4 bits need new statistics, and one pass over the images is enough",
                    {"four_bits_need_new_ones": (), "one_pass_is_enough": ()}),
            panels="batch size {batch_size}"),
        "merged": Figure(
            "What merged networks lose under the average of their running averages",
            "Compare the two ways to get two networks: points of test accuracy lost against exact statistics of the "
            "merged weights. Branches: the second network continues from the first one's checkpoint half-way. "
            "Networks trained apart are matched first: the channels of one are reordered to resemble the other's "
            "most.",
            score(select_merged, "accuracy_lost", EACH, scale=100),
            Forest("line", LOST),
            Headline("Averaged statistics work for two branches of one training run, not for networks trained apart",
                    {"matched_averages_lose_over_a_point": ()}, {"averaged_networks_need_new_ones": ()}),
            panels="batch size {batch_size}"),
    },
    claims={
        "averaged_networks_need_new_ones": Claim(
            "Under the mean of their running averages, two averaged networks lose over a point against exact "
            "statistics.",
            score(compute_losses, "accuracy_lost", EACH, scale=100, line=AVERAGED, statistics="stale"),
            above(1.0, "points lost", A_POINT), lines="each"),
        "pruned_networks_do_not": Claim(
            "Under stale statistics, networks whose smallest third of weights is set to 0 lose less than a point.",
            score(compute_losses, "accuracy_lost", EACH, scale=100, line=PRUNED, statistics="stale"),
            within(-1.0, 1.0, "points lost", A_POINT), lines="each"),
        "eight_bits_do_not": Claim(
            "Under stale statistics, networks rounded to 8 bits lose less than 0.3 points.",
            score(compute_losses, "accuracy_lost", EACH, scale=100, line=EIGHT_BITS, statistics="stale"), LITTLE,
            lines="each"),
        "four_bits_need_new_ones": Claim(
            "Under stale statistics, networks rounded to 4 bits lose over 0.3 points.",
            score(compute_losses, "accuracy_lost", EACH, scale=100, line=FOUR_BITS, statistics="stale"),
            above(0.3, "points lost", SIX_IMAGES), lines="each"),
        "one_pass_is_enough": Claim(
            "Statistics of all training images taken in one pass lose less than 0.3 points against those taken layer "
            "by layer, whatever was changed.",
            score(compute_losses, "accuracy_lost", EACH, scale=100, statistics="precise", is_all=True), LITTLE,
            lines="each"),
        "matched_averages_need_new_ones": Claim(
            "Under the mean of their running averages, two networks that were matched and averaged lose over ten "
            "points against exact statistics.",
            score(select_matched, "accuracy_lost", EACH, scale=100, line=MATCHED, statistics="stale"),
            above(10.0, "points lost", WRECKED), lines="each"),
        "matched_averages_lose_over_a_point": Claim(
            "They lose over a point.",
            score(select_matched, "accuracy_lost", EACH, scale=100, line=MATCHED, statistics="stale"),
            above(1.0, "points lost", A_POINT),
            lines="each", post_hoc="asked"),
        "new_ones_do_not_repair_all": Claim(
            "Under exact statistics the matched average is over a point worse than one of the two networks.",
            score(select_matched, "accuracy", EACH, scale=-100, against=ONE, along="line",
                  matching=("run", "statistics"), line=(ONE, MATCHED), statistics="exact"), COSTS_A_POINT,
                  lines="each"),
        "matching_is_needed": Claim(
            "Under exact statistics the average is over ten points better after matching than without.",
            score(select_matched, "accuracy", EACH, scale=100, against=APART, along="line",
                  matching=("run", "statistics"), line=(APART, MATCHED), statistics="exact"),
            above(10.0, "points", WRECKED), lines="each"),
    },
)  # fmt: skip
