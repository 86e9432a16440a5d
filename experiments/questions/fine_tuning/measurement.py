"""Table `fine_tuning`: how a network predicts that is fine-tuned on few images of other fonts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

import bnlab
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.model.layers import batch_norm_layers
from bnlab.statistics.network import Statistics

MODES = ("train", "eval", "eval_exact")
BATCHES = (2, 4, 8, 32)
RATES = (0.001, 0.01)
STEPS = (20, 100, 500)
_FEW = 256  # images to learn from, at most
_TESTED = 1000  # images that are predicted, of each kind, at most
_MOMENTUM = 0.9

_ABOUT = f"""\
How a network predicts that was trained on rendered characters in some fonts, and goes on with few images in other
fonts at the end of training: at most {_FEW} of the test images in these, of which up to {_TESTED:,} others are
predicted. SGD with momentum {_MOMENTUM} and a constant rate, without weight decay. The images of a batch are drawn
for each network, the same for all modes and rates. Networks that were trained on all fonts have no rows. Where a
fine-tuning diverges, rows end."""


class FineTuning(Measurement):
    """Table `fine_tuning`."""

    at_last_step: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "fine_tuning"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "mode": text(
                "batch norms while it is tuned: train, as in training; eval, with the statistics that training ended "
                "with; eval_exact, with exact statistics of the few new images, taken before"
            ),
            "tuning_batch": integer("images in a batch"),
            "tuning_rate": real("learning rate"),
            "tuning_steps": integer("updates"),
            "statistics": text(
                "what it is evaluated under: held, what the network holds then; recalibrated, exact statistics of the "
                "few new images, taken again after the last update"
            ),
        },
        others={
            **common("epoch"),
            "new_accuracy": real("share of images in the new fonts that are predicted right"),
            "gained": real("the same, minus that before the first update, under the running averages of training"),
            "old_accuracy": real("share of test images in the fonts of training that are predicted right"),
            "forgotten": real("the same before the first update, minus that"),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[None, list[int]]:
        """Choose the final step, without an estimator, of networks that have not seen all fonts."""
        return {None: run.measured_steps[-1:]} if find_new_fonts(run) else {}

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Fine-tune copies of the network: a row for each mode, batch size, rate, number of updates and statistics."""
        (step,) = steps
        images = TuningImages.of(run)
        start = run.model_at(step)
        before = _score(start, bnlab.running_statistics(start), images)

        rows: list[dict[str, Any]] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed_by(f"{run.id} tuning").initial_seed())  # of dropout and the like
            for mode, batch, rate in product(MODES, BATCHES, RATES):
                tuning = {"step": step, "mode": mode, "tuning_batch": batch, "tuning_rate": rate}
                # Tuning changes the network in place, so that each one begins with a fresh copy.
                model = run.model_at(step)
                # The same batches for all modes and rates: they differ in nothing but what is compared.
                generator = seed_by(f"{run.id} {step} tuning {batch}")
                # Between two parts of the tuning the network is measured, which leaves its modes and buffers
                # as they were.
                for updates in tune(model, images.few, mode, batch, rate, STEPS, generator):
                    for measured in _measure_tuned(model, images, before):
                        rows.append({**tuning, "tuning_steps": updates, **measured})
        return pd.DataFrame(rows, columns=[*self.table.columns]).drop(columns=["run", "epoch"])  # rows may be none


def find_new_fonts(run: Run) -> str:
    """Find the shift of the test images to fonts that the network has not seen; empty if it has seen all there are."""
    shifts = run.config.data.list_shifts()
    # All fonts are a shift only for a network that was trained on some of them.
    if "fonts:all" not in shifts:
        return ""
    (unseen,) = [shift for shift in shifts if shift != "fonts:all"]
    return unseen


class TuningImages(NamedTuple):
    """The few images to learn from, in new fonts, and those that are predicted, in new and in old fonts."""

    few: Split
    new: Split
    old: Split

    @classmethod
    def of(cls, run: Run) -> TuningImages:
        """Divide the test images in new fonts, and take some of those in the fonts of training."""
        every = run.images_of("test", find_new_fonts(run))
        # At most half, so that images are left to predict.
        few = min(_FEW, len(every.labels) // 2)
        return cls(
            _take(every, slice(few)),
            _take(every, slice(few, few + _TESTED)),
            _take(run.images_of("test", "none"), slice(_TESTED)),
        )


def _take(split: Split, part: slice) -> Split:
    return Split(split.images[part], split.labels[part])


def tune(
    model: nn.Module, few: Split, mode: str, batch: int, rate: float, steps: Sequence[int], generator: torch.Generator
) -> Iterator[int]:
    """Fine-tune a network in place, from train mode, and stop after so many updates each; at the end if it diverges."""
    if mode == "eval_exact":
        bnlab.population_statistics(model, [few.images]).write_to(model)
    if mode != "train":
        # All other layers are in train mode in any case, so that only batch norm differs.
        for layer in batch_norm_layers(model, caller="fine_tuning").values():
            layer.eval()

    optimizer = torch.optim.SGD(model.parameters(), rate, _MOMENTUM)
    for step in range(1, steps[-1] + 1):
        # Drawn on the CPU, so that the images are the same on any device.
        chosen = torch.randperm(len(few.labels), generator=generator)[:batch].to(few.labels.device)
        logits = model(few.images[chosen])
        loss = F.cross_entropy(logits, few.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if step in steps:
            if not all(values.isfinite().all() for values in model.state_dict().values()):
                return
            yield step


def _measure_tuned(model: nn.Module, images: TuningImages, before: tuple[float, float]) -> Iterator[dict[str, Any]]:
    """Measure a tuned network, under the statistics that it holds and under new ones."""
    new_before, old_before = before
    statistics = {
        "held": bnlab.running_statistics(model),
        "recalibrated": bnlab.population_statistics(model, [images.few.images]),
    }
    for name, values in statistics.items():
        new, old = _score(model, values, images)
        yield {
            "statistics": name,
            "new_accuracy": new,
            "gained": new - new_before,
            "old_accuracy": old,
            "forgotten": old_before - old,
        }


def _score(model: nn.Module, statistics: Statistics, images: TuningImages) -> tuple[float, float]:
    """Measure the accuracies on images in new fonts and in old ones, under these statistics."""
    return measure_accuracy(model, images.new, statistics), measure_accuracy(model, images.old, statistics)
