"""Disturbed statistics: how far they are off, and how a float64 network predicts under them."""

from __future__ import annotations

from itertools import product

import pytest

from bnlab import Statistics, gap, population_statistics
from bnlab.statistics.layout import Layout
from experiments.questions.tolerance.measurement import disturb, draw_signs
from tests.helpers import Config, Run, measure
from tests.references import accuracy_under


def select_exact(run: Run) -> Statistics:
    """Measure exact statistics after 20 steps."""
    return population_statistics(run.model_at(20), [run.dataset.train.images])


def test_doses(trained: Run, copied: Config) -> None:
    run = trained
    found = measure(copied, "experiments.questions.tolerance.measurement.Doses", evaluate_at=[1, 20])
    assert set(found["step"]) == {20}, "the final one"
    layers = list(select_exact(run))
    assert found.groupby("layer")["depth"].first().to_dict() == {"all": 0, layers[0]: 1, layers[1]: 2}
    assert found.groupby("layer")["dose"].nunique().to_dict() == {"all": 7, **dict.fromkeys(layers, 2)}

    test = run.dataset.test
    model = run.model_at(20)
    exact = select_exact(run)
    before = accuracy_under(model, exact, test.images, test.labels)
    layout = Layout.of(exact)
    values = layout.flatten(exact)
    signs = draw_signs(run, layout)
    for row in found.to_dict("records"):
        disturbed = layout.unflatten(disturb(layout, values, signs, row["layer"], row["moment"], row["dose"]))
        accuracy = accuracy_under(model, disturbed, test.images, test.labels)

        assert row["accuracy_lost"] == pytest.approx(before - accuracy, abs=1.5 / len(test.labels)), "one on the border"


def test_a_dose_is_a_gap(trained: Run) -> None:
    """Of the mean exactly; of the variance but for eps. Other layers stay as they are."""
    run = trained
    exact = select_exact(run)
    layout = Layout.of(exact)
    values = layout.flatten(exact)
    signs = draw_signs(run, layout)
    for moment, layer in product(("mean", "var"), ("all", list(exact)[1])):
        disturbed = disturb(layout, values, signs, layer, moment, 0.4)

        gaps = gap(exact, layout.unflatten(disturbed))

        other = "var" if moment == "mean" else "mean"
        assert gaps[f"{moment}_gap"].to_list() == pytest.approx([0.4 * (layer == "all"), 0.4], rel=1e-3)
        assert gaps[f"{other}_gap"].to_list() == [0, 0]
