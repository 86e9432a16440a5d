"""Can training use running averages, corrected by the batch, so that small and not independent batches harm less?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Figure, Question, cite
from experiments import paper_scores
from experiments.questions import non_iid, norms_tuned

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "small": Figure(
            "Accuracy of batch norm and batch renorm by batch size",
            "Compare the norms at one batch size, ours after 2,250 updates under running averages where nothing else "
            "is said; behind batch renorm stands its momentum.",
            score(
                norms_tuned.select_accuracies, "accuracy", ("batch_size", "line"), scale=100,
                line=("batch norm", "batch norm, exact statistics", "batch renorm 0.01", "batch renorm 0.1")),
            Forest("line", Axis("test accuracy (%)")), panels="batch size {batch_size}",
            names={
                "line": {
                    "batch norm": "batch norm",
                    "batch norm, exact statistics": "batch norm, exact statistics",
                    "batch renorm 0.01": "batch renorm 0.01",
                    "batch renorm 0.1": "batch renorm 0.1",
                },
            },
            printed=PAPER.pick("bn_32", "renorm_32", "bn_4", "renorm_4"), reads="norms_tuned"),
        "blocks": Figure(
            "Accuracy where images of a class come together",
            "Ours was trained in blocks of 16 images of a class; running averages are those that renorm trains with, "
            "and of momentum 0.1 of batch norm. Theirs has two images of each label in a batch of 32.",
            score(paper_scores.select_blocks, "accuracy", ("panel", "line", "estimator"), scale=100),
            Forest("line", Axis("test accuracy (%)"), series="estimator"),
            names={
                "line": {
                    "batch norm": "batch norm",
                    "batch renorm 0.01": "batch renorm 0.01",
                    "batch renorm 0.1": "batch renorm 0.1",
                },
                "estimator": {"ema": "running averages", "exact": "exact statistics"},
            },
            printed=PAPER.pick("bn_pairs_batch", "bn_pairs_halves", "renorm_pairs"), reads="non_iid"),
    },
    claims={
        "wins_when_small": cite(norms_tuned, "renorm_wins_when_small",
            "batches of 4, not parts of 4 in batches of 1,600; at 0.01 limits rise while 42% of the start is left"),
        "keeps_up": cite(norms_tuned, "renorm_keeps_up_when_moderate", "batches of 32"),
        "rescues_blocks": cite(non_iid, "renorm_rescues_blocks",
            "batches that are not independent: 4 epochs, both under running averages of momentum 0.01; the figure "
            "has batch norm with 0.1, which is better still"),
        "rescues_after_long_warmup": cite(non_iid, "long_warmup_rescues", "batches that are not independent"),
        "rescues_with_short_memory": cite(non_iid, "short_memory_rescues", "batches that are not independent"),
    })  # fmt: skip
