"""Tables `other_momenta` and `kept_averages`: at four steps, other running averages, and averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

import bnlab
from bnlab.estimators import EMA, DebiasedEMA
from bnlab.harness.artifacts.dataset import augment
from bnlab.harness.artifacts.job_settings import list_steps
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import flat_statistics, measure_statistics, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import predict, score_logits
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact
from bnlab.statistics.network import Statistics

SHARES = (0.1, 0.5, 0.8, 1.0)
"""Shares of the training at which these tables are measured; the twelve steps of `real` would cost three times that."""
IMAGES = 5000  # of the training split, that exact statistics of averaged weights are of

# A batch that is counted twice, as activation checkpointing does, has the weight 1 - 0.9 * 0.9.
_AVERAGES = (EMA(momentum=0.01), EMA(momentum=0.03), EMA(momentum=0.19), EMA(momentum=0.3), DebiasedEMA(momentum=0.1))
_PREDICTED = {
    "images": integer("test images that are predicted"),
    "loss": real("their cross-entropy, in nats"),
    "accuracy": real("share of them that are predicted right"),
}


def choose_steps(run: Run) -> list[int]:
    """Choose the measured steps at `SHARES` of the training."""
    wanted = list_steps(list(SHARES), run.steps)
    return [step for step in run.measured_steps if step in wanted]


class OtherMomenta(Measurement):
    """Table `other_momenta`."""

    name: ClassVar[str] = "other_momenta"
    table: ClassVar[Table] = Table(
        about="How the network predicts test images under running averages of other momenta than 0.1, at four steps.",
        key=common("run step estimator momentum statistics_split"),
        others={**common("epoch"), **_PREDICTED},
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose the same averages of every network, whatever its job measures elsewhere."""
        return dict.fromkeys(map(Subject, _AVERAGES), choose_steps(run))

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        return choose_steps(run)

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Predict the test images: a row for each step and average."""
        every = run.images_of("test", "none")
        estimates = flat_statistics(run, subjects, steps)
        rows = []
        for place, step in enumerate(steps):
            images = every.sample(run.limit_at(step))
            model = run.model_at(step).eval()
            for values in estimates[:, place]:
                logits = predict(model, images, run.trace.layout.unflatten(values))
                rows.append(_describe(logits, images.labels))
        return pd.concat([tabulate(subjects, steps, {}), pd.DataFrame(rows)], axis=1)


class KeptAverages(Measurement):
    """Table `kept_averages`."""

    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "kept_averages"
    table: ClassVar[Table] = Table(
        about="How the averages of the weights predict test images that `weight_averages` kept, at four steps, by what "
        "became of the buffers.",
        key={
            **common("run step"),
            "decay": real("of the average of the weights"),
            "buffers": text(
                "left, 0 and 1 as before training; copied, the trained network's running averages (momentum 0.1); "
                "averaged, as the weights; exact, measured on augmented training images, "
                f"{IMAGES:,} or as many as there are"
            ),
        },
        others={**common("epoch"), **_PREDICTED},
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[None, list[int]]:
        """Choose four steps of networks that have kept averages."""
        return {None: choose_steps(run)} if run.config.decays else {}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        return choose_steps(run)

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Predict the test images: a row for each step, decay and state of the buffers."""
        every = run.images_of("test", "none")
        shown = draw_augmented(run)
        rows = []
        for step in steps:
            images = every.sample(run.limit_at(step))
            for decay in run.config.decays:
                model = run.average_at(decay, step).eval()
                for buffers, statistics in _list_statistics(run, step, decay, shown):
                    described = _describe(predict(model, images, statistics), images.labels)
                    rows.append({"step": step, "decay": decay, "buffers": buffers, **described})
        return pd.DataFrame(rows)


def _list_statistics(run: Run, step: int, decay: float, shown: Tensor) -> Iterator[tuple[str, Statistics]]:
    """List what the buffers of an average of the weights may hold."""
    averaged = run.average_at(decay, step)
    yield "left", bnlab.running_statistics(run.new_model())
    yield "copied", bnlab.running_statistics(run.model_at(step))
    yield "averaged", bnlab.running_statistics(averaged)
    yield "exact", measure_statistics(run, Exact(), averaged, shown)


def draw_augmented(run: Run) -> Tensor:
    """Draw training images as training sees them, the same for every network."""
    sample = run.dataset.train_augmented.sample(IMAGES).images
    data = run.config.data
    generator = torch.Generator().manual_seed(0)
    return augment(sample, generator, shift=data.shift, flip=data.flips)


def _describe(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    scores = score_logits(logits, labels)
    return {"images": len(labels), "loss": scores["loss"], "accuracy": scores["accuracy"]}
