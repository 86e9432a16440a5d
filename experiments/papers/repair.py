"""Why does the average of two matched networks predict so badly, and is it enough to give it the right statistics?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, above, cite
from experiments.questions import changed_weights

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "matched": Figure(
            "Accuracy of the average of two networks that were trained apart",
            "Compare the two points of an average: the same weights under the average of both networks' running "
            "averages, and under statistics of their own.",
            score(
                changed_weights.select_matched, "accuracy", ("batch_size", "statistics", "line"), scale=100,
                statistics=("exact", "stale")),
            Forest("line", Axis("test accuracy (%)"), series="statistics"), panels="batch size {batch_size}",
            names={"statistics": {"stale": "running averages", "exact": "exact statistics"}},
            printed=PAPER.pick(
                "r20_one", "r20_other", "vgg_one", "vgg_other", "vgg_apart", "r20_stale", "r20_new", "vgg_stale",
                "vgg_new", "r50_one", "r50_other", "r50_stale", "r50_new", "r50_repair"),
            reads="changed_weights"),
        "variance": Figure(
            "How far averaged running variances are from those of the averaged weights",
            "Compare with one network: how far running variances are from those that the weights have, on "
            "logarithms. Our tables do not say which of the two is larger.",
            score(changed_weights.select_matched, "var_gap", ("batch_size", "line"), statistics="stale"),
            Forest("line", Axis("gap of the variance (in logarithm)")), panels="batch size {batch_size}",
            reads="changed_weights"),
    },
    claims={
        "need_new_ones": cite(
            changed_weights, "matched_averages_need_new_ones", "the direction is the abstract's, the margin ours"),
        "not_all": cite(
            changed_weights, "new_ones_do_not_repair_all", "the direction is the abstract's, the margin ours"),
        "matching": cite(changed_weights, "matching_is_needed", "the direction is the abstract's, the margin ours"),
        "variances_are_off": Claim(
            "The averaged running variances of two matched networks are farther off than those of one network.",
            score(
                changed_weights.select_matched, "var_gap", ("batch_size",), against="one network", along="line",
                matching=("run", "statistics"), ratio=True, geometric=True,
                line=("one network", "averaged after matching"), statistics="stale"),
            above(2.0, "times", "twice as far is seen in any figure"), lines="each", post_hoc="asked",
            reads="changed_weights", about="near the abstract's collapse of variances; our tables have no direction"),
    })  # fmt: skip
