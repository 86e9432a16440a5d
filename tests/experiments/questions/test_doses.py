"""Disturbed statistics, against a float64 network into which they are written channel by channel."""

from __future__ import annotations

import math

import pytest
import torch

from bnlab import Statistics, gap, population_statistics
from bnlab.statistics.layout import Layout
from experiments.questions.tolerance.measurement import disturb, draw_signs
from tests.helpers import Config, Run, measure
from tests.references import batch_norms, float64_copy


def select_exact(run: Run) -> Statistics:
    """Measure exact statistics after 20 steps."""
    return population_statistics(run.model_at(20), [run.dataset.train.images])


@torch.no_grad()
def predict(run: Run, layer: str, moment: str, dose: float) -> torch.Tensor:
    """Logits of the test images after 20 steps."""
    exact = select_exact(run)
    wide = float64_copy(run.model_at(20))
    signs = draw_signs(run, Layout.of(exact)).tolist()
    place = 0
    for name, module in batch_norms(wide).items():
        for c in range(len(exact[name].mean)):
            mean = float(exact[name].mean[c])
            var = float(exact[name].var[c])
            is_disturbed = layer in ("all", name)
            if is_disturbed and moment == "mean":
                sigma = math.sqrt(var + module.eps)
                mean += dose * signs[0][place] * sigma
            elif is_disturbed:
                var *= math.exp(dose * signs[1][place])

            module.get_buffer("running_mean")[c] = mean
            module.get_buffer("running_var")[c] = var
            place += 1
    return wide(run.dataset.test.images.double())


def test_doses(trained: Run, copied: Config) -> None:
    run = trained
    found = measure(copied, "experiments.questions.tolerance.measurement.Doses", evaluate_at=[1, 20])
    assert set(found["step"]) == {20}, "the final one"
    layers = list(select_exact(run))
    assert found.groupby("layer")["depth"].first().to_dict() == {"all": 0, layers[0]: 1, layers[1]: 2}
    assert found.groupby("layer")["dose"].nunique().to_dict() == {"all": 7, **dict.fromkeys(layers, 2)}

    labels = run.dataset.test.labels
    image = 1.5 / len(labels)  # one image may lie on the border
    exact = predict(run, "all", "mean", 0)
    before = float((exact.argmax(1) == labels).double().mean())
    for row in found.to_dict("records"):
        logits = predict(run, row["layer"], row["moment"], row["dose"])
        accuracy = float((logits.argmax(1) == labels).double().mean())

        assert row["accuracy_lost"] == pytest.approx(before - accuracy, abs=image)


def test_a_dose_is_a_gap(trained: Run) -> None:
    """Of the mean exactly; of the variance but for eps. Other layers stay as they are."""
    run = trained
    exact = select_exact(run)
    layout = Layout.of(exact)
    layer = list(exact)[1]
    values = layout.flatten(exact)
    signs = draw_signs(run, layout)
    for moment in ("mean", "var"):
        disturbed = disturb(layout, values, signs, layer, moment, 0.4)

        gaps = gap(exact, layout.unflatten(disturbed))

        other = "var" if moment == "mean" else "mean"
        assert gaps[f"{moment}_gap"].to_list() == pytest.approx([0, 0.4], rel=1e-3)
        assert gaps[f"{other}_gap"].to_list() == [0, 0]
