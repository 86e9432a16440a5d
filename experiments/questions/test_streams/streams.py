"""Table `test_streams`: how test images are predicted that arrive in some order, under which statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

import bnlab
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import EXACT, measure_at, seed_by
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.inference import PseudoSamples, TestBatch

STREAMS = ("shuffled", "dirichlet", "sorted")
SIZES = (16, 64, 256)
SIZE_OF_SHIFTED = 64  # of images that differ from those of training
CONCENTRATION = 0.1
RULES = {"batch": TestBatch(), "mixed": PseudoSamples(64)}

_ABOUT = f"""\
How test images are predicted at the end of training where they arrive in some order. Orders are drawn for each
network.

- `shuffled`: in a random order.
- `dirichlet`: as Tomar et al. (2024) and their benchmark draw it. There are as many slots as classes. Each class
  divides its images among them by a Dirichlet distribution of concentration {CONCENTRATION}. In a slot portions follow
  each other class after class, in a random order of the classes.
- `sorted`: class after class by their numbers, shuffled within each."""


class TestStreams(Measurement):
    """Table `test_streams`."""

    __test__: ClassVar[bool] = False  # no tests of pytest's
    at_last_step: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "test_streams"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "split": text("images that are predicted, as in `evaluations`"),
            "shift": text("how they differ from the training images, as in `evaluations`"),
            "stream": text("their order, as above"),
            "size": integer("images that are predicted at once; a last batch that is not full keeps its size"),
            "statistics": text(
                "running, the running averages of training; exact, those of all training images; batch, those of the "
                "test batch alone; mixed, of the test batch and of exact statistics that count as 64 images. The first "
                "two do not depend on stream and size"
            ),
        },
        others={
            **common("epoch"),
            "accuracy": real("share of all images that are predicted right"),
        },
    )

    def measure(
        self, run: Run, subjects: list[None], steps: list[int], split: str = "test", shift: str = "none"
    ) -> pd.DataFrame:
        """Predict images of a split and shift in every order: a row for each size and kind of statistics."""
        (step,) = steps
        images = run.images_of(split, shift)
        sizes = SIZES if shift == "none" else (SIZE_OF_SHIFTED,)
        frame = pd.DataFrame(_predict_streams(run, step, images, sizes))
        return frame.assign(step=step, split=split, shift=shift)


def _predict_streams(run: Run, step: int, images: Split, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Predict images in every order, in batches of these sizes, under all kinds of statistics."""
    model = run.model_at(step).eval()
    exact = measure_at(run, step, EXACT)
    # Under fixed statistics neither order nor size matters, so that these are predicted once.
    without_batch = {}
    for name, statistics in (("running", bnlab.running_statistics(model)), ("exact", exact)):
        without_batch[name] = measure_accuracy(model, images, statistics)

    for stream in STREAMS:
        rng = np.random.default_rng(seed_by(f"{run.id} {stream}").initial_seed())
        arriving = arrange(images, stream, rng)
        for size in sizes:
            accuracies = dict(without_batch)
            for name, rule in RULES.items():
                accuracies[name] = measure_accuracy(model, arriving, exact, Subject(rule, "test", size))
            for name, accuracy in accuracies.items():
                yield {"stream": stream, "size": size, "statistics": name, "accuracy": accuracy}


def arrange(images: Split, stream: str, rng: np.random.Generator) -> Split:
    """Put images into the order of a stream."""
    labels = images.labels.cpu().numpy()
    order = torch.as_tensor(draw_order(labels, stream, rng), device=images.labels.device)
    arranged = images.images[order].contiguous(memory_format=torch.channels_last)
    return Split(arranged, images.labels[order])


def draw_order(labels: np.ndarray, stream: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the order in which images of these labels [N] arrive: each number from 0 to N - 1 once, see the table."""
    shuffled = rng.permutation(len(labels))
    if stream == "shuffled":
        return shuffled

    # Images of a class keep the order in which they were shuffled.
    classes = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    if stream == "sorted":
        return np.concatenate(classes)

    slots: list[list[np.ndarray]] = [[] for _ in classes]
    for numbers in classes:
        shares = rng.dirichlet(np.full(len(slots), CONCENTRATION))
        # One cut less than there are slots. A share of less than an image may leave a slot without any.
        ends = (shares.cumsum()[:-1] * len(numbers)).astype(int)
        for slot, portion in zip(slots, np.split(numbers, ends), strict=True):
            slot.append(portion)

    ordered = []
    for slot in slots:
        for place in rng.permutation(len(slot)):
            ordered.append(slot[place])
    return np.concatenate(ordered)
