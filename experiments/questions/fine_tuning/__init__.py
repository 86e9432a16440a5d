"""How should batch norm be treated where a network is fine-tuned on few images, in small batches?

Networks that know characters in some fonts learn others, from 256 images. Layers are left in train mode, or put into
eval mode with the statistics that training ended with or with exact ones of the new images; all may be recalibrated at
the end. Fifteen seeds from the start; all claims were written before their first number. They are not blind to the
networks before fine-tuning: all 15 repeat settings and seeds of `shift`.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Headline, Score, Tables, above, below
from bnlab.harness.reporting.frames import name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import A_POINT, GAINS, name_lines

MODES = {
    "train": "train mode",
    "eval": "eval mode, old statistics",
    "eval_exact": "eval mode, statistics of new images",
}
TRAIN = MODES["train"]
OLD = MODES["eval"]
NEW = MODES["eval_exact"]
ENDINGS = {"held": "as tuning left it", "recalibrated": "recalibrated"}
TUNING = ("tuning_batch", "tuning_rate", "tuning_steps")
LONG: dict[str, Any] = {"tuning_steps": 500, "tuning_rate": 0.01}
SMALL_RATE: dict[str, Any] = {"tuning_steps": 500, "tuning_rate": 0.001}
GAINED = ("points gained", A_POINT)


def select_tuned(tables: Tables) -> pd.DataFrame:
    """Find all rows; `way` is the mode in words."""
    frame = rows(tables, "fine_tuning", 1.0)
    return frame.assign(way=frame["mode"].map(MODES))


def select_ends(tables: Tables) -> pd.DataFrame:
    """Find the rows after the last update in train mode and in eval mode with old statistics.

    They are in panels by mode and rate, see `name_batches`.
    """
    ends = select(select_tuned(tables), tuning_steps=500, way=(OLD, TRAIN))
    # Of the two ways that are left, the mode alone tells them apart, and is short enough for a panel's name.
    modes = ends["way"].str.split(", ").str[0]
    named = name_panels(ends.assign(mode=modes), "{mode}, learning rate {tuning_rate}")
    return name_batches(named.sort_values(["mode", "tuning_rate"], kind="stable"))


def name_batches(frame: pd.DataFrame) -> pd.DataFrame:
    """Name rows by batch size, the smallest first; the line says if statistics were taken again."""
    names = "batches of " + frame["tuning_batch"].astype(str)
    ordered = frame.assign(name=names).sort_values("tuning_batch", kind="stable")
    return name_lines(ordered, "statistics", ENDINGS)


def compute_leads(tables: Tables) -> pd.DataFrame:
    """Find what train mode gains over eval mode at the small rate, see `name_batches`."""
    ends = select(select_tuned(tables), way=(OLD, TRAIN), **SMALL_RATE)
    leads = paired(ends, "new_accuracy", OLD, along="way", matching=("run", "statistics", *TUNING))
    return name_batches(leads.assign(panel=""))


def score_against(reference: str, value: str = "new_accuracy", **wanted: Any) -> Score:
    """Score the points that one way of fine-tuning has more than another, for each batch size and rate."""
    by = ("tuning_batch", "tuning_rate")
    wanted = {"statistics": "held", **wanted}
    matching = ("run", "statistics", *TUNING)
    return score(select_tuned, value, by, scale=100, against=reference, along="way", matching=matching, **wanted)


def score_recalibration(**wanted: Any) -> Score:
    """Score the points in the new fonts that recalibrating at the end gains, for each batch size and rate."""
    by = ("tuning_batch", "tuning_rate")
    wanted = {"statistics": "recalibrated", **wanted}
    matching = ("run", "way", *TUNING)
    return score(
        select_tuned, "new_accuracy", by, scale=100, against="held", along="statistics", matching=matching, **wanted
    )


AGAIN = (
    "exact statistics of the 256 new images. In eval mode networks were tuned under the statistics that training ended "
    "with; tables have those too that were tuned under statistics of the new images."
)

EXPERIMENT = Experiment(
    bears_on=("Q11", "Q13", "F3"),
    columns=("forgotten", "gained", "new_accuracy", "old_accuracy"),
    figures={
        "new": Figure(
            "Accuracy in the new fonts after 500 updates, by the mode of batch norm",
            f"Compare the two points of a line: the same weights before and after they get {AGAIN}",
            score(select_ends, "new_accuracy", ("panel", "name", "line"), scale=100),
            Forest("name", Axis("accuracy in new fonts (%)"), series="line"),
            Headline("After tuning in eval mode recalibration helps at a small learning rate, and costs at a large one",
                    {"recalibration_helps_eval_mode": ()}, {"recalibration_helps_in_eval_mode_too": ()})),
        "modes": Figure(
            "What train mode gains over eval mode in the new fonts",
            "0 is fine-tuning in eval mode, with frozen running averages; points are how much better train mode is "
            "after 500 updates at a learning rate of 0.001, before and after recalibrating both on the 256 new images.",
            score(compute_leads, "new_accuracy", ("panel", "name", "line"), scale=100),
            Forest("name", Axis("points that train mode gains"), mark=(0.0, "eval mode"), series="line"),
            Headline("At a small learning rate, train mode is better than eval mode for fine-tuning, at batch sizes 8 "
                     "and 32",
                    {"train_mode_is_better_at_a_small_rate": ("tuning batch 8", "tuning batch 32")})),
    },
    claims={
        "train_mode_fails_in_tiny_batches": Claim(
            "After 500 updates in batches of 2 a network that was left in train mode is over a point worse in the new "
            "fonts than one in eval mode with old statistics.",
            score_against(OLD, way=TRAIN, tuning_batch=2, tuning_steps=500), below(-1.0, *GAINED), lines="each"),
        "recalibration_repairs": Claim(
            "A network that was tuned in train mode in batches of 2 gains over a point by recalibration at the end.",
            score_recalibration(way=TRAIN, tuning_batch=2, tuning_steps=500), above(1.0, *GAINED), lines="each"),
        "recalibration_helps_in_eval_mode_too": Claim(
            "A network that was tuned in eval mode with old statistics gains by recalibration at the end.",
            score_recalibration(way=OLD, **LONG), GAINS, lines="each"),
        "eval_mode_learns": Claim(
            "In eval mode with old statistics 500 updates gain over a point in the new fonts, in batches of any size.",
            score(select_tuned, "gained", ("tuning_batch",), scale=100, way=OLD, statistics="held", **LONG),
            above(1.0, *GAINED), lines="each"),
        "train_mode_is_better_at_a_small_rate": Claim(
            "After 500 updates at a rate of 0.001 train mode is better in the new fonts than eval mode with old "
            "statistics.",
            score_against(OLD, way=TRAIN, **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibrated_train_mode_is_better": Claim(
            "After 500 updates at a rate of 0.001 train mode is better too where both are recalibrated at the end.",
            score_against(OLD, way=TRAIN, statistics="recalibrated", **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibration_helps_train_mode": Claim(
            "After 500 updates at a rate of 0.001 in train mode recalibration at the end gains.",
            score_recalibration(way=TRAIN, **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibration_helps_eval_mode": Claim(
            "After 500 updates at a rate of 0.001 in eval mode recalibration at the end gains.",
            score_recalibration(way=OLD, **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "tuning_gains_at_a_small_rate": Claim(
            "After 500 updates at a rate of 0.001 in train mode a recalibrated network is better in the new fonts "
            "than before the first update.",
            score(select_tuned, "gained", ("tuning_batch",), scale=100, way=TRAIN, statistics="recalibrated",
                  **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
