"""Under corruptions, how much do statistics of the test images gain, how many images do they need, and do
pseudo-samples of the training statistics help where there are few?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, above, below, cite
from experiments import paper_scores
from experiments.margins import AS_ACCURATE
from experiments.questions import shift

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "images": Figure(
            "Accuracy gained against training statistics by test batch, mean over five strong corruptions",
            "Compare shapes: what is gained falls with fewer test images. With 4 or 16 of them pseudo-samples help "
            "theirs, at the best number for each batch, and cost ours on average over these strong corruptions; "
            "under weak ones they help ours too (claims below). Ours and theirs are different quantities.",
            score(
                shift.compute_gains, "accuracy", ("panel", "line", "images"), scale=100, average="shift",
                shift=("contrast:3", "noise:3", "blur:3", "translation:3", "occlusion:3")),
            Curves(
                "images", "line", Axis("points gained"),
                across=Axis("images in a test batch", log=True, limits=(0.8, 1300))),
            panels="",
            printed=PAPER.pick(
                "n0_1", "n0_2", "n0_4", "n0_8", "n0_16", "n0_32", "n0_64", "n0_128", "n0_256", "n0_1024", "nbest_1",
                "nbest_2", "nbest_4", "nbest_8", "nbest_16", "nbest_32", "nbest_128"),
            reads="shift"),
        "shifts": Figure(
            "Accuracy under shifts of the test images, by statistics",
            "Compare the points beside a kind of shift, which are the same networks. As pseudo-samples exact "
            "statistics of training count as 16 further images.",
            score(shift.select_drawn, "accuracy", ("panel", "name", "line"), scale=100),
            Forest("name", ACCURACY, series="line"),
            printed=PAPER.pick("mce_none", "mce_partial", "mce_full", "mce_nado", "mce_group"), reads="shift"),
    },
    claims={
        "many_images": cite(shift, "many_images_gain", "full adaptation"),
        "few_and_pseudo": cite(shift, "few_and_pseudo_gain", "partial adaptation"),
        "natural_shift": cite(
            shift, "fonts_gain_little", "abstract, that it does less well under natural shifts; ours is other fonts"),
        "few_alone_lose": Claim(
            "Under strong corruptions statistics of 4 test images alone lose accuracy against exact ones of training.",
            score(
                shift.compute_gains, "accuracy", ("shift",), scale=100,
                shift=("contrast:3", "noise:3", "blur:3", "translation:3", "occlusion:3"), images=4, pseudo_samples=0),
            below(0.0, "points gained", AS_ACCURATE), lines="each", post_hoc="asked", reads="shift",
            about="the curve without pseudo-samples below 8 images"),
        "pseudo_samples_gain_when_weak": Claim(
            "Under weak corruptions 4 test images and 4 pseudo-samples are more accurate than 4 test images alone.",
            score(
                paper_scores.select_mixtures, "accuracy", ("shift",), scale=100, against=0, along="pseudo_samples",
                matching=("run", "shift", "images"),
                shift=("contrast:1", "noise:1", "blur:1", "translation:1", "occlusion:1"), images=4, pseudo_samples=4),
            above(0.0, "points gained", AS_ACCURATE), lines="each", post_hoc="asked", reads="shift",
            about="that pseudo-samples help where images are few"),
        "pseudo_samples_gain_when_strong": Claim(
            "Under strong corruptions they are so too.",
            score(
                paper_scores.select_mixtures, "accuracy", ("shift",), scale=100, against=0, along="pseudo_samples",
                matching=("run", "shift", "images"),
                shift=("contrast:3", "noise:3", "blur:3", "translation:3", "occlusion:3"), images=4, pseudo_samples=4),
            above(0.0, "points gained", AS_ACCURATE), lines="each", post_hoc="asked", reads="shift",
            about="that pseudo-samples help where images are few"),
    })  # fmt: skip
