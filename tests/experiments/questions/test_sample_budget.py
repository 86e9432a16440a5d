"""Effects for the claims of `sample_budget`."""

from __future__ import annotations

from typing import Any

from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import declared
from bnlab.harness.reporting.frames import rows
from experiments.questions.sample_budget import EXPERIMENT, losses
from experiments.questions.sample_budget import errors as find_errors
from tests.experiments.planted import Effect, Value, accuracy_lost, lose, plant, reference, sign

ALL = 9000


def errors(times: float) -> Value:
    """A gap that is so many times that of independent images of error 0.5 each."""
    return lambda row: times * 0.5 * (1 / images(row) - 1 / ALL) ** 0.5 * (1 + row["seed"] / 100)


def images(row: dict[str, Any]) -> int:
    return int(row["estimator"].partition("=")[2].strip(")") or ALL) if "=" in row["estimator"] else ALL


VALUES: dict[str, Value] = {"images": lambda row: ALL, "mean_error": lambda row: 0.5}
PREDICTED = Effect(
    {"estimators": [("exact", None), ("exact(images=32)", None), ("exact(images=512)", None)],
     "gap": errors(1), "values": VALUES},
    {"gap": errors(2)},
    gap=lambda row: errors(2.0 ** sign(row))(row),
    values=VALUES,
)  # fmt: skip
EFFECTS = {
    "hundreds_nearly_suffice": accuracy_lost(("exact(images=512)", None), -0.15, 3, sizes=(16,)),
    "thousands_suffice": Effect(
        {"estimators": [("exact(images=2048)", None), ("exact", None)]},
        {"accuracy": lose("exact(images=2048)", 3)},
        accuracy=lambda row: 0.9 - 0.3 * sign(row) * (row["estimator"] != "exact"),
    ),
    "a_batch_is_too_few": accuracy_lost(("exact(images=32)", None), 3, -3),
    "errors_are_predicted": PREDICTED,
    "squares_are_predicted": PREDICTED,
}


def test_few_images_are_right_early_at_batch_256() -> None:
    """As the experiment's source says: fewer than one in ten."""
    early = rows(reference("sample_budget"), "evaluations", (0.1,), estimator="exact", batch_size=256)
    assert len(early) and early["accuracy"].max() < 0.1


def test_the_figure_says_which_mean_it_draws() -> None:
    """Over seeds it draws roots of means of squares."""
    tables = declared(EXPERIMENT, reference("sample_budget"))
    (text,) = (t.get_text() for t in drawing.draw(EXPERIMENT.figures[0], tables).texts if "Lines:" in t.get_text())
    assert "Lines: root mean squares over seeds" in text.replace("\n", " ")


def test_samples_are_of_exact_statistics() -> None:
    """Precise BN of so many images is something else."""
    tables = plant([("exact", None), ("exact(images=32)", None), ("precise(images=512)", None)], values=VALUES)
    for found in (find_errors(tables), losses(tables)):
        assert set(found["estimator"]) == {"exact(images=32)"}
