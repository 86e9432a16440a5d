"""How well do statistics of test batches predict if images of a class arrive together?

Tomar et al. 2024 (UnMix-TNS) say that they fail, and instead keep statistics in several components, which we have not
implemented. The claims were written before any number was known; `bnlab report paper=test_streams` decides them.
"""

from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves, Forest
from bnlab.harness.reporting.question import Figure, Question

STATISTICS = {
    "running": "running averages",
    "exact": "exact statistics",
    "batch": "test batch",
    "mixed": "test batch and pseudo-samples (64)",
}
STREAMS = {"shuffled": "shuffled", "dirichlet": "in portions of classes", "sorted": "sorted by class"}
SHIFTS = {"none": "as in training", "noise:3": "noise", "contrast:3": "low contrast", "blur:3": "blur"}
NAMES = {"stream": STREAMS, "statistics": STATISTICS}

QUESTION = Question(
    bears_on=("Q34",),
    columns=("accuracy",),
    figures={
        "sizes": Figure(
            "Accuracy by the order of the test images and by how many are predicted at once",
            "Compare the panels: the same test images, shuffled, in portions of classes (Dirichlet 0.1), and sorted "
            "by class. Running averages and exact statistics of the training images do not depend on the order, and "
            "coincide.",
            score("test_streams", "accuracy", ("stream", "statistics", "size"), at=1.0, scale=100, shift="none"),
            Curves("size", "statistics", ACCURACY, across=Axis("images in a test batch", log=True, ticks="values")),
            panels="{stream}", names=NAMES),
        "shifts": Figure(
            "Accuracy on shifted test images by their order, 64 predicted at once",
            "Compare the points beside a name over the panels. Under running averages and exact statistics of "
            "training, accuracy on the three shifts is near chance, 3%.",
            score("test_streams", "accuracy", ("stream", "shift", "statistics"), at=1.0, scale=100, size=64),
            Forest("shift", Axis("test accuracy (%)"), series="statistics"),
            panels="{stream}", names={**NAMES, "shift": SHIFTS}),
    },
    claims={},
)  # fmt: skip
