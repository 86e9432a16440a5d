"""Training as one watches it: `log=tensorboard` and `log=csv` of a sweep, which show the same numbers.

results/runs/<hash>/seed_<k>/tensorboard/      for TensorBoard, with the settings in its tab HPARAMS
results/runs/<hash>/seed_<k>/csv/updates.csv   each update: the learning rate; loss and metric of its batch
                                measured.csv   each step that is measured: gap, and validation under both statistics
                                settings.csv   the settings of the network, one a line
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import nn

import bnlab
from bnlab.common.files import write_text
from bnlab.harness.artifacts.objectives import compute_metric
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import TrainingState
from bnlab.harness.layer_average import average_one
from bnlab.harness.progress import say_problem
from bnlab.harness.trained_with import flatten_settings
from bnlab.harness.updates import lr_factor
from bnlab.model.borrow import keep_random_state
from bnlab.statistics.network import Statistics, using

_IMAGES_AT_ONCE = 256  # for exact statistics and predictions, which do not depend on it

LoggedValues = Mapping[str, float]
"""The numbers that were measured at a step, by name."""


class _Log(Protocol):
    """Where the numbers go."""

    def write_updates(self, updates: pd.DataFrame) -> None:
        """Write all updates so far, with step, learning rate, loss and metric."""

    def write_values(self, step: int, values: LoggedValues) -> None:
        """Write what was measured at a step."""

    def close(self, values: LoggedValues) -> None:
        """Write the settings, with what was measured last."""


class LiveLog:
    """What a training shows while it goes on.

    Each update has the learning rate, and loss and metric of its batch. Each step of `evaluate_at` has loss and
    metric of the validation images under running averages; and, for a norm with averages, the same under exact
    statistics, and the gap between the two: the root mean square over the deeper layers of how far the running means
    are from exact ones, in standard deviations.
    """

    def __init__(self, run: Run, step: int) -> None:
        self._run = run
        self._log: _Log = _TensorBoard(run, step) if run.config.log == "tensorboard" else _Csv(run, step)
        self._values: LoggedValues = {}  # of the last step that was measured

    def write_updates(self, state: TrainingState) -> None:
        """Bring the updates that have been read to disk."""
        updates = pd.DataFrame(state.log, columns=["step", "loss of the batch", f"{state.task.name} of the batch"])
        optimizer = self._run.config.optimizer
        peak = optimizer.peak_lr(self._run.config.batch_size)
        # The schedule counts the updates before this one.
        factors = [lr_factor(optimizer.schedule, step - 1, self._run.steps) for step in updates["step"]]
        updates.insert(1, "learning rate", [peak * factor for factor in factors])
        self._log.write_updates(updates)

    def measure(self, state: TrainingState) -> None:
        """Measure the network as it is now, and write that."""
        run = self._run
        # The log is no part of a network's name, so that it must not change what training draws.
        with keep_random_state(state.model):
            # A copy, because training has changed the model's layers, as for recording.
            model = run.new_model()
            model.load_state_dict(state.evaluated_model.state_dict())
            values = _validate(model, run, "running averages")
            if run.has_trace:
                values |= self._compare_with_exact(model, state.step)
        self._values = values
        self._log.write_values(state.step, values)

    def _compare_with_exact(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure the gap to exact statistics of the training split, and validation under these."""
        run = self._run
        images = run.dataset.train.sample(run.limit_at(step)).images
        batches = images.split(_IMAGES_AT_ONCE)
        try:
            exact = bnlab.population_statistics(model, batches)
        except ValueError as error:  # the network is about to diverge: its exact statistics are not finite
            say_problem(f"{run.id}: no gap at step {step} in the log; {error}")
            return {}

        gaps = bnlab.gap(exact, bnlab.running_statistics(model))["mean_gap"]
        return {"gap of running means": average_one(gaps)} | _validate(model, run, "exact statistics", exact)

    def close(self) -> None:
        """Write the settings; the training has ended."""
        self._log.close(self._values)


def _validate(model: nn.Module, run: Run, words: str, statistics: Statistics | None = None) -> dict[str, float]:
    """Compute loss and metric of the validation images, under running averages unless statistics are given."""
    split = run.dataset.val
    model.eval()
    chosen_statistics = nullcontext() if statistics is None else using(model, statistics)
    with torch.no_grad(), chosen_statistics:
        # Copies, as a forward may write into its input.
        output = torch.cat([model(images.clone()) for images in split.images.split(_IMAGES_AT_ONCE)])
        batch = (split.images, split.labels)
        loss = run.task.loss(output, batch)
        metric = compute_metric(run.task, output, batch).mean()
    return {
        f"validation loss, {words}": loss.item(),
        f"validation {run.task.name}, {words}": metric.item(),
    }


class _TensorBoard:
    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: takes a second, and is an extra

        self._run = run
        self._written = step
        # After a kill, updates behind the saved state are made again; what was written of them does not count.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)

    def write_updates(self, updates: pd.DataFrame) -> None:
        for update in updates[updates["step"] > self._written].to_dict("records"):
            step = update.pop("step")
            for name, value in update.items():
                self._writer.add_scalar(str(name), value, step)
            self._written = step
        self._writer.flush()

    def write_values(self, step: int, values: LoggedValues) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, values: LoggedValues) -> None:
        # Under other names than the curves, to which they would add a second point at the last step. Without
        # `run_name` torch writes into a new folder, which TensorBoard shows as a run of its own.
        last = {f"last {name}": value for name, value in values.items()}
        self._writer.add_hparams(_list_settings(self._run), last, run_name=".", global_step=self._written)
        self._writer.close()


class _Csv:
    """Files that are written again as a whole, so that a kill leaves neither half a line nor a step twice."""

    def __init__(self, run: Run, step: int) -> None:
        self._run = run
        self._folder = run.folder / "csv"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "measured.csv"
        before = pd.read_csv(path) if path.exists() else pd.DataFrame({"step": []})
        # Later steps were measured after the saved state, and are measured again.
        self._rows = before[before["step"] <= step].to_dict("records")

    def write_updates(self, updates: pd.DataFrame) -> None:
        self._write("updates.csv", updates)

    def write_values(self, step: int, values: LoggedValues) -> None:
        row: dict[Any, Any] = {"step": step, **values}
        self._rows.append(row)
        self._write("measured.csv", pd.DataFrame(self._rows))

    def close(self, values: LoggedValues) -> None:
        settings = _list_settings(self._run)
        self._write("settings.csv", pd.DataFrame({"setting": [*settings], "value": [*settings.values()]}))

    def _write(self, name: str, frame: pd.DataFrame) -> None:
        write_text(Path(self._folder, name), frame.to_csv(index=False, lineterminator="\n"))


def _list_settings(run: Run) -> dict[str, Any]:
    """List the settings of a network as columns of `runs`, with its seed; those that are off are left out."""
    settings = {"seed": run.config.seed, **flatten_settings(asdict(run.config))}
    written: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list | tuple):
            written[key] = str(value)  # TensorBoard refuses lists and tuples
        elif value is not None:
            written[key] = value
    return written
