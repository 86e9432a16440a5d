"""What do clients with different classes do to batch norm where they average their weights, and does fixing its
statistics help?"""

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import LOST_OF_ANY_SIZE, Forest
from bnlab.harness.reporting.question import Claim, Figure, Question, above, show, within
from experiments.margins import A_POINT
from experiments.questions import clients

PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "accuracy": show(clients, "accuracy"),
        "lost": Figure(
            "Points that averaged statistics lose against exact ones",
            "Compare with 0, exact statistics of the same averaged weights. The axis is linear up to 0.3 points, and "
            "logarithmic beyond.",
            score(
                "clients", "accuracy_lost", ("classes", "mode", "local_steps"), at=1.0, scale=100, mode="batch",
                statistics="averaged"),
            Forest("local_steps", LOST_OF_ANY_SIZE), panels=clients.PANELS,
            names={"mode": clients.MODES, "local_steps": clients.STEPS}),
    },
    claims={
        "averaged_statistics_cost_when_skewed": Claim(
            "With six classes a client and 100 local steps averaged statistics lose over a point against exact ones.",
            score(
                "clients", "accuracy_lost", ("classes", "local_steps"), at=1.0, scale=100, classes=6, local_steps=100,
                mode="batch", statistics="averaged"),
            above(1.0, "points lost", A_POINT), lines="each", reads="clients"),
        "iid_clients_are_fine": Claim(
            "With all classes at every client and an average every step they lose less than a point.",
            score(
                "clients", "accuracy_lost", ("classes", "local_steps"), at=1.0, scale=100, classes=36, local_steps=1,
                mode="batch", statistics="averaged"),
            within(-1.0, 1.0, "points lost", A_POINT), lines="each", reads="clients"),
        "local_statistics_are_worst": Claim(
            "With six classes a client local statistics are over ten points less accurate than averaged ones.",
            score(
                "clients", "accuracy", ("local_steps",), at=1.0, against="averaged", along="statistics",
                matching=("run", "classes", "local_steps", "mode"), scale=-100, classes=6, mode="batch",
                statistics="local"),
            above(10.0, "points lost", "ten points are seen without any test"), lines="each", reads="clients"),
        "fixing_helps": Claim(
            "With six classes a client and an average every step fixed statistics are over a point more accurate "
            "than batch norm under averaged ones.",
            score(
                "clients", "accuracy", ("classes",), at=1.0, against="batch", along="mode",
                matching=("run", "classes", "local_steps", "statistics"), scale=100, classes=6, local_steps=1,
                mode="fixed", statistics="averaged"),
            above(1.0, "points gained", A_POINT), lines="each", reads="clients"),
        "training_itself_suffers": Claim(
            "With an average every step, under exact statistics, batch norm with six classes a client is over five "
            "points less accurate than with all.",
            score(
                "clients", "accuracy", ("classes",), at=1.0, against=36, along="classes",
                matching=("run", "local_steps", "mode", "statistics"), scale=-100, classes=6, local_steps=1,
                mode="batch", statistics="exact"),
            above(
                5.0, "points lost",
                "averages of gradients that disagree are said to be the first of two causes; five points are seen "
                "without any test"),
            lines="each", reads="clients"),
    })  # fmt: skip
