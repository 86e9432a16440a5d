"""Can networks be trained on one image at a time, with which norm, and what memory does that save?

Ruff 2017 (gain control), Wu & He 2018 (group norm), Ulyanov et al. 2016 (instance norm): none of them needs a batch.
All networks have the same untuned learning rate, scaled to the batch. There were fifteen seeds from the start, and all
claims were written before their numbers were known.
"""

import pandas as pd

from bnlab.harness.reporting.frames import put_in_order, rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below
from experiments.devices import ON_BOTH
from experiments.margins import A_POINT
from experiments.recipes import name_lines

NAMES = {
    "batch": "batch norm (none in batches of 1)",
    "group": "group norm",
    "instance": "instance norm",
    "gain_control": "gain control",
}
ALONE = ("group", "instance", "gain_control")  # norms of each image
GAINED = ("points gained", A_POINT)


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find test accuracies at the end of training; batch norm is evaluated under exact statistics."""
    frame = rows(tables, "evaluations", 1.0, ("norm", "batch_size"), estimator=("none", "exact"))
    return name_lines(frame, "norm", NAMES)


def name_updates(tables: Tables) -> pd.DataFrame:
    """Name the batch sizes with the updates that networks make at them."""
    frame = select_accuracies(tables).sort_values("batch_size", kind="stable")
    named = frame["batch_size"].map("batch size {:g}, ".format) + frame["step"].map("{:,.0f} updates".format)
    return put_in_order(frame.assign(panel="", words=named), "line", NAMES.values())


QUESTION = Question(
    bears_on=("Q41", "F5", "F6"),
    sweeps=("batch_of_one", "batch_of_one_others"),
    columns=("accuracy", "saved_bytes", "step_bytes"),
    remarks=(ON_BOTH,),
    figures={
        "accuracy": Figure(
            "Accuracy by norm, trained on one image at a time and in batches of 32",
            "Compare the two points of a norm: test accuracy at the end of training in batches of 1 and of 32. Each "
            "image is seen four times, so batches of 1 make 32 times as many updates. All norms have the same "
            "learning rate, which is not tuned. Batch norm cannot train on single images; its accuracy is under exact "
            "statistics.",
            score(name_updates, "accuracy", ("panel", "line", "words"), scale=100),
            Forest("line", Axis("test accuracy (%)"), series="words"),
            Headline("With 32 times as many updates, norms of single images do at least as well at batch size 1 as "
                     "at batch size 32", {"one_image_is_enough": ()})),
    },
    claims={
        "one_image_is_enough": Claim(
            "Networks that were trained on one image at a time are less than a point worse than those with the same "
            "norm in batches of 32.",
            score(select_accuracies, "accuracy", ("norm",), scale=100, against=32, along="batch_size",
                  matching=("seed", "norm"), batch_size=1, norm=ALONE), above(-1.0, *GAINED), lines="each"),
        "batch_norm_is_not_missed": Claim(
            "In batches of 32, norms that normalize each image alone are less than a point worse than batch norm.",
            score(select_accuracies, "accuracy", ("norm",), scale=100, against="batch", along="norm",
                  matching=("seed", "batch_size"), batch_size=32), above(-1.0, *GAINED), lines="each"),
        "an_update_takes_a_tenth": Claim(
            "An update on one image takes less than a tenth of the memory of one on 32, activations and weights "
            "together.",
            score("training_memory", "step_bytes", ("norm",), at=1.0, against=32, along="images", ratio=True,
                  matching=("run",), batch_size=32, images=1),
            below(0.1, "times", "a tenth decides which device is large enough"), lines="each"),
    },
)  # fmt: skip
