"""Which batch are batch norm's statistics of, in training and in inference, and when does the usual running average
harm?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import ACCURACY, LOST_OF_ANY_SIZE, Axis, Curves, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, above, below, cite
from experiments import paper_scores
from experiments.margins import A_POINT
from experiments.questions import cifar10, few_images, gap, ghost, small_batches

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "training": Figure(
            "Test accuracy over training, under running averages and under exact statistics (compare their training "
            "curves)",
            "Compare the two lines, which are the same weights. Running averages have PyTorch's momentum.",
            score(
                "evaluations", "accuracy", ("panel", "estimator", "momentum", "epoch"), scale=100,
                estimator=("ema", "exact"), batch_size=(64, 1024), momentum=(0.1, None), split="test"),
            Curves("epoch", "estimator", ACCURACY), reads="gap"),
        "constant_rate": Figure(
            "Test accuracy over training at a constant learning rate",
            "Compare how much the lines fall. At batches of 256 the last checkpoint lies right after an epoch's "
            "small last batch.",
            score(
                "evaluations", "accuracy", ("panel", "batch_size", "estimator", "momentum", "epoch"), scale=100,
                estimator=("ema", "exact"), momentum=(0.1, None), split="test"),
            Curves("epoch", "estimator", ACCURACY), reads="model_selection"),
        "images": Figure(
            "Accuracy lost under statistics of few training images",
            "Read up from the number of images to what their statistics lose against those of all training images. "
            "The vertical axis is linear up to 0.3 points, and logarithmic above.",
            score(
                few_images.compute_gains, "accuracy", ("batch_size", "sample", "images"), scale=-100, split="test",
                images=OtherThan(0), sample="of training images"),
            Curves("images", "sample", LOST_OF_ANY_SIZE), panels="batch size {batch_size}",
            printed=PAPER.pick("enough_images"), reads="few_images"),
        "parts": Figure(
            "Accuracy by the number of images that are normalized together (compare their section 4.1)",
            "Batches of 256 that are normalized in parts; test batches have as many images as the parts.",
            score(
                ghost.select_accuracies, "accuracy", ("panel", "estimator", "momentum", "norm.batch_size"), scale=100,
                momentum=(0.1, None)),
            Curves("norm.batch_size", "estimator", Axis("test accuracy (%)")), printed=PAPER.pick("best_parts"),
            reads="ghost"),
        "cost": Figure(
            "Accuracy lost under running averages at the end of training, by batch size (compare their final errors)",
            "Theirs has a momentum of 0.1. The vertical axis is linear up to 0.3 points, and logarithmic above.",
            score(
                "evaluations", "accuracy", ("panel", "batch_size", "momentum"), at=1.0, against="exact", scale=-100,
                estimator="ema", split="test"),
            Curves("batch_size", "momentum", LOST_OF_ANY_SIZE), reads="gap"),
        "frozen": Figure(
            "Accuracy gained by freezing batch norm for the last fifth of training",
            "Networks that were frozen predict with what they were frozen with, the others with running averages.",
            score(
                small_batches.select_accuracies, "accuracy", ("batch_size", "freeze_with", "line"), against="none",
                along="freeze_with", matching=("seed", "batch_size", "line"), scale=100, line="running averages"),
            Forest("freeze_with", Axis("points gained against no freezing")), panels="batch size {batch_size}",
            names={"freeze_with": {"ema": "frozen with running averages", "exact": "frozen with exact statistics"}},
            reads="small_batches"),
    },
    claims={
        "pessimistic_early": cite(gap, "ema_is_pessimistic_early", "training curves"),
        "pessimistic": cite(gap, "ema_is_pessimistic", "training curves"),
        "exact_curves_hardly_fall": Claim(
            "Under exact statistics, at a rate that falls to 0, test accuracy falls by less than a point in all over "
            "eight checkpoints.",
            score(paper_scores.compute_falls, "falls", ("batch_size",), scale=100, estimator="exact"),
            below(1.0, "points", A_POINT), lines="each", post_hoc="asked", reads="gap",
            about="training curves, that the curve is smooth"),
        "running_curves_fall_more": Claim(
            "Under running averages, at a rate that falls to 0, it falls by over a point more in all than under "
            "exact statistics.",
            score(
                paper_scores.compute_falls, "falls", ("batch_size",), against="exact", scale=100, estimator="ema",
                momentum=0.1),
            above(1.0, "points more", A_POINT), lines="each", post_hoc="asked", reads="gap",
            about="training curves, that the other curve is not, at a rate and at intervals where it can hardly show"),
        "exact_curves_hardly_fall_at_a_constant_rate": Claim(
            "Under exact statistics, at a constant rate, test accuracy falls by less than a point in all over eight "
            "checkpoints.",
            score(paper_scores.compute_falls, "falls", ("batch_size",), scale=100, estimator="exact"),
            below(1.0, "points", A_POINT), lines="each", post_hoc="asked", reads="model_selection",
            about="training curves, that the curve is smooth"),
        "running_curves_fall_more_at_a_constant_rate": Claim(
            "Under running averages, at a constant rate, it falls by over a point more in all than under exact "
            "statistics.",
            score(
                paper_scores.compute_falls, "falls", ("batch_size",), against="exact", scale=100, estimator="ema",
                momentum=0.1),
            above(1.0, "points more", A_POINT), lines="each", post_hoc="asked", reads="model_selection",
            about="training curves, that the other curve is not"),
        "hundreds_suffice": cite(few_images, "hundreds_nearly_suffice", "below the range of section 3"),
        "ten_thousand_suffice": cite(cifar10, "precise_is_as_accurate", "section 3"),
        "nothing_at_the_end": cite(
            gap, "nothing_at_adequate_batch", "final errors", "batch size 16", "batch size 64", "batch size 256"),
        "nothing_when_tiny": cite(gap, "nothing_at_adequate_batch", "final errors", "batch size 4"),
        "tiny_parts": cite(
            ghost, "batches_win_when_tiny",
            "inference with statistics of the batch after training in tiny parts, here after 144 updates, of the "
            "first five seeds; the last of these three comparisons has all fifteen"),
        "tiny_parts_longer": cite(
            ghost, "batches_win_after_many_updates", "the same after eight times as many updates, in batches of 32"),
        "the_lead_shrinks": cite(ghost, "the_lead_shrinks", "the same: what more updates change"),
        "freezing": cite(small_batches, "freezing_helps", "freezing"),
    })  # fmt: skip
