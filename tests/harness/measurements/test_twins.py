"""The rows of one step, recomputed by plain loops in float64, and those of traces as they were recorded."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnlab import population_statistics
from tests.conftest import small_config
from tests.helpers import Config, Run, measure
from tests.references import (
    Moments,
    float64_copy,
    full_batch_population,
    gap,
    inputs_of,
    logits_under,
    moments,
)

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


def test_rows_of_the_ema(trained: Run, copied: Config) -> None:
    """What float32 forwards leave: about √200 products of each output, 6e-8 each, over a handful of layers: 1e-5."""
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
    gaps = measure(copied, "gaps", estimator="ema", evaluate_at=[STEP]).set_index("layer")
    for name, average in averages.items():
        eps = trained.trace.layers[name].eps
        expected = gap(exact[name][1:], average[1:], eps)
        seen = [moments(inputs_of(training.get_submodule(name), partial(training, x))[0]) for x in drawn]
        off = [(average.mean - mean).abs() / (var + eps).sqrt() for _, mean, var in seen]
        ratio = [((average.var + eps) / (var + eps)).sqrt() - 1 for _, _, var in seen]
        expected["var_ratio"] = ((average.var + eps) / (exact[name].var + eps)).mean().item()
        expected |= {"tid_mean": torch.stack(off).mean().item(), "tid_std": torch.stack(ratio).abs().mean().item()}
        assert gaps.loc[name][[*expected]].to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-5)

    test = trained.dataset.test
    logits = logits_under(model, averages, test.images)
    expected = score(logits, logits_under(model, exact, test.images), test.labels)
    rows = measure(copied, "evaluations", estimator="ema", evaluate_at=[STEP]).set_index("estimator")

    assert rows.loc["ema"][[*expected]].to_dict() == pytest.approx(expected, rel=1e-5), "no image is so near a border"


def test_traces(trained: Run, copied: Config) -> None:
    """Two channels of each layer: single batches as recorded, exact statistics where the network is evaluated."""
    found = measure(copied, "traces", estimator=["last_batch", "exact", "test_batch"])
    found = found.set_index(["estimator", "step", "layer", "channel"]).sort_index()

    assert set(found.index.unique("estimator")) == {"last_batch", "exact"}
    steps = found.loc["last_batch"].index.unique("step")
    assert set(found.loc["exact"].index.unique("step")) == {*trained.measured_steps} <= set(steps)
    assert max(steps) == 40

    exact = population_statistics(trained.model_at(STEP), [trained.dataset.train.images])
    for name, layer in trained.trace.layers.items():
        for channel in (0, len(exact[name].mean) // 2):
            row = found.xs(("exact", STEP, name, channel))
            assert row["mean"] == pytest.approx(exact[name].mean[channel].item(), rel=1e-4, abs=1e-6)
            assert row["var"] == pytest.approx(exact[name].var[channel].item(), rel=1e-4)
            for step in steps:
                row = found.xs(("last_batch", step, name, channel))
                assert [row["mean"], row["var"]] == pytest.approx(layer.moments[step - 1, :, channel].tolist())


def test_running_averages_stay_where_exact_statistics_were_frozen(tmp_path: Path) -> None:
    """Between checkpoints too."""
    frozen = small_config(tmp_path, freeze_at=0.5, freeze_with="exact")
    rows = measure(frozen, "traces", estimator="ema")
    means = rows[(rows["depth"] == 2) & (rows["channel"] == 0)].set_index("step")["mean"]

    assert means[means.index >= 20].nunique() == 1 < means[means.index < 20].nunique()
    assert (means.index > 20).sum() > len([20, 40])
