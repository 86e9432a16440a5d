"""Shares of normalized activations, against numpy's on each layer's own input in float64."""

from __future__ import annotations

import numpy as np

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics
from bnlab.harness.measurements.sources import parse_sources
from bnlab.statistics import using
from tests.references import batch_norms, float64_copy, inputs_of


def test_histograms(trained: Run) -> None:
    run = trained
    step, images = run.wanted[-1], run.dataset.train.images[:512]
    found = find_measurement("histograms")(run, parse_sources(["exact", "test_batch(n=32)"], [], "train"), [step])
    assert np.allclose(found.groupby(["estimator", "layer"])["share"].sum(), 1)
    shares = found.set_index(["estimator", "layer"])
    with using(run.model_at(step), frozen_statistics(run, step, EXACT)) as model:
        wide = float64_copy(model).eval()
        for name, layer in batch_norms(wide).items():
            (x,) = inputs_of(layer, lambda: wide(images.double()))
            var = layer.running_var[None, :, None, None] + layer.eps
            normal = (x - layer.running_mean[None, :, None, None]) / var.sqrt()
            expected = np.histogram(normal.clamp(-4, 4).numpy(), 32, (-4, 4))[0] / x.numel()
            np.testing.assert_allclose(shares.loc[("exact", name), "share"], expected, atol=1e-5)
    first = next(iter(batch_norms(model)))
    (x,) = inputs_of(dict(model.named_modules())[first], lambda: model(images))
    batches = [(b - b.mean((0, 2, 3), keepdim=True)) / b.var((0, 2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
               for b in x.double().split(32)]  # fmt: skip
    expected = sum(np.histogram(b.clamp(-4, 4).numpy(), 32, (-4, 4))[0] for b in batches) / x.numel()
    np.testing.assert_allclose(shares.loc[("test_batch(n=32)", first), "share"], expected, atol=1e-5)
