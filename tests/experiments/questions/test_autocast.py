"""Statistics measured under autocast, against the moments of each layer's input, layer after layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnlab import Statistics, population_statistics
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.reporting.frames import select
from tests.helpers import measure
from tests.references import batch_norms, gap, inputs_of, merge


def predict_in_bfloat16(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(images).float()


def write_statistics(model: nn.Module, images: Tensor) -> None:
    """Write into each layer, one after the other, the moments of the input that it has under autocast."""
    for layer in batch_norms(model).values():
        moments = merge(inputs_of(layer, lambda: predict_in_bfloat16(model, images)))
        layer.get_buffer("running_mean").copy_(moments.mean)
        layer.get_buffer("running_var").copy_(moments.var)


def compute_largest_gap(exact: Statistics, model: nn.Module) -> float:
    gaps = []
    for name, layer in batch_norms(model).items():
        held = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        gaps.append(gap((exact[name].mean, exact[name].var), held, layer.eps)["mean_gap"])
    return max(gaps)


def test_autocast(trained: Run, copied: Config) -> None:
    images = trained.dataset.train.images
    model = trained.model_at(20)
    exact = population_statistics(model, [images])
    write_statistics(model, images)
    expected = compute_largest_gap(exact, model)

    found = measure(copied, "experiments.questions.precision.measurement.Autocast", evaluate_at=[1, 20])

    assert set(found["step"]) == {20}, "the final one"
    gaps = found.groupby("measured_in")["largest_gap"].first()
    assert gaps["float32"] == 0
    # A float32 sum in another order may round an activation to the next bfloat16, 2⁻⁸ of it, and move few of them.
    assert gaps["bfloat16"] == pytest.approx(expected, rel=0.1)
    assert 1e-4 < expected < 0.1

    rows = select(found, measured_in="bfloat16", predicted_in="bfloat16")
    accuracy = rows["accuracy"].item()
    test = trained.dataset.test
    logits = predict_in_bfloat16(model, test.images)
    is_right = logits.argmax(1) == test.labels
    best = logits.topk(2).values
    is_close = best[:, 0] - best[:, 1] <= 2**-7 * best[:, 0].abs()  # each is rounded by up to 2⁻⁸ of itself
    assert is_close.double().mean() < 0.05
    assert accuracy == pytest.approx(float(is_right.double().mean()), abs=float(is_close.double().mean()))
