"""What do running averages cost a ResNet-20 on CIFAR-10, along a cosine and at a constant rate?

SGD with Nesterov momentum 0.9, weight decay 0.0005, shifts and flips, 16 epochs in full batches of 128. Learning rates
are not tuned: 0.025, 0.1 and 0.4 are an axis, and we say so if a pick is at its edge. After these 5,616 updates the
networks are right on 82 to 85% of the test images after a cosine and on 71 to 80% at a constant rate, under exact
statistics. After 64,000 updates a ResNet-20 reaches 91% (He et al. 2016).

Training and test images are JPEG copies of CIFAR-10's, with libjpeg's quality 75 and colours at half the resolution
(4:2:0).

All claims except those marked as post hoc were written before any network was trained; if earlier experiments had shown
something, the claim says so. We planned seven seeds for each cell, and had time for four. The other three will not be
trained, because nearly all scatter is between the steps of a network, and hardly any between seeds. We also planned
batches of 32 and 512 at the same rate, but gave them up before the first was trained, because they would mix batch size
with the rate per image; `scaled_batches` has them at rates in proportion to the size. The rule that counts of four
networks are not tested is older than the training. On which side a loss of exactly 30 of 10,000 images falls was
decided when 18 of the 24 networks had been measured.

*Exact statistics* are of augmented training images: 5,000 before the end, all of them at the end, and 5,000 throughout
for averaged weights. In `cifar10`, statistics of 5,000 images are up to a tenth of a point worse than those of all, so
averaged weights may lose that much more than is shown. Before the end, the same 5,000 test images are predicted by all
networks, and at the end all 10,000. Statistics are always compared on the same images. The cost of a checkpoint picked
at the end compares 5,000 with 10,000 images, which shifts it by up to some tenths of a point, in all networks alike.

What running averages lose differs by points between the steps of one network. Claims that say *on average* or *from ...
on* are about each network's average over these steps. So are claims on momentum 0.3 and 0.19 and on averaged weights
that do not name the end: they average over half, four fifths and all of the training. The claim on buffers left at 0
and 1 also averages over rates.

What picks cost is given seed by seed: if both kinds of statistics pick the same, it is exactly 0, and such numbers have
no honest interval. Until 30 November 2026, when all numbers were known, this page had means with intervals.

Claims of "less than" are decided by the same t tests over seeds as all others, but they are weaker: when we resampled
fifteen seeds of earlier tables, 95% t intervals covered 91 to 93%, and the bound that "less than" needs was wrong in 4
to 5% of the samples instead of 2.5%. So the central claim of this kind has a companion, an exact sign test over seeds.
It can decide with seven seeds that agree; with four, we show the count.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import paired, put_in_order, rows, score, select, share_name
from bnlab.harness.reporting.plots import Axis, Cells, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below
from experiments.margins import A_POINT, AS_ACCURATE, COSTS_A_POINT, GAINS
from experiments.recipes import (
    EXACT,
    LAST,
    PLAIN,
    RATE,
    RUNNING,
    SCHEDULE,
    TUNED,
    compute_growth,
    pick,
    score_each_seed,
    select_accuracies,
    select_complete,
    select_lost,
    subtract_exact,
)

CELL = (SCHEDULE, RATE)
CONSTANT, COSINE = "constant", "cosine"
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
AT_LARGE_CONSTANT_RATES: dict[str, Any] = {**AT_CONSTANT_RATE, RATE: (0.1, 0.4)}
ON_COSINE: dict[str, Any] = {SCHEDULE: COSINE}
ON_USUAL_COSINE: dict[str, Any] = {**ON_COSINE, RATE: 0.1}
TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
SHARES = (0.02, 0.05, *TENTHS)  # of the training, at which it is measured
HIGH = TENTHS[:6]  # while a cosine's rate is above a third of its peak
LATE = TENTHS[1:]  # after the first epochs
EARLY = SHARES[:7]  # up to half of the training, while half of the configurations could still be spared
END = share_name(1.0)
EPOCHS, UPDATES = 16, 5616  # UPDATES: in batches of 128
ON_THE_MAP = {CONSTANT: (0.02, 0.1, 0.2, 0.5, 1.0), COSINE: (0.1, 0.5, 0.8, 0.9, 1.0)}  # shares of the training
PANELS = {CONSTANT: "constant rate", COSINE: "cosine"}
LEARNED = 0.5  # exact accuracy, on average over seeds, from which on a network has something to lose
ALONG = Axis("share of the training (%)")
# Of the tables that are measured at four steps
ON_THE_WAY = (0.1, 0.5, 0.8)
BEFORE_THE_END = (0.5, 0.8, 1.0)
MOST = "more than half is most; seven seeds that agree decide it"
THIRTY_IMAGES = "30 of 10,000 test images, about the standard error at 90% accuracy; comparisons are paired"
HALF = (0.5, "points", "half of what networks of this size are chosen by")
COSTS_LITTLE = below(0.3, "points", THIRTY_IMAGES)
LOSES_LITTLE = above(-0.3, "points gained", THIRTY_IMAGES)
KEPT = 3  # of six configurations


def compute_lost(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from that under running averages."""
    return select_lost(tables, CELL, shares)


def select_harmless(tables: Tables) -> pd.DataFrame:
    """Find out of each network whether it loses less than 0.3 points at the end."""
    lost = compute_lost(tables, 1.0)
    # Rounded, because a loss of exactly 30 of 10,000 images would fall on either side of the line.
    return lost.assign(is_harmless=lost["accuracy"].round(6) > -0.003)


def compute_deviation(tables: Tables) -> pd.DataFrame:
    """Compute how far apart the steps of each network are in what running averages lose, from a fifth on.

    Returns:
        A row for each network: `deviation`, the standard deviation over its nine steps, with the divisor 8.
    """
    lost = compute_lost(tables, *LATE)
    by_network = lost.groupby(["run", "seed", SCHEDULE, RATE])
    return by_network["accuracy"].std().rename("deviation").reset_index()


def compute_falls(tables: Tables) -> pd.DataFrame:
    """Add up by how much each curve of test accuracy falls from step to step, and subtract that of exact statistics."""
    curves = select(select_accuracies(tables, CELL), line=(RUNNING, EXACT))
    ordered = curves.sort_values("step", kind="stable")
    by_curve = ["run", "seed", SCHEDULE, RATE, "line"]
    rises = ordered.groupby(by_curve)["accuracy"].diff()
    falls = ordered.assign(falls=-rises.clip(upper=0))
    sums = falls.groupby(by_curve)["falls"].sum().reset_index()
    return paired(sums, "falls", EXACT, along="line")


def compare_order(tables: Tables) -> pd.DataFrame:
    """Find the pairs of configurations that are over a point apart, and whether running averages order them rightly.

    Returns:
        A row for each seed and share of the training: `hits`, the share of these pairs that are in the order of exact
        statistics.
    """
    accuracies = select(select_accuracies(tables, CELL, SHARES), line=(RUNNING, EXACT))
    networks = accuracies.pivot(index=["seed", "panel", "run"], columns="line", values="accuracy").reset_index()
    pairs = networks.merge(networks, on=["seed", "panel"], suffixes=("", " of the other"))
    once = pairs[pairs["run"] < pairs["run of the other"]]
    exact = once[EXACT] - once[f"{EXACT} of the other"]
    running = once[RUNNING] - once[f"{RUNNING} of the other"]

    # Rounded, because a difference of exactly a point would fall on either side of the line.
    is_apart = exact.abs().round(6) > 0.01
    apart = once.assign(hits=exact * running > 0)[is_apart]
    hits = apart.groupby(["seed", "panel"])["hits"].mean().reset_index()
    return put_in_order(hits, "panel", accuracies["panel"].unique())


def halve(tables: Tables, *shares: float) -> pd.DataFrame:
    """Keep the better half of each seed's configurations by validation accuracy, at these shares of the training.

    Returns:
        A row for each seed, share and kind of statistics by which they were kept: `cost`, the test accuracy of the best
        of all configurations at the end minus that of the best that were kept, both under exact statistics.
    """
    accuracies = select(select_accuracies(tables, CELL, shares, "val"), line=(RUNNING, EXACT))
    validated = accuracies.pivot(index=["seed", "panel", "line"], columns=[SCHEDULE, RATE], values="accuracy")
    validated = validated.dropna()  # a seed that lacks a configuration has no half
    # Of configurations that are equally accurate the first ones are kept: the smaller rates, the constant one first.
    is_kept = validated.rank(axis=1, ascending=False, method="first") <= KEPT

    at_end = select(select_accuracies(tables, CELL, (1.0,)), line=EXACT)
    tested = at_end.pivot(index="seed", columns=[SCHEDULE, RATE], values="accuracy")
    ended = tested.reindex(validated.index, level="seed")
    best = ended.max(axis=1)
    best_kept = ended.where(is_kept).max(axis=1)
    return (best - best_kept).rename("cost").reset_index()


def compute_lost_with_rate(tables: Tables) -> pd.DataFrame:
    """Find how much more is lost than at a quarter of the learning rate."""
    return compute_growth(compute_lost(tables, *LATE), CELL)


def subtract_running(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under running averages from those under all other statistics."""
    accuracies = select_accuracies(tables, CELL, shares)
    return paired(accuracies, "accuracy", RUNNING, along="line")


def compute_gain_of_augmented(tables: Tables) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics of plain images, at the end."""
    accuracies = select(select_accuracies(tables, CELL, (1.0,)), line=(EXACT, PLAIN))
    return paired(accuracies, "accuracy", PLAIN, along="line")


def select_momenta(tables: Tables, *shares: float) -> pd.DataFrame:
    """Select test accuracies under running averages, of momentum 0.1 and of others, and under exact statistics."""
    usual = select(select_accuracies(tables, CELL, shares), line=(RUNNING, EXACT))
    others = rows(tables, "other_momenta", shares, CELL, estimator="ema")
    others["line"] = "momentum " + others["momentum"].map("{:g}".format).astype(str)
    both = pd.concat([usual, others.drop(columns=["estimator", "momentum", "statistics_split"])])
    # Pairs have to agree in split and shift, which the table `other_momenta` does not have.
    both["split"] = "test"
    both["shift"] = "none"
    return both


def compute_gain_of_momenta(tables: Tables) -> pd.DataFrame:
    """Subtract the test accuracy under running averages of momentum 0.1 from those of other momenta."""
    return paired(select_momenta(tables, *BEFORE_THE_END), "accuracy", RUNNING, along="line")


def compute_lost_by_momenta(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from those under running averages, of any momentum."""
    return paired(select_momenta(tables, *shares), "accuracy", EXACT, along="line")


def pick_rates(tables: Tables) -> pd.DataFrame:
    """Pick the learning rate of each seed and schedule at the end, see `pick`."""
    group = ("seed", SCHEDULE)
    at_end = select_accuracies(tables, CELL, (1.0,), ("val", "test"))
    return pick(select_complete(tables, at_end, group), group)


def pick_checkpoints(tables: Tables) -> pd.DataFrame:
    """Pick the checkpoint of each network among the twelve, see `pick`."""
    accuracies = select_accuracies(tables, CELL, split=("val", "test"))
    return pick(accuracies, ("run", "seed", SCHEDULE, RATE))


def compute_lost_by_averages(tables: Tables) -> pd.DataFrame:
    """Subtract the test accuracy of averaged weights under exact statistics of their own."""
    frame = rows(tables, "kept_averages", BEFORE_THE_END, CELL)
    return paired(frame, "accuracy", along="buffers", matching=("run", "decay"))


def subtract_trained(tables: Tables) -> pd.DataFrame:
    """Subtract the exact accuracy of the trained network from that of averaged weights, both at the end."""
    averages = rows(tables, "kept_averages", 1.0, CELL, buffers="exact")
    averages["line"] = "decay " + averages["decay"].map("{:g}".format).astype(str)
    trained = select(select_accuracies(tables, CELL, (1.0,)), line=EXACT)
    # Pairs would have to agree in split and shift, which the table `kept_averages` does not have.
    both = pd.concat([averages, trained]).drop(columns=["split", "shift"])
    return paired(both, "accuracy", EXACT, along="line")


def select_cosine(tables: Tables) -> pd.DataFrame:
    """Find what is drawn along the usual cosine: both test accuracies, and the points by which they differ."""
    accuracies = select(select_accuracies(tables, CELL), line=(RUNNING, EXACT), **ON_USUAL_COSINE)
    percent = accuracies.assign(percent=100 * accuracies["accuracy"], panel="test accuracy (%)")
    differing = select(subtract_exact(accuracies), line=RUNNING)
    lost = differing.assign(percent=-100 * differing["accuracy"], panel="points lost")
    both = pd.concat([percent, lost])
    return both.assign(done=100 * both["epoch"] / EPOCHS)


def compute_map(tables: Tables) -> pd.DataFrame:
    """Find what running averages lose in each cell of the map, with the words of its column and row."""
    of_each = [
        select(select_accuracies(tables, CELL, shares), **{SCHEDULE: schedule})
        for schedule, shares in ON_THE_MAP.items()
    ]
    accuracies = pd.concat(of_each, ignore_index=True)
    place = [*CELL, "panel"]
    exact = select(accuracies, line=EXACT).groupby(place)["accuracy"].mean().rename("exact").reset_index()
    lost = select(subtract_exact(accuracies), line=RUNNING).merge(exact, on=place)
    lost["is_learned"] = lost["exact"] > LEARNED
    lost["panel"] = lost[SCHEDULE].map(PANELS)

    # A share of the training falls on a whole step only nearly. Both panels have their columns in the same unit.
    share = (lost["epoch"] / EPOCHS).round(2)
    lost["column"] = share.map("{:.0%}".format)
    lost["row"] = "rate " + lost[RATE].map("{:g}".format)
    lost["is_falling"] = lost[SCHEDULE] == COSINE
    return lost.sort_values(["is_falling", RATE, "epoch"], kind="stable")


QUESTION = Question(
    bears_on=("Q9", "Q10", "Q11", "Q13", "Q17", "Q20", "Q24", "Q27", "Q28", "Q33", "Q36", "H2", "H9"),
    columns=("accuracy", "loss", "mean_gap"),
    command="""bnlab sweep experiment=real data.copies=true data.root=FOLDER
# FOLDER has the JPEG copies in train/<class>/ and test/<class>/
# the published images make other networks: data.download=true instead
# an hour and a half of one core a network, a third of it measuring""",
    figures={
        "cosine": Figure(
            "The same weights under running averages and under exact statistics, along a cosine",
            "Left: test accuracy of the same networks, in batches of 128 at a peak rate of 0.1, under running "
            "averages of momentum 0.1 and under exact statistics of augmented images, with a line for each seed. "
            "Right: what running averages lose within each network. Images are JPEG copies. At the end statistics are "
            "of all training images and all 10,000 test images are predicted, before it 5,000 of each.",
            score_each_seed(select_cosine, "percent", ("panel", "line", "done")),
            Curves("done", "line", Axis(""), across=ALONG, shares_y=False),
            Headline("Along a cosine, eval() understates accuracy by points, but by less than 0.3 at the end",
                     {"a_cosine_costs_on_the_way": (), "harmless_at_the_end": ("learning rate 0.1",)})),
        "map": Figure(
            "Points of accuracy lost under running averages, on CIFAR-10",
            "Points of test accuracy that a ResNet-20 loses in eval mode: accuracy under exact statistics of "
            "augmented images minus that under PyTorch's running averages (momentum 0.1), with the same weights. "
            "Columns are shares of 5,616 updates (16 epochs) in batches of 128; rows are the constant rate, or the "
            "peak of a cosine. Images are JPEG copies. Before the end exact statistics are of 5,000 training images, "
            "and 5,000 test images are predicted.",
            score(compute_map, "accuracy", ("panel", "row", "column", "is_learned"), scale=-100),
            Cells("column", "row", "is_learned", dict.fromkeys(PANELS.values(), "share of the training"), "",
                  "points of accuracy lost", "accuracy below 50%, even under exact statistics"),
            Headline("Running averages cost points at a constant rate, but less than 0.3 at the end of a cosine",
                     {"a_constant_rate_costs_on_average": (), "harmless_at_the_end": ()})),
    },
    claims={
        "a_cosine_costs_on_the_way": Claim(
            "At each of the first six tenths of a cosine, at rate 0.1, running averages lose over a point.",
            score(lambda tables: compute_lost(tables, *HIGH), "accuracy", ("panel",), scale=-100,
                  **ON_USUAL_COSINE), COSTS_A_POINT, lines="each"),
        "a_cosine_costs_on_average": Claim(
            "On average over the first six tenths of a cosine running averages lose over a point, at each rate.",
            score(lambda tables: compute_lost(tables, *HIGH), "accuracy", (RATE,), average="panel", scale=-100,
                  **ON_COSINE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "little_at_nine_tenths": Claim(
            "At nine tenths of a cosine running averages lose less than half a point, at each rate.",
            score(lambda tables: compute_lost(tables, 0.9), "accuracy", (RATE,), scale=-100, **ON_COSINE),
            below(*HALF), lines="each"),
        "harmless_at_the_end": Claim(
            "At the end of a cosine running averages lose less than 0.3 points, at each rate.",
            score(lambda tables: compute_lost(tables, 1.0), "accuracy", (RATE,), scale=-100, **ON_COSINE),
            COSTS_LITTLE, lines="each"),
        "harmless_at_the_end_in_most": Claim(
            "At the end of a cosine most networks lose less than 0.3 points, at each rate.",
            score(select_harmless, "is_harmless", (RATE,), **ON_COSINE), above(0.5, "of the networks", MOST),
            lines="each"),
        "a_constant_rate_keeps_costing": Claim(
            "At the end of a constant rate of 0.1 and of 0.4 running averages lose over a point.",
            score(lambda tables: compute_lost(tables, 1.0), "accuracy", (RATE,), scale=-100,
                  **AT_LARGE_CONSTANT_RATES), COSTS_A_POINT, lines="each"),
        "the_smallest_rate_keeps_costing_too": Claim(
            "At the end of a constant rate of 0.025 running averages lose over a point.",
            score(lambda tables: compute_lost(tables, 1.0), "accuracy", (RATE,), scale=-100,
                  **{**AT_CONSTANT_RATE, RATE: 0.025}), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "a_constant_rate_costs_on_average": Claim(
            "On average over the measured steps from a fifth of the training on, running averages lose over a point "
            "at each constant rate.",
            score(lambda tables: compute_lost(tables, *LATE), "accuracy", (RATE,), average="panel", scale=-100,
                  **AT_CONSTANT_RATE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "a_single_step_is_a_draw": Claim(
            "At a constant rate, what running averages lose varies between the measured steps of one network by a "
            "standard deviation of over a point, from a fifth of the training on.",
            score(compute_deviation, "deviation", (RATE,), scale=100, **AT_CONSTANT_RATE), COSTS_A_POINT,
            lines="each", post_hoc="asked"),
        "running_averages_fall_more": Claim(
            "At a constant rate the curve of test accuracy falls more under running averages than under exact "
            "statistics: all falls between one of the twelve measured steps and the next, added up.",
            score(compute_falls, "falls", (RATE,), scale=100, **AT_CONSTANT_RATE),
            above(0.0, "points more", "0 means that both curves fall equally"), lines="each", post_hoc="asked"),
        "it_grows_with_the_rate": Claim(
            "At a constant rate four times the rate loses more, from a fifth of the training on.",
            score(compute_lost_with_rate, "accuracy", ("rates",), average="panel", scale=-100, **AT_CONSTANT_RATE),
            above(0.0, "points more", "0 means that the rate does not matter"), lines="each"),
        "another_rate_is_picked": Claim(
            "At a constant rate, validation under running averages picks another learning rate than under exact "
            "statistics, in most seeds.",
            score(pick_rates, "differs", (SCHEDULE,), **AT_CONSTANT_RATE), above(0.5, "of the seeds", MOST),
            lines="each"),
        "that_rate_costs": Claim(
            "At a constant rate that pick costs over half a point of exact test accuracy.",
            score(pick_rates, "cost", (SCHEDULE, "seed"), scale=100, **AT_CONSTANT_RATE), above(*HALF),
            lines="each"),
        "a_cosine_picks_as_well": Claim(
            "At the end of a cosine the rate that running averages pick costs less than 0.3 points.",
            score(pick_rates, "cost", (SCHEDULE, "seed"), scale=100, **ON_COSINE), COSTS_LITTLE, lines="each"),
        "another_checkpoint_is_picked": Claim(
            "At a constant rate of 0.1 and of 0.4, validation under running averages picks another one of twelve "
            "checkpoints, in most networks.",
            score(pick_checkpoints, "differs", (RATE,), **AT_LARGE_CONSTANT_RATES),
            above(0.5, "of the networks", MOST), lines="each"),
        "another_checkpoint_is_picked_at_the_smallest_rate": Claim(
            "At a constant rate of 0.025, it does so, too.",
            score(pick_checkpoints, "differs", (RATE,), **{**AT_CONSTANT_RATE, RATE: 0.025}),
            above(0.5, "of the networks", MOST), lines="each", post_hoc="asked"),
        "that_checkpoint_costs_little": Claim(
            "At a constant rate that checkpoint costs less than half a point of exact test accuracy.",
            score(pick_checkpoints, "cost", (RATE, "seed"), scale=100, **AT_CONSTANT_RATE), below(*HALF),
            lines="each"),
        "a_cosine_picks_the_same_checkpoint": Claim(
            "Along a cosine, validation under running averages picks another one of twelve checkpoints in less than "
            "half of the networks.",
            score(pick_checkpoints, "differs", (RATE,), **ON_COSINE), below(0.5, "of the networks", MOST),
            lines="each", post_hoc="asked"),
        "configurations_are_in_order": Claim(
            "Of the pairs of the six configurations that are over a point apart under exact statistics, running "
            "averages put more than nine in ten in the same order, at each measured share of the training.",
            score(compare_order, "hits", ("panel",)), above(0.9, "share", "one in ten is wrong"), lines="each",
            post_hoc="asked"),
        "halving_by_running_averages_costs": Claim(
            "If you keep the better three of the six configurations at 5% of the training, by validation under "
            "running averages, you end over a point below the best of the six, under exact statistics.",
            score(lambda tables: halve(tables, 0.05), "cost", ("line", "seed"), scale=100, line=RUNNING),
            COSTS_A_POINT, lines="each", post_hoc="asked"),
        "halving_by_exact_statistics_costs_little": Claim(
            "If you keep them by validation under exact statistics, you end less than 0.3 points below it.",
            score(lambda tables: halve(tables, 0.05), "cost", ("line", "seed"), scale=100, line=EXACT),
            COSTS_LITTLE, lines="each", post_hoc="asked"),
        "halving_by_running_averages_costs_more": Claim(
            "On average over the measured shares up to half of the training, of which 5% is the one that costs most, "
            "running averages keep configurations that end lower than those that exact statistics keep.",
            score(lambda tables: halve(tables, *EARLY), "cost", ("line",), against=EXACT, along="line",
                  matching=("seed",), average="panel", scale=100),
            above(0.0, "points more", "0 means that both keep equally good ones"), lines="each", post_hoc="asked"),
        "the_last_batch_gains_on_the_way": Claim(
            "At a constant rate of 0.1 and of 0.4, statistics of the last batch alone, which lag one update behind, "
            "are more accurate than running averages, from a fifth of the training on.",
            score(lambda tables: subtract_running(tables, *LATE), "accuracy", (RATE,), average="panel", scale=100,
                  line=LAST, **AT_LARGE_CONSTANT_RATES), above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "the_last_batch_loses_at_the_end": Claim(
            "At the end of a cosine, statistics of the last batch alone are less accurate than running averages.",
            score(lambda tables: subtract_running(tables, 1.0), "accuracy", (RATE,), scale=100, line=LAST, **ON_COSINE),
            below(0.0, "points gained", AS_ACCURATE), lines="each"),
        "self_tuned_averages_gain_at_a_constant_rate": Claim(
            "At a constant rate self-tuned averages are more accurate than those of momentum 0.1, on average over the "
            "measured steps from a fifth of the training on.",
            score(lambda tables: subtract_running(tables, *LATE), "accuracy", (RATE,), average="panel", scale=100,
                  line=TUNED, **AT_CONSTANT_RATE), GAINS, lines="each", post_hoc="asked"),
        "self_tuned_averages_gain_on_a_cosine": Claim(
            "On average over the first six tenths of a cosine, they are, too.",
            score(lambda tables: subtract_running(tables, *HIGH), "accuracy", (RATE,), average="panel", scale=100,
                  line=TUNED, **ON_COSINE), GAINS, lines="each", post_hoc="asked"),
        "self_tuned_averages_lose_nothing_at_the_end": Claim(
            "At the end of a cosine they lose less than 0.3 points against those of momentum 0.1.",
            score(lambda tables: subtract_running(tables, 1.0), "accuracy", (RATE,), scale=100, line=TUNED,
                  **ON_COSINE), LOSES_LITTLE, lines="each", post_hoc="asked"),
        "augmented_images_gain": Claim(
            "At the end exact statistics of augmented images are more accurate than those of plain ones (known of "
            "one-cycle schedules, from an earlier experiment).",
            score(compute_gain_of_augmented, "accuracy", (SCHEDULE, RATE), scale=100, line=EXACT),
            above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "momentum_three_tenths_gains": Claim(
            "At a constant rate of 0.1 and of 0.4, from half of the training on, momentum 0.3 gains over half a point "
            "against 0.1 (known of rendered characters).",
            score(compute_gain_of_momenta, "accuracy", (RATE,), average="panel", scale=100, line="momentum 0.3",
                  **AT_LARGE_CONSTANT_RATES), above(0.5, "points gained", HALF[2]), lines="each"),
        "momentum_one_hundredth_costs_on_the_way": Claim(
            "A tenth, half and four fifths of the way along a cosine, at rate 0.1, running averages of momentum 0.01 "
            "(0.99 in Keras, where it is the default) lose over a point.",
            score(lambda tables: compute_lost_by_momenta(tables, *ON_THE_WAY), "accuracy", ("panel",), scale=-100,
                  line="momentum 0.01", **ON_USUAL_COSINE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "momentum_one_hundredth_is_harmless_at_the_end": Claim(
            "At the end of a cosine they lose less than 0.3 points, at each rate.",
            score(lambda tables: compute_lost_by_momenta(tables, 1.0), "accuracy", (RATE,), scale=-100,
                  line="momentum 0.01", **ON_COSINE), COSTS_LITTLE, lines="each", post_hoc="asked"),
        "counting_batches_twice_is_harmless": Claim(
            "Averages that count each batch twice, as activation checkpointing does, lose less than 0.3 points against "
            "those that count it once.",
            score(compute_gain_of_momenta, "accuracy", (SCHEDULE, RATE), average="panel", scale=100,
                  line="momentum 0.19"), LOSES_LITTLE, lines="each"),
        "copied_buffers_lose": Claim(
            "At a constant rate of 0.1 and of 0.4 averaged weights lose over a point under the trained network's "
            "running averages, from half of the training on.",
            score(compute_lost_by_averages, "accuracy", ("decay", RATE), average="panel", scale=-100, buffers="copied",
                  **AT_LARGE_CONSTANT_RATES), above(1.0, "points", A_POINT), lines="each"),
        "averaged_buffers_are_enough": Claim(
            "At the end, averaged weights lose less than 0.3 points under buffers that are averaged in the same way.",
            score(lambda tables: select(compute_lost_by_averages(tables), panel=END), "accuracy",
                  ("decay", SCHEDULE, RATE), scale=-100, buffers="averaged"), COSTS_LITTLE, lines="each"),
        "copied_buffers_lose_after_a_cosine": Claim(
            "At the end of a cosine averages over about the last thousand updates (decay 0.999) lose over a point "
            "under the trained network's running averages.",
            score(lambda tables: select(compute_lost_by_averages(tables), panel=END), "accuracy", (RATE,),
                  scale=-100, buffers="copied", decay=0.999, **ON_COSINE), above(1.0, "points", A_POINT),
            lines="each", post_hoc="asked"),
        "copied_buffers_serve_a_short_average": Claim(
            "At the end of a cosine averages over about the last hundred updates (decay 0.99) lose less than 0.3 "
            "points under the trained network's running averages.",
            score(lambda tables: select(compute_lost_by_averages(tables), panel=END), "accuracy", (RATE,),
                  scale=-100, buffers="copied", decay=0.99, **ON_COSINE), COSTS_LITTLE, lines="each",
            post_hoc="asked"),
        "buffers_that_were_left_ruin": Claim(
            "At the end, averaged weights lose over 20 points if their buffers were left at 0 and 1.",
            score(lambda tables: select(compute_lost_by_averages(tables), panel=END), "accuracy", ("decay", SCHEDULE),
                  average=RATE, scale=-100, buffers="left"), above(20.0, "points", "more than anyone would accept"),
                  lines="each"),
        "averaging_gains": Claim(
            "At a constant rate averaged weights are more accurate than the trained ones, both under exact statistics, "
            "at the end.",
            score(subtract_trained, "accuracy", ("line", RATE), scale=100, **AT_CONSTANT_RATE),
            above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "a_long_average_loses_after_a_cosine": Claim(
            "At the end of a cosine averages over about the last thousand updates (decay 0.999) are less accurate than "
            "the trained weights, both under exact statistics.",
            score(subtract_trained, "accuracy", (RATE,), scale=100, line="decay 0.999", **ON_COSINE),
            below(0.0, "points gained", AS_ACCURATE), lines="each", post_hoc="asked"),
    },
)  # fmt: skip
