"""Orders of test images, against what their classes have to be, and rows against predictions in those orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.test_streams import streams
from experiments.questions.test_streams.streams import STREAMS, draw_order
from tests.helpers import measure
from tests.references import batch_norms, float64_copy, full_batch_population

TABLE = "experiments.questions.test_streams.streams.TestStreams"
LABELS = np.repeat(np.arange(20), 50)


def draw(stream: str, seed: int) -> np.ndarray:
    """Draw an order of images of 20 classes, 50 each."""
    return draw_order(LABELS, stream, np.random.default_rng(seed))


@pytest.mark.parametrize("stream", STREAMS)
def test_every_image_arrives_once(stream: str) -> None:
    order = draw(stream, 0)

    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != draw(stream, 1).tolist()


def test_sorted_images_arrive_class_after_class() -> None:
    assert LABELS[draw("sorted", 0)].tolist() == LABELS.tolist()


def count_stretches(stream: str, seed: int) -> int:
    """Count the stretches of images of one class."""
    return len(list(groupby(LABELS[draw(stream, seed)])))


def test_a_dirichlet_stream_has_as_many_stretches_as_its_shares_make() -> None:
    """Each share is Beta(0.1, 1.9) of 50 images; a portion of at least one image is a stretch.

    A portion lies between two rounded ends. It is empty with a chance that 200,000 drawn shares tell, to a third of a
    percent. Ten streams of 400 portions have a standard error of 0.8% of all portions, since shares hang together
    little; stretches of a class that meet are one less in twenty slots at most.
    """
    rng = np.random.default_rng(0)
    ends = (rng.dirichlet(np.full(20, 0.1), 10_000).cumsum(1) * 50).round(9).astype(int)
    portions = np.diff(ends, axis=1, prepend=0)
    expected = 400 * float((portions > 0).mean())

    found = float(np.mean([count_stretches("dirichlet", seed) for seed in range(10)]))

    assert expected - 20 - 13 < found < expected + 13
    assert count_stretches("sorted", 0) == 20
    assert count_stretches("shuffled", 0) > 900


def test_rows(copied: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SIZES", (16,))
    run = Run(copied)
    test = run.dataset.test
    image = 1.5 / len(test.labels)  # one image may lie on the border

    frame = measure(copied, TABLE)

    assert Counter(frame["statistics"]) == dict.fromkeys(("running", "exact", "batch", "mixed"), 3)
    model = float64_copy(run.model_at(run.steps))
    exact = full_batch_population(model, run.dataset.train.images)
    for stream in STREAMS:
        rng = np.random.default_rng(seed_by(f"{run.id} {stream}").initial_seed())
        order = torch.as_tensor(draw_order(test.labels.numpy(), stream, rng))
        for statistics in ("running", "exact", "batch", "mixed"):
            row = select(frame, stream=stream, statistics=statistics).iloc[0]
            right = 0
            for chosen in order.split(16):
                network = float64_copy(model)
                for name, layer in batch_norms(network).items():
                    if statistics != "running":
                        layer.running_mean = exact[name].mean.clone()
                        layer.running_var = exact[name].var.clone()
                    if statistics in ("batch", "mixed"):
                        weight = 1.0 if statistics == "batch" else len(chosen) / (64 + len(chosen))
                        layer.register_forward_pre_hook(mix(weight))
                with torch.no_grad():
                    logits = network(test.images[chosen].double())
                right += int((logits.argmax(1) == test.labels[chosen]).sum())
            assert row["accuracy"] == pytest.approx(right / len(order), abs=image)


def mix(weight: float) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """Make a hook that mixes the moments of a layer's input into its buffers before they are used."""

    def write(layer: nn.Module, args: tuple[Tensor]) -> None:
        var, mean = torch.var_mean(args[0], (0, 2, 3), correction=0)
        layer.get_buffer("running_mean").lerp_(mean, weight)
        layer.get_buffer("running_var").lerp_(var, weight)

    return write
