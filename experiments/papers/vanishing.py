"""Does what is left of an input fade from layer to layer in merged and pruned networks, the more the deeper they are,
and do new statistics bring it back?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, above, below, show, within
from experiments.margins import A_POINT
from experiments.questions import vanishing

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "fading": show(vanishing, "fading"),
        "pruned": Figure(
            "Accuracy of merged and pruned networks under old and new statistics",
            "Compare the points beside a change: the same weights under old running averages and under exact "
            "statistics.",
            score("vanishing", "accuracy", ("model.depth", "statistics", "change"), at=1.0, scale=100, depth=1),
            Forest("change", Axis("test accuracy (%)"), series="statistics"), panels="{model.depth} layers",
            names={
                "statistics": {"stale": "running averages, old", "exact": "exact statistics, new"},
                "change": vanishing.CHANGES,
            },
            printed=PAPER.pick(
                "vgg_unpruned", "vgg_80_before", "vgg_80_after", "resnet_unpruned", "resnet_85_before",
                "vgg_merged_before", "vgg_parent")),
    },
    claims={
        "deeper_averages_lose_more": Claim(
            "Under stale statistics a matched average of two chains of 12 loses over ten points more than one of two "
            "chains of 3.",
            score(
                "vanishing", "accuracy_lost", ("model.depth",), at=1.0, depth=1, against=3, along="layers",
                matching=("seed", "change", "statistics"), scale=100, change="matched", statistics="stale", layers=12),
            above(10.0, "points more", "ten points are seen without any test"), lines="each", reads="vanishing"),
        "variance_fades": Claim(
            "There the last norm's variance, over that of the network itself, is below half of the first norm's.",
            score(
                vanishing.select_ends, "variance_ratio", ("model.depth",), against="first", along="place",
                matching=("run", "change", "statistics"), ratio=True, geometric=True, change="matched",
                statistics="stale", layers=(6, 12)),
            below(
                0.5, "times",
                "half from the first to the last is seen in any figure; with every layer the same it would be 1"),
            lines="each", reads="vanishing"),
        "new_statistics_bring_it_back": Claim(
            "Under exact statistics the last norm's variance is within a factor of two of the network's own.",
            score(
                vanishing.select_ends, "variance_ratio", ("model.depth",), geometric=True, change="matched",
                statistics="exact", place="last", layers=(6, 12)),
            within(
                0.5, 2.0, "times",
                "a norm's output has its weight's variance under statistics of its own; what is left is between "
                "images and pixels"),
            lines="each", reads="vanishing"),
        "pruning_needs_them_too": Claim(
            "Chains of 6 and 12 whose smallest 90% of weights are 0 lose over ten points under stale statistics.",
            score(
                "vanishing", "accuracy_lost", ("model.depth",), at=1.0, depth=1, scale=100, change="pruned:0.9",
                statistics="stale", layers=(6, 12)),
            above(10.0, "points lost", "ten points are seen without any test"), lines="each", reads="vanishing"),
        "pruned_networks_are_as_good_with_them": Claim(
            "With 80% of the weights 0 they are less than a point worse than the network itself, under exact "
            "statistics.",
            score(
                "vanishing", "accuracy_lost", ("model.depth",), at=1.0, depth=1, scale=100, change="pruned:0.8",
                statistics="exact"),
            below(1.0, "points lost", A_POINT), lines="each", reads="vanishing"),
        "half_the_weights_do_not_matter": Claim(
            "With half of the weights 0 they lose less than a point under stale statistics (known of a third of the "
            "weights at depth 3, from `changed_weights`).",
            score(
                "vanishing", "accuracy_lost", ("model.depth",), at=1.0, depth=1, scale=100, change="pruned:0.5",
                statistics="stale"),
            within(-1.0, 1.0, "points lost", A_POINT), lines="each", reads="vanishing"),
    })  # fmt: skip
