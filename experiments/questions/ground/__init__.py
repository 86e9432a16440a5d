"""After how many updates are running averages good enough, for each batch size and schedule?

Every batch is full, and the number of updates is set independently of the batch size. Learning rates are picked by
validation under exact statistics on seeds 100 to 102, and tested on seeds 103 to 109. We tried 0.025, 0.1 and 0.4. If
the best rate was the largest or smallest, we also tried the next one beyond it, a factor of four away. At a constant
rate, one network is measured after 9 to 2,250 updates, at the rate that is best after 2,250. Each one-cycle schedule of
36 to 2,250 updates has a rate of its own. All claims except the post hoc ones were written before their numbers were
known; if earlier experiments had shown something, the claim says so. Where exact accuracy is below 50%, a network has
little to lose, and we claim nothing. Networks that collapsed to less than half of the median accuracy are left out. At
a constant rate and batch size 16, the rates 0.025 and 0.1 tied to five digits. We took the smaller, at which running
averages lose a point less. Batches of 4 and 16 were trained on a CPU, those of 64 and 256 on a GPU. A claim that one
curve of the gap predicts the loss failed and was withdrawn, and so were claims that no page quotes: [all of them, with
their verdicts](../../../experiments/withdrawn.md#claims-that-nothing-quotes).
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import lowest, paired, rows, score, select
from bnlab.harness.reporting.plots import ACCURACY, Axis, Cells, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below
from experiments.devices import ON_BOTH
from experiments.margins import COSTS_A_POINT, SIX_IMAGES
from experiments.recipes import RATE, SCHEDULE, VALIDATED, score_each_seed, select_collapses, select_tested, validate

CELL = ("batch_size", SCHEDULE, "steps")
CONSTANT, ONE_CYCLE = "constant", "onecycle"
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
OF_ONE_CYCLE: dict[str, Any] = {SCHEDULE: ONE_CYCLE}
NAMES = {CONSTANT: "constant rate, during training", ONE_CYCLE: "falling rate, at the end"}
EXACT_ON_TEST: dict[str, Any] = {"split": "test", "estimator": "exact", "statistics_split": "train"}
PYTORCH: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
ALIKE = 0.05  # difference of exact accuracies up to which batch sizes are compared
PAIRS = ((4, 16), (16, 64), (64, 256))
UPDATES = Axis("updates", log=True)
BEST = Axis("momentum with the lowest test loss", log=True)
LEARNED = 0.5  # exact accuracy, on average over seeds, from which on a network has something to lose


def find_rows(tables: Tables) -> pd.DataFrame:
    """Find test accuracies at the best rate: at a constant rate at all steps, of one-cycle schedules at the end.

    They come with `updates` and the columns of `select_exact`.
    """
    tested = select_tested(tables)
    settings = (*CELL, RATE)
    frame = rows(tested, "evaluations", by=settings, split="test")
    schedule = frame[SCHEDULE]
    updates = frame["step"]
    frame["updates"] = updates
    frame["panel"] = schedule.map(NAMES)

    # A one-cycle schedule has lowered the rate to 0 only at its end: its earlier steps stand for no training
    # of their length.
    is_constant = schedule == CONSTANT
    is_at_end = updates == frame["steps"]
    read = frame[is_constant | is_at_end]
    exact = select_exact(tested)
    return read.merge(exact, on=["run", "step"])


def compute_lost(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under exact statistics of the same weights: a share, negative where statistics lose."""
    frame = find_rows(tables)
    lost = paired(frame, "accuracy")
    return lost[~lost["is_collapsed"]]


def select_training(tables: Tables) -> pd.DataFrame:
    """Find test accuracies over 560 updates in batches of 64: at a constant rate, and of a one-cycle schedule."""
    tested = select_tested(tables)
    frame = rows(tested, "evaluations", by=(*CELL, RATE), split="test")
    read = select(frame, batch_size=64, estimator=("ema", "exact", "last_batch"))
    # The training at a constant rate goes on to 2,250 updates. Cut off, both panels cover the same number.
    constant = select(read, **AT_CONSTANT_RATE).query("step <= 560")
    falling = select(read, steps=560, **OF_ONE_CYCLE)
    both = pd.concat([name_by_rate(constant, "constant rate {:g}"), name_by_rate(falling, "falling from rate {:g}")])
    return both.assign(updates=both["step"])


def name_by_rate(frame: pd.DataFrame, words: str) -> pd.DataFrame:
    """Name a panel by the learning rate that its networks have in common."""
    return frame.assign(panel=frame[RATE].map(words.format))


def compute_lost_by_larger_momentum(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under running averages of momentum 0.1 from that of other momenta, where it has learned."""
    frame = select(find_rows(tables), estimator="ema", is_learned=True, is_collapsed=False)
    return paired(frame, "accuracy", 0.1, along="momentum")


def select_learned(tables: Tables) -> pd.DataFrame:
    """Find the same of running averages with momentum 0.1, where a network has something to lose."""
    return select(compute_lost(tables), is_learned=True, **PYTORCH)


def select_best_momenta(tables: Tables) -> pd.DataFrame:
    """Find the momentum whose running average has the lowest test loss, for each network and number of updates."""
    frame = select(find_rows(tables), estimator="ema")
    return lowest(frame, "loss", ["run", "step"])


def compute_larger_against_smaller(tables: Tables) -> pd.DataFrame:
    """Find how much more is lost at a batch size than at a quarter of it, at equal numbers of updates.

    Only where both have learned and their exact accuracies are within five points; the line says for how many numbers
    of updates that is so.
    """
    lost = select_learned(tables)
    pairs = []
    for small, large in PAIRS:
        both = select(lost, batch_size=(small, large))
        by_place = both.groupby([SCHEDULE, "updates"])
        accuracies = by_place["exact_mean"]
        lowest_accuracy = accuracies.transform("min")
        highest_accuracy = accuracies.transform("max")
        sizes = by_place["batch_size"].transform("nunique")
        is_alike = highest_accuracy - lowest_accuracy <= ALIKE
        alike = both[is_alike & (sizes == 2)]

        by_seed = alike.groupby("seed")
        # A collapsed network may leave a seed with one of the two sizes alone, which `paired` refuses.
        sizes_of_seed = by_seed["batch_size"].transform("nunique")
        compared = alike[sizes_of_seed == 2]
        if compared.empty:
            continue
        matching = ("seed", SCHEDULE, "updates")
        more = paired(compared, "accuracy", small, along="batch_size", matching=matching)
        by_schedule = more.groupby(SCHEDULE)
        count = by_schedule["updates"].transform("nunique")
        more["line"] = f"{large} against {small}, lengths compared: " + count.astype(str)
        pairs.append(more)
    # Without any pair, an empty frame that has the columns of the others: the claim is not measured then.
    return pd.concat(pairs) if pairs else lost.iloc[:0].assign(line="")


def compute_fall_of_momentum(tables: Tables) -> pd.DataFrame:
    """Find the best momentum after 2,250 updates over that after 144, where both have learned."""
    best = select_best_momenta(tables)
    ends = select(best, updates=(144, 2250), is_learned=True)
    cells = ends.groupby(["batch_size", SCHEDULE])
    count = cells["updates"].transform("nunique")
    both = ends[count == 2]
    # Without the columns in which both ends would have to agree.
    free = both.drop(columns=["step", "panel"])
    free["best"] = free.pop("momentum")
    matching = ("seed", "batch_size", SCHEDULE)
    return paired(free, "best", 144, along="updates", matching=matching, ratio=True)


def select_exact(tested: Tables) -> pd.DataFrame:
    """Find the exact test accuracy of each network and step, its mean over seeds, and if that is above 50%.

    `is_collapsed` says whether the network's accuracy is below half of the median.
    """
    evaluations = tested["evaluations"]
    runs = tested["runs"]
    measured = select(evaluations, **EXACT_ON_TEST)
    cells = runs[["run", *CELL]]
    exact = measured.merge(cells, on="run")

    place = [*CELL, "step"]
    by_place = exact.groupby(place)
    # Over seeds: were each network judged by its own accuracy, the worst seeds of a place would be left out.
    means = by_place["accuracy"].transform("mean")
    exact["exact_mean"] = means
    exact["is_learned"] = means > LEARNED
    exact["is_collapsed"] = select_collapses(exact, place)
    return exact[["run", "step", "exact_mean", "is_learned", "is_collapsed"]]


BOTH = (36, 144, 560, 2250)  # updates after which both schedules were measured

QUESTION = Question(
    bears_on=("Q9", "Q13", "Q15", "Q17", "Q20", "Q24", "H2"),
    sweeps=("ground_rates", "ground_constant", "ground_onecycle"),
    columns=("accuracy", "loss", "mean_gap", "kl", "output_gap"),
    remarks=(ON_BOTH,),
    figures={
        "training": Figure(
            "The same weights under three kinds of statistics, over training",
            "Test accuracies of the same networks at batch size 64, under running averages of momentum 0.1, under "
            "exact statistics, and under those of the last batch alone. Left: the first 560 of 2,250 updates at a "
            "constant learning rate. Right: all updates of a schedule that rises for a fifth of the training and then "
            "falls to 0. Each schedule has its best rate, and these differ sixteenfold.",
            score(select_training, "accuracy", ("panel", "estimator", "updates"), scale=100, momentum=(0.1, None)),
            Curves("updates", "estimator", ACCURACY, across=Axis("updates")),
            headline=Headline(
                "At batch size 64, eval() understates accuracy until the learning rate has fallen to 0",
                {"constant_rates_cost_early": ("batch size 64",),
                 "harmless_at_the_end": ("batch size 64, updates 560",)})),
        "map": Figure(
            "Points of accuracy lost under running averages",
            "Points of test accuracy that a network loses in eval mode: accuracy under exact statistics minus that "
            "under PyTorch's running averages (momentum 0.1), with the same weights. Above, one training run at a "
            "constant learning rate is measured after so many updates; below, each cell is the end of a one-cycle run "
            "of that length. A network that has learned little has little to lose. Batch sizes 4 and 16 were trained "
            "on a CPU, 64 and 256 on a GPU.",
            score(compute_lost, "accuracy", ("panel", "batch_size", "updates", "is_learned"), scale=-100, updates=BOTH,
                  **PYTORCH),
            Cells("updates", "batch_size", "is_learned", dict.fromkeys(NAMES.values(), "number of updates"),
                  "batch size", "points of accuracy lost", "accuracy below 50%, even under exact statistics"),
            Headline("Once the learning rate has fallen, over 560 updates or more, running averages lose less than "
                     "half a point at batch sizes 16 to 256",
                    {"harmless_at_the_end": ("batch size 16", "batch size 64", "batch size 256")})),
        "best_momentum": Figure(
            "The best momentum, by the number of updates",
            "For each number of updates, the momentum (from 0.003 to 0.9) of the running average with the lowest test "
            "loss; nothing is drawn where exact accuracy is below 50%, because little can be lost there.",
            score(select_best_momenta, "momentum", ("panel", "batch_size", "updates"), geometric=True, is_learned=True),
            Curves("updates", "batch_size", BEST, across=UPDATES),
            Headline("Where the learning rate falls, the best momentum falls with the number of updates, at batch "
                     "sizes 64 and 256", {"the_best_momentum_is_smaller": ()})),
        "rates": Figure(
            "Learning rates are picked by these validation accuracies, under exact statistics",
            "Look for the highest point of the lines of a colour: validation accuracy at the end, a line for each of "
            "the seeds 100 to 102; a network that diverged counts with chance accuracy.",
            score_each_seed(validate, "accuracy", (SCHEDULE, "steps", "batch_size", RATE), scale=100),
            Curves(RATE, "batch_size", VALIDATED, across=Axis("learning rate", (0.004, 2.4), log=True)),
            panels="{optimizer.schedule}, {steps} updates",
            names={SCHEDULE: {CONSTANT: CONSTANT, ONE_CYCLE: ONE_CYCLE}}),
    },
    claims={
        "larger_batches_do_not_lose_more": Claim(
            "At equal numbers of updates, if exact accuracies are within five points, running averages do not lose "
            "over 0.3 points more at four times the batch size.",
            score(compute_larger_against_smaller, "accuracy", ("line", SCHEDULE), average="updates", scale=-100),
            below(0.3, "points", SIX_IMAGES), lines="each"),
        "harmless_at_the_end": Claim(
            "From 560 updates of a one-cycle schedule on, running averages lose less than half a point at the end "
            "(known of 560 updates, from an earlier experiment at one rate).",
            score(select_learned, "accuracy", ("batch_size", "updates"), scale=-100, updates=(560, 2250),
                  **OF_ONE_CYCLE), below(0.5, "points", "half of what networks of this size are "
                                                        "chosen by"), lines="each"),
        "constant_rates_keep_costing": Claim(
            "At a constant rate running averages still lose over a point after 2,250 updates.",
            score(select_learned, "accuracy", ("batch_size",), scale=-100, updates=2250, **AT_CONSTANT_RATE),
            COSTS_A_POINT, lines="each"),
        "constant_rates_cost_early": Claim(
            "At a constant rate running averages lose over a point after 144 and after 560 updates.",
            score(select_learned, "accuracy", ("batch_size", "updates"), scale=-100, updates=(144, 560),
                  **AT_CONSTANT_RATE), COSTS_A_POINT,
            lines="each", post_hoc="asked"),
        "long_memories_cost_after_few_updates": Claim(
            "With momentum 0.01 running averages lose over five points after 144 updates of a one-cycle schedule.",
            score(lambda tables: compute_lost(tables).query("is_learned"), "accuracy", ("batch_size",), scale=-100,
                  updates=144, estimator="ema", momentum=0.01, **OF_ONE_CYCLE),
            above(5.0, "points", "0.99 to the power of 144 is a quarter: that much is left of the "
                                 "start at 0 and 1"), lines="each"),
        "the_last_batch_nearly_alone_is_harmless_late": Claim(
            "At the end of one-cycle schedules of 560 updates or more, at tuned rates, momentum 0.9 loses less than "
            "0.3 points against 0.1.",
            score(compute_lost_by_larger_momentum, "accuracy", ("batch_size", "updates"), scale=-100,
                  updates=(560, 2250), momentum=0.9, **OF_ONE_CYCLE), below(0.3, "points", SIX_IMAGES),
            lines="each", post_hoc="asked"),
        "the_best_momentum_falls": Claim(
            "The best momentum is at most half as large after 2,250 updates as after 144.",
            score(compute_fall_of_momentum, "best", ("batch_size", SCHEDULE), geometric=True),
            below(0.5, "times", "neighbouring values differ by a factor of three"), lines="each"),
        "the_best_momentum_is_smaller": Claim(
            "At the end of one-cycle schedules the best momentum is smaller after 2,250 updates than after 144.",
            score(compute_fall_of_momentum, "best", ("batch_size", SCHEDULE), geometric=True, **OF_ONE_CYCLE),
            below(1.0, "times", "1 means that the number of updates does not matter"),
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
