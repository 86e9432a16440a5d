"""Can the points that running averages lose be foretold without training images?

The forecast: accuracy under the self-tuned momentum, replayed over the recorded batches, minus accuracy under running
averages of momentum 0.1, on validation images. What it foretells: exact accuracy minus that under running averages, on
test images. It abstains where the training batches do not scatter like independent images (`batch_scatter` above 3): in
trials on rendered characters, one network each (a cnn, an mlp, AdamW, batches of 64 and 256), that was 0.5 to 2.4 where
images were shuffled, and 3.3 to 14 where they came class after class (on the networks of this page 0.3 to 3.2, and 1.3
to 11: after 36 updates it does not tell them apart). Rule, constants and claims were committed before the first
training of `real`, on whose networks it is tested, and on others that it has not seen. In earlier tables, which
suggested it, it had a recall of 0.91, a precision of 0.82, and 82% of the losses above two points within a factor of
two. Networks on characters were added to those of `real` when the verdicts on these were known; five of seven seeds are
there.

The forecast is for the weights at the same step, not for later ones. It needs the statistics of all training batches,
recorded while training, and labelled validation images, but no further pass over training images. Recall and precision
say less than they seem to: at a constant rate nine of ten steps of `real` lose over two points, and six of ten along a
cosine; on characters six of ten of the cnn and of AdamW, and 3% of the mlp. So claims that are post hoc compare it with
two more: what other seeds lose at the same setting and step, and exact statistics of training images, by which what is
foretold is defined.

Each network gives one number where something is tested, and intervals are over networks: on this page *n* counts
networks, and so does the word seeds. Each seed of `real` has three, one at each rate; on characters a seed has two of
each kind, one at each batch size, and four of the cnn. Networks of one seed are not independent (at a constant rate on
CIFAR-10 their errors correlate by 0.8), so that intervals may be too narrow: with seeds averaged three verdicts become
undecided, precision along a cosine and of the mlp, and AdamW against the curve of the gap. Networks without a step of
the kind that a line is about are not among its n. A line that has one value in all of its networks is a count and no
test.
"""

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, below
from bnlab.harness.reporting.frames import score, select
from bnlab.harness.reporting.means import average_gap
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.recipes import EXACT, LAST, RUNNING, SCHEDULE, TUNED, select_accuracies
from experiments.tuning import RATE

FLAGGED = 1.0  # points foretold, above which a loss of more than LARGE points is expected
LARGE = 2.0  # points
LITTLE = 0.5  # points
FACTOR = 2.0  # up to which a forecast is near
MOST_SCATTER = 3.0  # of independent batches; see `batch_scatter`
SETTINGS = ("data", "model", "model.depth", "optimizer", "order", "batch_size", SCHEDULE, RATE)
SHUFFLED = "shuffled"
IN_ORDER = "class after class"
RIVALS = {
    "by_gap": "a curve of the gap",
    "by_last_batch": "the last batch",
    "by_seeds": "other seeds at this step",
    "by_exact": "exact statistics",
}


def forecast_losses(tables: Tables) -> pd.DataFrame:
    """Foretell the loss of each network at each measured step, beside what it lost.

    Returns:
        A row for each network and step, with the columns `kind` (what the network is), `lost` (points of test accuracy,
        exact minus running averages), `foretold` (points, NaN where the forecast abstains), `by_last_batch` (the last
        batch in place of the self-tuned momentum), `by_gap` (read off a curve of the gap, see `read_off_curve`),
        `by_exact` (exact statistics in its place), `by_seeds` (see `average_other_seeds`), `abstains`; and a `seed`
        that is another one for each network, so that intervals are over networks.
    """
    points = 100 * _widen(select_accuracies(tables, SETTINGS, split=("val", "test")))
    frame = pd.DataFrame(
        {
            "lost": points["test", EXACT] - points["test", RUNNING],
            "foretold": points["val", TUNED] - points["val", RUNNING],
            "by_last_batch": points["val", LAST] - points["val", RUNNING],
            "by_exact": points["val", EXACT] - points["val", RUNNING],
        }
    ).reset_index()

    runs = tables["runs"].set_index("run")
    described = runs.loc[frame["run"], [*SETTINGS, "seed"]].reset_index(drop=True)
    frame = pd.concat([frame, described], axis=1)
    frame["kind"] = name_kinds(frame)
    frame["abstains"] = look_dependent(tables, frame)
    frame["foretold"] = frame["foretold"].mask(frame["abstains"])
    frame["by_gap"] = read_off_curve(frame.assign(gap=find_gaps(tables, frame)))
    frame["by_seeds"] = average_other_seeds(frame)
    return frame.assign(seed=pd.factorize(frame["run"])[0])


def _widen(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Put the accuracies of a network and step side by side, by split and statistics."""
    return accuracies.pivot(index=["run", "step"], columns=["split", "line"], values="accuracy")


def name_kinds(frame: pd.DataFrame) -> pd.Series:
    """Name what each network is: of CIFAR-10 its schedule, else what sets it apart from the small cnn with SGD."""
    kinds = frame["model"] + " on characters"
    kinds = kinds.mask(frame["optimizer"] == "adamw", "AdamW on characters")
    kinds = kinds.mask(frame["order"] != SHUFFLED, IN_ORDER)
    is_real = frame["data"] == "cifar10"
    schedules = frame[SCHEDULE].map({"constant": "constant rate", "cosine": "cosine"})
    return kinds.mask(is_real, "CIFAR-10, " + schedules.astype(str))


def look_dependent(tables: Tables, frame: pd.DataFrame) -> pd.Series:
    """Find out where training batches do not scatter like independent images: there the forecast abstains."""
    scatter = tables["batch_scatter"].set_index(["run", "step"])["scatter"]
    places = pd.MultiIndex.from_frame(frame[["run", "step"]])
    measured = scatter.reindex(places).to_numpy()
    return pd.Series(measured > MOST_SCATTER, frame.index)


def find_gaps(tables: Tables, frame: pd.DataFrame) -> np.ndarray:
    """Find the gap of running means in the deeper layers, to augmented images where training augments."""
    places = pd.MultiIndex.from_frame(frame[["run", "step"]])
    gaps = pd.Series(np.nan, places)
    for table in ("augmented_gaps", "gaps"):
        if table in tables:
            running = select(tables[table], estimator="ema", momentum=0.1)
            measured = average_gap(running).set_index(["run", "step"])["mean_gap"]
            gaps = gaps.fillna(measured.reindex(places))
    return gaps.to_numpy()


def read_off_curve(frame: pd.DataFrame) -> np.ndarray:
    """Foretell losses by the gap: a curve that never falls, fitted to all networks of other seeds of the same kind.

    The curve has an advantage that the forecast has not: it has seen losses of the same kind of network, and needs
    training images for the gap.
    """
    foretold = np.full(len(frame), np.nan)
    for (kind, seed), networks in frame.groupby(["kind", "seed"]):
        others = frame[(frame["kind"] == kind) & (frame["seed"] != seed)].sort_values("gap")
        if len(others) < 2:
            continue
        curve = isotonic_regression(others["lost"].to_numpy()).x
        foretold[networks.index] = np.interp(networks["gap"], others["gap"], curve)
    return foretold


def average_other_seeds(frame: pd.DataFrame) -> pd.Series:
    """Average what other networks of the same setting lost at the same step; NaN where there are none."""
    lost = frame.groupby([*SETTINGS, "step"], dropna=False)["lost"]
    count = lost.transform("size")
    others = (lost.transform("sum") - frame["lost"]) / (count - 1)
    return others.where(count > 1)


def compute_recall(tables: Tables) -> pd.DataFrame:
    """Compute, for each network, the share of its large losses that were flagged."""
    frame = forecast_losses(tables)
    large = frame[(frame["lost"] > LARGE) & ~frame["abstains"]]
    return _average(large.assign(hits=large["foretold"] > FLAGGED))


def compute_precision(tables: Tables) -> pd.DataFrame:
    """Compute, for each network, the share of its flags where a large loss was."""
    frame = forecast_losses(tables)
    flagged = frame[frame["foretold"] > FLAGGED]
    return _average(flagged.assign(hits=flagged["lost"] > LARGE))


def compute_nearness(tables: Tables) -> pd.DataFrame:
    """Compute, for each network, the share of its large losses that were foretold to a factor of two."""
    frame = forecast_losses(tables)
    large = frame[(frame["lost"] > LARGE) & ~frame["abstains"]]
    ratio = large["foretold"] / large["lost"]
    return _average(large.assign(hits=ratio.between(1 / FACTOR, FACTOR)))


def compute_silence(tables: Tables) -> pd.DataFrame:
    """Compute, for each network, the share of its steps with little lost at which nothing was flagged."""
    frame = forecast_losses(tables)
    little = frame[(frame["lost"] < LITTLE) & ~frame["abstains"]]
    return _average(little.assign(hits=little["foretold"] <= FLAGGED))


def compute_abstentions(tables: Tables) -> pd.DataFrame:
    """Compute, for each network, the share of its steps at which the forecast abstains."""
    frame = forecast_losses(tables)
    return _average(frame.assign(hits=frame["abstains"]))


def compute_errors(tables: Tables, *rivals: str) -> pd.DataFrame:
    """Subtract the mean absolute error of other forecasts from that of ours, in points, for each network.

    Args:
        tables: the tables of the experiment.
        rivals: columns of `forecast_losses` that are compared, see `RIVALS`.
    """
    frame = forecast_losses(tables)
    spoken = frame[~frame["abstains"]]
    error = (spoken["foretold"] - spoken["lost"]).abs()
    compared = []
    for column in rivals:
        other = (spoken[column] - spoken["lost"]).abs()
        compared_rows = spoken.assign(difference=error - other, against=RIVALS[column])
        compared.append(compared_rows.groupby(["kind", "seed", "against"])["difference"].mean().reset_index())
    return pd.concat(compared)


def compute_bias(tables: Tables) -> pd.DataFrame:
    """Subtract what was lost from what was foretold, in points, averaged over the steps of each network."""
    frame = forecast_losses(tables)
    spoken = frame[~frame["abstains"]]
    return _average(spoken.assign(bias=spoken["foretold"] - spoken["lost"]), "bias")


def _average(frame: pd.DataFrame, column: str = "hits") -> pd.DataFrame:
    """Average a column of each network over its steps."""
    return frame.groupby(["kind", "seed"])[column].mean().reset_index()


def is_shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the networks whose training shuffled its images."""
    return frame[frame["kind"] != IN_ORDER]


def select_errors(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: what each forecast is off, in points, by kind of network."""
    frame = forecast_losses(tables)
    # All at the same steps: of those at which the forecast abstains, none is drawn.
    frame = frame[~frame["abstains"]]
    names = {"foretold": "the forecast", **RIVALS}
    drawn = []
    for column, name in names.items():
        error = (frame[column] - frame["lost"]).abs()
        by_network = frame.assign(error=error, line=name).groupby(["kind", "seed", "line"])["error"].mean()
        drawn.append(by_network.reset_index())
    return pd.concat(drawn).assign(panel="")


EXPERIMENT = Experiment(
    bears_on=("Q16", "Q10", "Q14"),
    sweeps=("forecast",),
    columns=("accuracy", "mean_gap", "scatter"),
    command="""bnlab sweep experiment=forecast
# of the networks of `real`, which are neither trained nor measured again; without the tables that it does not read:
bnlab sweep experiment=real name=forecast data.download=true measurements=[evaluations,\
experiments.questions.cifar10_augmented.measurement.AugmentedGaps,experiments.questions.forecast.measurement.BatchScatter]
bnlab sweep experiment=real_batches name=forecast with the same words""",
    figures={
        "errors": Figure(
            "Errors of the forecasts, in points",
            "Compare the points beside a kind of network, where less is better: the mean absolute difference between "
            "the points foretold and those lost, over the steps of a network at which the forecast does not abstain. "
            "The curve of the gap is fitted to other networks of the same kind, whose losses it has seen, and needs "
            "training images. Other seeds are the mean loss of networks with the same setting at the same step. Exact "
            "statistics of training images are scored on validation images, as the forecast and the last batch are.",
            score(select_errors, "error", ("panel", "kind", "line")),
            Forest("kind", Axis("off by (points)"), series="line"), over="network"),
    },
    claims={
        "large_losses_are_flagged": Claim(
            "Of losses over two points the forecast flags at least 85%, as more than one point foretold.",
            score(lambda tables: is_shuffled(compute_recall(tables)), "hits", ("kind",)),
            above(0.85, "of the steps", "six of seven; earlier tables had 91%"), lines="each"),
        "flags_are_large_losses": Claim(
            "At least 75% of what it flags are losses over two points.",
            score(lambda tables: is_shuffled(compute_precision(tables)), "hits", ("kind",)),
            above(0.75, "of the steps", "three of four alarms; earlier tables had 82%"), lines="each"),
        "large_losses_are_foretold": Claim(
            "At least 75% of losses over two points are foretold to a factor of two.",
            score(lambda tables: is_shuffled(compute_nearness(tables)), "hits", ("kind",)),
            above(0.75, "of the steps", "three of four; earlier tables had 82%"), lines="each"),
        "better_than_others": Claim(
            "The forecast is off by less than a curve of the gap, and by less than the last batch in its place.",
            score(lambda tables: is_shuffled(compute_errors(tables, "by_gap", "by_last_batch")), "difference",
                  ("kind", "against")),
            below(0.0, "points", "at 0 the other one does as well"), lines="each"),
        "nearer_than_other_seeds": Claim(
            "The forecast is off by less than what other seeds lose on average at the same setting and step.",
            score(lambda tables: is_shuffled(compute_errors(tables, "by_seeds")), "difference", ("kind",)),
            below(0.0, "points", "at 0 the other one does as well"), lines="each", post_hoc="asked"),
        "exact_statistics_are_nearer": Claim(
            "The forecast is off by more than exact statistics of training images in its place.",
            score(lambda tables: is_shuffled(compute_errors(tables, "by_exact")), "difference", ("kind",)),
            above(0.0, "points", "at 0 the other one does as well"), lines="each", post_hoc="asked"),
        "it_foretells_too_little": Claim(
            "The forecast is too low on average: self-tuned averages fall short of exact statistics, too.",
            score(lambda tables: is_shuffled(compute_bias(tables)), "bias", ("kind",)),
            below(0.0, "points", "at 0 it is right on average"), lines="each", post_hoc="asked"),
        "silent_where_little_is_lost": Claim(
            "Where less than half a point is lost, at least 95% of the time nothing is flagged.",
            score(lambda tables: is_shuffled(compute_silence(tables)), "hits", ("kind",)),
            above(0.95, "of the steps", "one false alarm in twenty is what a test at 5% allows"), lines="each"),
        "it_abstains": Claim(
            "Where training sees class after class, the forecast abstains in at least 90% of the steps.",
            score(compute_abstentions, "hits", ("kind",), kind=IN_ORDER),
            above(0.9, "of the steps", "what it says there is of the classes that came last"), lines="each"),
        "it_speaks_elsewhere": Claim(
            "Where images are shuffled, it abstains in less than 10% of the steps.",
            score(lambda tables: is_shuffled(compute_abstentions(tables)), "hits", ("kind",)),
            below(0.1, "of the steps", "who is told nothing has no use of it"), lines="each"),
    },
)  # fmt: skip
