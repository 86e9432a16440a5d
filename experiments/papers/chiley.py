"""Can a norm do without batches, with running statistics in training itself, and be as accurate as batch norm?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Curves, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, below, cite
from experiments import paper_scores
from experiments.margins import FLAT
from experiments.questions import batch_of_one

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "norms": Figure(
            "Accuracy by norm, on one image at a time and in batches of 32",
            "Compare the norms within a task. Ours makes 32 times as many updates on single images; batch norm "
            "cannot train on them, and predicts with exact statistics.",
            score(batch_of_one.select_accuracies, "accuracy", ("line", "batch_size"), scale=100),
            Forest("line", Axis("test accuracy (%)"), series="batch_size"),
            printed=PAPER.pick(
                "c10_on", "c10_bn", "c10_ln", "c10_in", "c10_gn", "c100_on", "c100_bn", "c100_ln", "c100_in", "c100_gn",
                "imagenet_on", "imagenet_bn"),
            reads="batch_of_one"),
        "momenta": Figure(
            "Gap of the mean at the end of training over that of the best momentum",
            "Compare each curve's lowest point with the line of its batch size, which is their decay of 1/1024 an "
            "image. Gaps are averaged over layers first, so that the best momentum is one for all layers; `momentum` "
            "compares each layer with its own.",
            score(
                paper_scores.compute_times_over_best, "mean_gap", ("panel", "batch_size", "momentum"), geometric=True),
            Curves("momentum", "batch_size", Axis("gap over that of the best momentum", log=True)),
            printed=PAPER.pick("decay_16", "decay_64", "decay_256"), reads="momentum"),
    },
    claims={
        "not_missed": cite(batch_of_one, "batch_norm_is_not_missed",
            "not their method: norms of each image, which in their CIFAR table too are 1.8 to 5.5 points behind "
            "batch norm"),
        "one_image": cite(
            batch_of_one, "one_image_is_enough", "that no batch is needed, with 32 times as many updates"),
        "their_decay_at_16": Claim(
            "At the end, in batches of 16, the measured momentum nearest to their decay is below twice as far as the "
            "best.",
            score(
                paper_scores.compute_times_over_best, "mean_gap", ("batch_size",), geometric=True, batch_size=16,
                momentum=0.02),
            below(2.0, "times", FLAT), lines="each", post_hoc="asked", reads="momentum",
            about="decay of 1/1024 an image"),
        "their_decay_at_64": Claim(
            "In batches of 64 it is too.",
            score(
                paper_scores.compute_times_over_best, "mean_gap", ("batch_size",), geometric=True, batch_size=64,
                momentum=0.07),
            below(2.0, "times", FLAT), lines="each", post_hoc="asked", reads="momentum",
            about="decay of 1/1024 an image"),
        "their_decay_at_256": Claim(
            "In batches of 256 it is too.",
            score(
                paper_scores.compute_times_over_best, "mean_gap", ("batch_size",), geometric=True, batch_size=256,
                momentum=0.2),
            below(2.0, "times", FLAT), lines="each", post_hoc="asked", reads="momentum",
            about="decay of 1/1024 an image"),
    })  # fmt: skip
