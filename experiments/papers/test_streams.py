"""What do statistics of test batches do where images of a class arrive together, and what helps?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.question import Claim, Question, above, below, show
from experiments.margins import AS_ACCURATE
from experiments.questions import test_streams

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={"sizes": show(test_streams, "sizes"), "shifts": show(test_streams, "shifts")},
    claims={
        "sorted_streams_ruin_test_batches": Claim(
            "On clean images statistics of batches of 64 lose over ten points once the stream is sorted by label.",
            score(
                "test_streams", "accuracy", ("stream",), at=1.0, against="shuffled", along="stream",
                matching=("run", "shift", "size", "statistics"), scale=-100, stream="sorted", shift="none", size=64,
                statistics="batch"),
            above(10.0, "points lost", "ten points are seen without any test"), lines="each", reads="test_streams"),
        "dirichlet_streams_cost_too": Claim(
            "There they lose over five points in a stream of labels by a Dirichlet distribution of 0.1.",
            score(
                "test_streams", "accuracy", ("stream",), at=1.0, against="shuffled", along="stream",
                matching=("run", "shift", "size", "statistics"), scale=-100, stream="dirichlet", shift="none", size=64,
                statistics="batch"),
            above(5.0, "points lost", "half of what a sorted stream is to cost"), lines="each", reads="test_streams"),
        "sorted_test_batches_lose_to_training_statistics": Claim(
            "Under corruptions statistics of sorted batches of 64 are less accurate than exact ones of training.",
            score(
                "test_streams", "accuracy", ("shift",), at=1.0, against="exact", along="statistics",
                matching=("run", "stream", "size"), scale=100, stream="sorted", size=64, statistics="batch",
                shift=OtherThan("none")),
            below(0.0, "points", AS_ACCURATE), lines="each", reads="test_streams"),
        "shuffled_test_batches_win": Claim(
            "In shuffled streams they are more accurate than exact ones of training under the same corruptions.",
            score(
                "test_streams", "accuracy", ("shift",), at=1.0, against="exact", along="statistics",
                matching=("run", "stream", "size"), scale=100, stream="shuffled", size=64, statistics="batch",
                shift=OtherThan("none")),
            above(0.0, "points", AS_ACCURATE), lines="each",
            post_hoc="seen in shift.many_images_gain, for the same batches in the order of the files",
            reads="test_streams"),
        "large_batches_hold_more_classes": Claim(
            "In a sorted stream of clean images batches of 256 are over five points more accurate than those of 16.",
            score(
                "test_streams", "accuracy", ("size",), at=1.0, against=16, along="size",
                matching=("run", "shift", "stream", "statistics"), scale=100, stream="sorted", shift="none", size=256,
                statistics="batch"),
            above(
                5.0, "points gained",
                "256 sorted images hold four classes, 16 hold one; five points are seen without any test"),
            lines="each", reads="test_streams"),
        "pseudo_samples_rescue": Claim(
            "In a sorted stream of clean images 64 pseudo-samples make batches of 64 over five points more accurate.",
            score(
                "test_streams", "accuracy", ("statistics",), at=1.0, against="batch", along="statistics",
                matching=("run", "shift", "stream", "size"), scale=100, stream="sorted", shift="none", size=64,
                statistics="mixed"),
            above(5.0, "points gained", "five points are seen without any test"), lines="each", reads="test_streams"),
    })  # fmt: skip
