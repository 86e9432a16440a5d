"""Can statistics follow the weights without a forward pass, and are they better than running averages?

A batch norm after a convolution with weights W has the mean W m and the variance diag(W M Wᵀ) − (W m)², where m and M
are moments of what the convolution is given. A slow average of these thus serves any weights, the newest ones and
averages of the weights too; of 1,000 patches a layer and batch it costs little, and no forward. What it lags behind are
the layers before. These are the networks of `fashion`, `step_schedule` and `scaled_batches`; nothing is trained for it.
Training keeps no such averages: they are made afterwards of what training saw, see `measurement.py` beside this.

All claims were written before the first training. In a pilot of 150 updates, five convolutions and 6,000 images, such
statistics won back 88 and 89% of what momentum 0.1 loses at a constant rate, and 68 and 92% of what copied buffers cost
averages of the weights. If less than half of the latter is won back the idea is dropped.

A *cell* is a data set, a batch size and a schedule. All numbers but those of the end are averages over the measured
steps from a fifth of the training on. Averages of the weights have decay 0.999.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import OtherThan, paired, rows, score, select
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below
from experiments.margins import AS_ACCURATE
from experiments.recipes import (
    CONSTANT,
    COSINE,
    EXACT,
    PLAIN,
    RUNNING,
    SCHEDULE,
    STEP,
    TUNED,
    name_dataset,
    select_accuracies,
    subtract_exact,
)

SETTINGS = ("data", "batch_size", SCHEDULE)  # in which networks differ
CELL = ("dataset", "batch_size", SCHEDULE)
FOLLOWED = "followed statistics"
BUFFERS = {"copied": "copied buffers", "averaged": "averaged buffers", "followed": FOLLOWED, "exact": EXACT}
LATE = 0.2  # share of the training from which on it is averaged
DECAY = 0.999
LARGE = 2.0  # points that copied buffers lose in a cell
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
FALLING: dict[str, Any] = {SCHEDULE: (COSINE, STEP)}
_BY_LINE = ["split", "shift", "decay", "statistics"]  # columns that `line` takes the place of


def select_late(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the rows from a fifth of the training on."""
    # Steps are whole numbers, so that the one at a fifth may lie a little before it.
    return frame[frame["step"] + 1 > LATE * frame["steps"]]


def select_trained(tables: Tables) -> pd.DataFrame:
    """Find the test accuracies of trained weights under each kind of statistics, which `line` names."""
    known = select_accuracies(tables, SETTINGS)
    followed = rows(tables, "followed", (), SETTINGS, decay=0.0, statistics="followed")
    followed = followed.assign(line=FOLLOWED, panel="")
    together = pd.concat([known, followed])
    return together.assign(dataset=name_dataset(together)).drop(columns=_BY_LINE)


def select_averaged(tables: Tables) -> pd.DataFrame:
    """Find the test accuracies of averaged weights by what became of their buffers, which `line` names."""
    frame = rows(tables, "followed", (), SETTINGS, decay=DECAY)
    line = frame["statistics"].map(BUFFERS)
    return frame.assign(line=line, dataset=name_dataset(frame)).drop(columns=["decay", "statistics"])


def average_late(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Average the accuracies of each network over its late steps, and put the kinds of statistics side by side."""
    means = select_late(accuracies).groupby([*CELL, "seed", "line"])["accuracy"].mean()
    return means.unstack("line")


def compute_won_back(accuracies: pd.DataFrame, lost: str) -> pd.DataFrame:
    """Compute the share of what a kind of statistics loses that followed statistics win back.

    Args:
        accuracies: of `select_trained` or `select_averaged`.
        lost: the kind of statistics.

    Returns:
        A row for each network, with `won`, that share, and `lost`, points.
    """
    means = average_late(accuracies)
    lost_by = means[EXACT] - means[lost]
    won = (means[FOLLOWED] - means[lost]) / lost_by
    return pd.DataFrame({"won": won, "lost": 100 * lost_by}).reset_index()


def won_by_averaged(tables: Tables) -> pd.DataFrame:
    """Compute what averaged weights win back of what copied buffers lose, in cells that lose over two points."""
    won = compute_won_back(select_averaged(tables), BUFFERS["copied"])
    return won[won.groupby([*CELL])["lost"].transform("mean") > LARGE]


def compare_buffers(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under averaged buffers from that under followed statistics, in the same cells, points."""
    means = average_late(select_averaged(tables))
    gained = (100 * (means[FOLLOWED] - means[BUFFERS["averaged"]])).rename("gained").reset_index()
    return gained.merge(won_by_averaged(tables)[[*CELL, "seed"]])


def compare_self_tuned(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under self-tuned averages from the others, of trained weights."""
    return select_late(paired(select_trained(tables), "accuracy", TUNED, along="line"))


def compute_lost_at_end(tables: Tables) -> pd.DataFrame:
    """Subtract exact accuracies from those under followed statistics, of trained weights at the end."""
    lost = select(subtract_exact(select_trained(tables)), line=FOLLOWED)
    return lost[lost["step"] == lost["steps"]]


def select_drawn(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: what each kind of statistics loses in each cell, in panels by kind of weights."""
    accuracies = {"trained weights": select_trained(tables), "averaged weights": select_averaged(tables)}
    drawn = [select_late(subtract_exact(of_kind)).assign(panel=panel) for panel, of_kind in accuracies.items()]
    # Exact statistics of plain images are left out, which were measured of trained weights alone.
    together = select(pd.concat(drawn), line=OtherThan(PLAIN))
    name = together["dataset"] + ", " + together[SCHEDULE] + ", " + together["batch_size"].astype(str)
    return together.assign(name=name)


QUESTION = Question(
    bears_on=("Q13", "Q36", "H9"),
    columns=("accuracy",),
    remarks=(
        "**Dropped.** On a cosine followed statistics win back a quarter of what averaged weights lose under copied "
        "buffers, surely less than half. That ends the idea, as written before the first training; its code is kept "
        "for this page alone.",
        "**Not trained.** Of the networks that were planned these are those of `fashion`. Those of `step_schedule` and "
        "`scaled_batches` were not trained.",
    ),
    command="""# of the networks of three experiments, which are neither trained nor measured again:
bnlab sweep experiment=fashion name=followed data.root=/usr/share/datasets/fashion-mnist \
'measurements=[evaluations,experiments.questions.followed.measurement.Followed]'
bnlab sweep experiment=step_schedule name=followed data.download=true and the same measurements
bnlab sweep experiment=scaled_batches name=followed data.download=true and the same measurements""",
    figures={
        "lost": Figure(
            "Points of accuracy lost under statistics that follow the weights",
            "Compare the points beside a cell, where less is better: points of test accuracy lost against exact "
            "statistics of the same weights, averaged over the measured steps from a fifth of the training on. A cell "
            "is a data set, a schedule and a batch size. Averaged weights have decay 0.999. A ResNet-20.",
            score(select_drawn, "accuracy", ("panel", "name", "line"), average="step", scale=-100),
            Forest("name", Axis("points of accuracy lost"), mark=(0.0, "exact statistics"), series="line"),
            networks="Fashion-MNIST; ResNet-20"),
    },
    claims={
        "averaged_weights_win_back": Claim(
            "Followed statistics win back at least 80% of what averaged weights lose under copied buffers, at each of "
            "the cells in which these lose over two points.",
            score(won_by_averaged, "won", CELL), above(0.8, "of what is lost", "four fifths of a loss are most of it"),
            lines="each"),
        "averaged_weights_win_back_half": Claim(
            "Followed statistics win back at least half of it, at each of these cells; else the idea is dropped.",
            score(won_by_averaged, "won", CELL), above(0.5, "of what is lost", "less than half is not worth code"),
            lines="each"),
        "better_than_averaged_buffers": Claim(
            "Averaged weights are more accurate under followed statistics than under buffers that are averaged "
            "likewise, at each of these cells.",
            score(compare_buffers, "gained", CELL), above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "a_point_better_than_self_tuned": Claim(
            "At a constant rate trained weights are over a point more accurate under followed statistics than under "
            "self-tuned averages, at each of the cells.",
            score(compare_self_tuned, "accuracy", CELL, average="step", scale=100, line=FOLLOWED, **AT_CONSTANT_RATE),
            above(1.0, "points gained", "less would not pay for another average"), lines="each"),
        "trained_weights_win_back": Claim(
            "At a constant rate followed statistics win back at least 80% of what trained weights lose under running "
            "averages, at each of the cells.",
            score(lambda tables: compute_won_back(select_trained(tables), RUNNING), "won", CELL, **AT_CONSTANT_RATE),
            above(0.8, "of what is lost", "the pilot had 88%"), lines="each"),
        "harmless_at_the_end": Claim(
            "At the end of each schedule that falls trained weights lose less than 0.3 points under followed "
            "statistics, at each of the cells.",
            score(compute_lost_at_end, "accuracy", CELL, scale=-100, **FALLING),
            below(0.3, "points", "30 of 10,000 test images, about the standard error at 90% accuracy"),
            lines="each"),
    },
)  # fmt: skip
