"""How should batch norm be treated if a network is fine-tuned on few images, in small batches?

Networks that know characters in some fonts learn others, from 256 images. Layers stay in train mode, or go into eval
mode, with the statistics that training ended with or with exact statistics of the new images. All of them may be
recalibrated at the end. There were fifteen seeds from the start, and all claims were written before their numbers were
known. They are not blind to the networks before fine-tuning, all 15 of which repeat settings and seeds of `shift`.
"""

from collections.abc import Sequence
from typing import Any

from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, above, below
from experiments.margins import A_POINT, GAINS

TRAIN, OLD = "train", "eval"  # modes; eval mode has the statistics that training ended with
NAMES: dict[str, dict[Any, str]] = {
    "mode": {OLD: "eval mode", TRAIN: "train mode"},
    "tuning_batch": {size: f"batches of {size}" for size in (2, 4, 8, 32)},
    "statistics": {"held": "as tuning left it", "recalibrated": "exact statistics, recalibrated"},
}
EACH = ("tuning_batch", "tuning_rate")
TUNING = (*EACH, "tuning_steps")
LONG: dict[str, Any] = {"tuning_steps": 500, "tuning_rate": 0.01}
SMALL_RATE: dict[str, Any] = {"tuning_steps": 500, "tuning_rate": 0.001}
GAINED = ("points gained", A_POINT)


def score_lead(by: Sequence[str] = EACH, **wanted: Any) -> Score:
    """Score the points in the new fonts that train mode has more than eval mode."""
    matching = ("run", "statistics", *TUNING)
    lead: dict[str, Any] = {"at": 1.0, "scale": 100, "against": OLD, "along": "mode", "matching": matching}
    return score("fine_tuning", "new_accuracy", by, mode=TRAIN, **lead, **wanted)


def score_recalibration(**wanted: Any) -> Score:
    """Score the points in the new fonts that recalibrating at the end gains, for each batch size and rate."""
    matching = ("run", "mode", *TUNING)
    gain: dict[str, Any] = {"at": 1.0, "scale": 100, "against": "held", "along": "statistics", "matching": matching}
    return score("fine_tuning", "new_accuracy", EACH, statistics="recalibrated", **gain, **wanted)


AGAIN = (
    "exact statistics of the 256 new images. In eval mode, networks were tuned under the statistics that training "
    "ended with; the tables also have networks tuned under statistics of the new images."
)

QUESTION = Question(
    bears_on=("Q20", "Q34", "F3"),
    columns=("forgotten", "gained", "new_accuracy", "old_accuracy"),
    figures={
        "new": Figure(
            "Accuracy in the new fonts after 500 updates, by the mode of batch norm",
            f"Compare the two points of a line: the same weights before and after they get {AGAIN}",
            score("fine_tuning", "new_accuracy", ("mode", *EACH, "statistics"), at=1.0, scale=100, mode=(OLD, TRAIN),
                  tuning_steps=500),
            Forest("tuning_batch", Axis("accuracy in new fonts (%)"), series="statistics"),
            Headline("After tuning in eval mode recalibration helps at a small learning rate, and costs at a large one",
                    {"recalibration_helps_eval_mode": ()}, {"recalibration_helps_in_eval_mode_too": ()}),
            panels="{mode}, learning rate {tuning_rate}", names=NAMES),
        "modes": Figure(
            "What train mode gains over eval mode in the new fonts",
            "How much better train mode is than eval mode with frozen running averages (0), after 500 updates at a "
            "learning rate of 0.001, before and after both are recalibrated on the 256 new images.",
            score_lead(("mode", *EACH, "statistics"), **SMALL_RATE),
            Forest("tuning_batch", Axis("points that train mode gains"), mark=(0.0, "eval mode"), series="statistics"),
            Headline("At a small learning rate, train mode is better than eval mode for fine-tuning, at batch sizes 8 "
                     "and 32",
                    {"train_mode_is_better_at_a_small_rate": ("tuning batch 8", "tuning batch 32")}),
            panels="", names=NAMES),
    },
    claims={
        "train_mode_fails_in_tiny_batches": Claim(
            "After 500 updates in batches of 2, a network that stayed in train mode is over a point worse in the new "
            "fonts than one in eval mode with old statistics.",
            score_lead(statistics="held", tuning_batch=2, tuning_steps=500), below(-1.0, *GAINED), lines="each"),
        "recalibration_repairs": Claim(
            "A network that was tuned in train mode in batches of 2 gains over a point by recalibration at the end.",
            score_recalibration(mode=TRAIN, tuning_batch=2, tuning_steps=500), above(1.0, *GAINED), lines="each"),
        "recalibration_helps_in_eval_mode_too": Claim(
            "A network that was tuned in eval mode with old statistics gains by recalibration at the end.",
            score_recalibration(mode=OLD, **LONG), GAINS, lines="each"),
        "eval_mode_learns": Claim(
            "In eval mode with old statistics 500 updates gain over a point in the new fonts, in batches of any size.",
            score("fine_tuning", "gained", ("tuning_batch",), at=1.0, scale=100, mode=OLD, statistics="held", **LONG),
            above(1.0, *GAINED), lines="each"),
        "train_mode_is_better_at_a_small_rate": Claim(
            "After 500 updates at a rate of 0.001 train mode is better in the new fonts than eval mode with old "
            "statistics.",
            score_lead(statistics="held", **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibrated_train_mode_is_better": Claim(
            "After 500 updates at a rate of 0.001, train mode is also better if both are recalibrated at the end.",
            score_lead(statistics="recalibrated", **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibration_helps_train_mode": Claim(
            "After 500 updates at a rate of 0.001 in train mode, recalibration at the end gains accuracy.",
            score_recalibration(mode=TRAIN, **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "recalibration_helps_eval_mode": Claim(
            "After 500 updates at a rate of 0.001 in eval mode, recalibration at the end gains accuracy.",
            score_recalibration(mode=OLD, **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
        "tuning_gains_at_a_small_rate": Claim(
            "After 500 updates at a rate of 0.001 in train mode a recalibrated network is better in the new fonts "
            "than before the first update.",
            score("fine_tuning", "gained", ("tuning_batch",), at=1.0, scale=100, mode=TRAIN,
                  statistics="recalibrated", **SMALL_RATE), GAINS,
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
