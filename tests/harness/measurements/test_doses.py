"""Disturbed statistics, against a float64 network into which they are written channel by channel."""

from __future__ import annotations

import math

import pytest
import torch

from bnlab import gap
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements import list_measurements
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics
from bnlab.harness.measurements.tables.doses import disturb, draw_signs
from bnlab.layout import Layout
from tests.references import batch_norms, float64_copy


@torch.no_grad()
def predict(run: Run, layer: str, moment: str, dose: float) -> torch.Tensor:
    """Logits of the test images after 20 steps."""
    exact = frozen_statistics(run, 20, EXACT)
    wide, place = float64_copy(run.model_at(20)), 0
    signs = draw_signs(run, Layout.of(exact)).tolist()
    for name, module in batch_norms(wide).items():
        for c in range(len(exact[name].mean)):
            mean, var = float(exact[name].mean[c]), float(exact[name].var[c])
            if layer in ("all", name) and moment == "mean":
                mean += dose * signs[0][place] * math.sqrt(var + module.eps)
            elif layer in ("all", name):
                var *= math.exp(dose * signs[1][place])
            module.running_mean[c], module.running_var[c] = mean, var
            place += 1
    return wide(run.dataset.test.images.double())


def test_doses(trained: Run) -> None:
    run = trained
    assert list_measurements()["doses"].scope(run, []) == {None: [40]}, "the final step"
    found = list_measurements()["doses"].measure(run, [None], [20])
    layers, labels = list(frozen_statistics(run, 20, EXACT)), run.dataset.test.labels
    assert list(found["layer"].unique()) == ["all", *layers] and list(found["depth"].unique()) == [0, 1, 2]
    assert found.groupby("layer")["dose"].nunique().to_dict() == {"all": 7, **dict.fromkeys(layers, 2)}
    exact = predict(run, "all", "mean", 0)
    for row in found.to_dict("records"):
        logits = predict(run, row["layer"], row["moment"], row["dose"])
        accuracy, before = ((values.argmax(1) == labels).double().mean() for values in (logits, exact))
        near = {"abs": 1.5 / len(labels)}  # one image may lie on the border
        assert row["accuracy"] == pytest.approx(float(accuracy), **near)
        assert row["accuracy_lost"] == pytest.approx(float(before - accuracy), **near)
        assert row["disagreement"] == pytest.approx(
            float((logits.argmax(1) != exact.argmax(1)).double().mean()), **near
        )
        expected = float((logits - exact).norm() / exact.norm())
        assert row["logit_gap"] == pytest.approx(expected, rel=1e-3)


def test_a_dose_is_a_gap(trained: Run) -> None:
    """Of the mean exactly; of the variance but for eps. Other layers stay as they are."""
    run = trained
    exact = frozen_statistics(run, 20, EXACT)
    layout, layer = Layout.of(exact), list(exact)[1]
    values, signs = layout.flatten(exact), draw_signs(run, layout)
    for moment in ("mean", "var"):
        gaps = gap(exact, layout.unflatten(disturb(layout, values, signs, layer, moment, 0.4)))
        assert gaps[f"{moment}_gap"].to_list() == pytest.approx([0, 0.4], rel=1e-3)
        assert (gaps[[column for column in ("mean_gap", "var_gap") if column != f"{moment}_gap"]] == 0).all(axis=None)
