"""Constructed streams: closed forms where nothing is noisy, and a network's trace by plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bnlab.estimators import EMA, Cumulative, Estimator, LastBatch, Predictive, Stream, WeightedCumulative, Window
from bnlab.harness.measurements.subjects import Subject, parse_subjects
from experiments.questions.streams.counterexamples import Counterexamples, construct, deviation, shuffle_last
from experiments.questions.streams.replaying import replay_means, stream_until
from tests.helpers import Run

K, IMAGES, SIZE = 50, 16, 10.0
SHARE = 1 / ((K - 1) * IMAGES + 1)  # of one image alone among all images


def constant() -> Stream:
    """Batches of mean 3 and variance 4 in two layers, each of 16 images of 5 values."""
    moments = torch.tensor([[3.0] * 3, [4.0] * 3], dtype=torch.float64)
    eps = torch.full((3,), 1e-5, dtype=torch.float64)
    counts = torch.full((K, 3), 5.0 * IMAGES, dtype=torch.float64)
    return Stream(moments, moments.expand(K, 2, 3).clone(), counts, eps=eps, layers=(1, 2))


@pytest.mark.parametrize(
    ("estimator", "case", "expected"),
    [
        (EMA(0.1), "jump_1", -0.9),
        (EMA(0.1), "jump_10", -(0.9**10)),
        (EMA(0.1), "rare", 0.1 - 1 / K),
        (EMA(0.1), "single", 0.1 - SHARE),
        (Window(20), "jump_10", -0.5),
        (Window(20), "rare", 1 / 20 - 1 / K),
        (Cumulative(), "jump_10", -(1 - 10 / K)),
        (Cumulative(), "rare", 0.0),
        (Cumulative(), "single", 1 / K - SHARE),
        (WeightedCumulative(), "single", 0.0),
        (LastBatch(), "jump_1", 0.0),
        (LastBatch(), "rare", 1 - 1 / K),
        (Predictive(), "jump_10", 0.0),
        (EMA(0.1), "sorted", 0.0),
    ],
    ids=str,
)
def test_errors_of_constant_batches(estimator: Estimator, case: str, expected: float) -> None:
    """In units of what is added, above the true mean; the noise of the batches is all that is left out."""
    stream = constant()
    changed, truth = construct(case, SIZE, stream, IMAGES)
    (mean,) = replay_means([Subject(estimator)], changed)
    torch.testing.assert_close((mean - truth) / (SIZE * deviation(stream)), torch.full((3,), expected).double())


def test_batches_are_sorted_in_each_channel_with_their_variances() -> None:
    values = torch.randn(K, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, 1] = values[:, 0] + 7
    stream = replace(constant(), batches=values, start=values.mean(0))
    found, truth = construct("sorted", 1.0, stream, IMAGES)
    np.testing.assert_array_equal(found.batches[:, 0], np.sort(values[:, 0], axis=0))
    torch.testing.assert_close(found.batches[:, 1], found.batches[:, 0] + 7)
    torch.testing.assert_close(truth, values[:, 0].mean(0))
    assert construct("shuffled", 1.0, stream, IMAGES)[0] is stream


def test_counterexamples(trained: Run) -> None:
    """The EMA and the last batch, as they are written, on the batches of the network in their random order."""
    run = trained
    sources = parse_subjects(["ema", "last_batch", "exact", "test_batch"], [0.1], "train")
    chosen = Counterexamples().scope(run, sources)

    assert {source.label: steps for source, steps in chosen.items()} == {"ema": [40], "last_batch": [40]}

    found = Counterexamples().measure(run, [*chosen], [40]).set_index(["estimator", "case", "size"])
    assert set(found["batches"]) == {40}
    assert not found.index.has_duplicates

    stream = shuffle_last(run, stream_until(run, 40))
    recorded = torch.cat([layer.moments[:40] for layer in run.trace.layers.values()], dim=2).double()
    torch.testing.assert_close(stream.batches.sort(0).values, recorded.sort(0).values)
    means, variances = stream.batches.numpy().swapaxes(0, 1)
    sigma = np.sqrt(variances.mean(0) + 1e-5)
    for case in ("jump_1", "rare", "shuffled"):
        batches = means.copy()
        truth = means.mean(0)
        if case != "shuffled":
            batches[-1] += sigma
            truth = truth + sigma if case == "jump_1" else batches.mean(0)
        ema = means.mean(0)
        for batch in batches:
            ema = 0.9 * ema + 0.1 * batch
        for name, mean in (("ema", ema), ("last_batch", batches[-1])):
            expected = np.sqrt(np.mean(((mean - truth) / sigma) ** 2))
            assert found.loc[(name, case, 1.0), "error"] == pytest.approx(expected, rel=1e-9)
