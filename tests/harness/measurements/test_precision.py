"""Standard errors for one image, against those of each layer's input in float64 and against samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.measurements import find_measurement, find_scope
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, population
from bnlab.harness.measurements.sources import parse_sources
from bnlab.statistics import using
from tests.references import batch_norms, float64_copy, inputs_of, sampling_errors


def test_errors_are_those_of_each_layers_input(trained: Run) -> None:
    """Times √N, in standard deviations and relative to the variance, root mean square over channels."""
    run = trained
    ((subject, (*_, step)),) = find_scope("precision")(run, []).items()
    found = find_measurement("precision")(run, [subject], [step])
    images = run.dataset.train.images
    exact = frozen_statistics(run, step, EXACT)
    with using(run.model_at(step), exact) as model:
        wide = float64_copy(model).eval()
        for (name, layer), row in zip(batch_norms(wide).items(), found.to_dict("records"), strict=True):
            (x,) = inputs_of(layer, lambda: wide(images.double()))
            of_mean, of_var = sampling_errors(x)
            var = exact[name].var + exact.eps[name]
            assert (row["layer"], row["images"], row["values"]) == (name, len(images), x.numel() // x.shape[1])
            mean_error = (len(x) * (of_mean.square() / var).mean()) ** 0.5
            assert row["mean_error"] == pytest.approx(float(mean_error), rel=1e-4)
            var_error = (len(x) * (of_var / var).square().mean()) ** 0.5
            assert row["var_error"] == pytest.approx(float(var_error), rel=1e-4)
    # The first layer depends on no other: a sample's mean is as far off as that, on average over samples.
    first, row = next(iter(batch_norms(run.model_at(step)))), found.iloc[0]
    with using(run.model_at(step), exact) as model:
        (x,) = inputs_of(dict(model.named_modules())[first], lambda: model(images))
    means, n, generator = x.double().mean((2, 3)), 100, torch.Generator().manual_seed(0)
    samples = [means[torch.randperm(len(x), generator=generator)[:n]].mean(0) for _ in range(400)]
    off = ((torch.stack(samples) - exact[first].mean) / (exact[first].var + exact.eps[first]).sqrt()).square().mean()
    expected = row["mean_error"] * np.sqrt((1 - n / len(x)) / n)
    assert float(off) ** 0.5 == pytest.approx(expected, rel=0.1)  # 400 samples: 4% for one channel


def test_samples_are_drawn_for_each_network_and_step(tmp_path: Path) -> None:
    """The same again, without any image twice; others elsewhere."""
    runs = [Run(Config(results=str(tmp_path), seed=seed)) for seed in (0, 1)]
    (source,) = parse_sources(["exact(images=50)"], [], "train")

    def draw(run: Run, step: int) -> torch.Tensor:
        return torch.cat([images for images, _ in population(run, step, source, 32)])

    first = draw(runs[0], 7)
    assert first.equal(draw(runs[0], 7)) and len(first.flatten(1).unique(dim=0)) == 50
    assert not first.equal(draw(runs[0], 8)) and not first.equal(draw(runs[1], 7))
