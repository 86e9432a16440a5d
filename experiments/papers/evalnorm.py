"""After training in tiny batches, are statistics that imitate a batch around each test image more accurate than
running averages?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Figure, Question, cite
from experiments.questions import small_batches

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "gain": Figure(
            "Accuracy gained over running averages, by what is predicted with",
            "Panels are batch sizes of training. The same networks predict with each.",
            small_batches.QUESTION.figures["accuracy"].score,
            Forest("line", Axis("points gained over running averages")), panels="batch size {batch_size}",
            printed=PAPER.pick("gain_at_2"),
            reads="small_batches"),
    },
    claims={
        "beats_running": cite(small_batches, "eval_norm_beats_running_averages", "abstract"),
        "beats_exact": cite(small_batches, "eval_norm_beats_exact_statistics", "not in what was read"),
    })  # fmt: skip
