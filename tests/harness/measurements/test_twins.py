"""The rows of one step, recomputed by plain loops in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.subjects import parse_subjects
from bnlab.harness.measurements.tables.evaluations import Evaluations
from bnlab.harness.measurements.tables.gaps import Gaps
from tests.references import Moments, batch_norms, float64_copy, full_batch_population, gap, inputs_of, moments

STEP = 20


def score(logits: Tensor, exact: Tensor, labels: Tensor) -> dict[str, float]:
    hits = logits.argmax(1) == labels
    confidence = logits.softmax(1).amax(1)
    bins: dict[int, list[float]] = {}
    for hit, each in zip(hits.tolist(), confidence.tolist(), strict=True):
        bins.setdefault(math.ceil(15 * each), []).append(each - hit)
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": hits.double().mean().item(),
        "ece": sum(abs(sum(excess)) for excess in bins.values()) / len(labels),
        "disagreement": (logits.argmax(1) != exact.argmax(1)).double().mean().item(),
        "logit_gap": math.sqrt((logits - exact).square().sum() / exact.square().sum()),
    }


def predict(model: nn.Module, statistics: dict[str, Moments], images: Tensor) -> Tensor:
    """The logits of a float64 model into which the statistics are written."""
    for name, module in batch_norms(model).items():
        module.running_mean = statistics[name].mean
        module.running_var = statistics[name].var
    return model(images.double()).detach()


def test_rows_of_the_ema(trained: Run) -> None:
    """What float32 forwards leave: about √200 products of each output, 6e-8 each, over a handful of layers: 1e-5."""
    sources = parse_subjects(["ema", "exact"], [0.1], "train")
    model = float64_copy(trained.model_at(STEP))
    exact = full_batch_population(model, trained.dataset.train.images)
    averages: dict[str, Moments] = {}
    for name, layer in trained.trace.layers.items():
        mean = torch.zeros(layer.start.shape[1]).double()
        var = torch.ones(layer.start.shape[1]).double()
        for batch_mean, batch_var in layer.moments[:STEP].double():
            mean = 0.9 * mean + 0.1 * batch_mean
            var = 0.9 * var + 0.1 * batch_var
        averages[name] = Moments(0, mean, var)
    training = float64_copy(trained.model_at(STEP)).train()
    drawn = [images.double() for (images, _), _ in zip(trained.batches.from_step(STEP), range(16), strict=False)]
    rows = Gaps().measure(trained, sources, [STEP]).set_index(["estimator", "layer"])
    for name, average in averages.items():
        eps = trained.trace.layers[name].eps
        expected = gap(exact[name][1:], average[1:], eps)
        seen = [moments(inputs_of(training.get_submodule(name), partial(training, x))[0]) for x in drawn]
        off = [(average.mean - mean).abs() / (var + eps).sqrt() for _, mean, var in seen]
        ratio = [((average.var + eps) / (var + eps)).sqrt() - 1 for _, _, var in seen]
        expected["var_ratio"] = ((average.var + eps) / (exact[name].var + eps)).mean().item()
        expected |= {"tid_mean": torch.stack(off).mean().item(), "tid_std": torch.stack(ratio).abs().mean().item()}
        assert rows.xs(("ema", name))[[*expected]].to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-5)

    test = trained.dataset.test
    logits = predict(model, averages, test.images)
    expected = score(logits, predict(model, exact, test.images), test.labels)
    row = Evaluations().measure(trained, sources, [STEP]).set_index("estimator").xs("ema")

    assert row[[*expected]].to_dict() == pytest.approx(expected, rel=1e-5), "no image lies so near to a border"
