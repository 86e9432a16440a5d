"""Training as one watches it: `log=tensorboard`, or a function of the user's own as `log=mine.make_logger`.

Such a function is called once for each network, with its name ("hash/seed_0"), its settings as columns of `runs` and
its folder. It returns what is called with a step and the numbers of that step, a dictionary, in the order of the steps.
A method `close`, if there is one, is called when training ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnlab
from bnlab.harness.artifacts.job_settings import flatten_settings
from bnlab.harness.artifacts.objectives import compute_metric
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import TrainingState
from bnlab.harness.errors import UserError
from bnlab.harness.layer_average import average_one
from bnlab.harness.own import call_own
from bnlab.harness.updates import lr_factor
from bnlab.model.borrow import keep_random_state
from bnlab.statistics.network import Statistics, using

_LOG = logging.getLogger(__name__)
_IMAGES_AT_ONCE = 256  # for exact statistics and predictions, which do not depend on it
_FLUSH_SECONDS = 5  # between two times that TensorBoard's file is written

Log = Callable[[int, Mapping[str, float]], object]
"""Takes the numbers of a step, by name."""


def make_log(run: Run) -> Log:
    """Make the log that the settings of a network ask for."""
    name = run.config.log
    settings = {"seed": run.config.seed, **flatten_settings(asdict(run.config))}
    # What is off is left out.
    given = {key: value for key, value in settings.items() if value is not None}
    if name == "tensorboard":
        return TensorBoard(run.id, given, run.folder)
    log = call_own("log", name, run.id, given, run.folder)
    if not callable(log):
        raise UserError(
            f"log={name}: has to return a function of a step and its numbers, and returns a {type(log).__name__}"
        )
    return log  # type: ignore[no-any-return]


class LiveLog:
    """What a training shows while it goes on.

    Each update has the learning rate, and loss and metric of its batch. Each step of `evaluate_at` has loss and
    metric of the validation images under running averages; and, for a norm with averages, the same under exact
    statistics, and the gap between the two: the root mean square over the deeper layers of how far the running means
    are from exact ones, in standard deviations.
    """

    def __init__(self, run: Run, step: int) -> None:
        self._run = run
        self._written = step
        self._log = make_log(run)

    def write_updates(self, state: TrainingState) -> None:
        """Log the updates that have been read."""
        optimizer = self._run.config.optimizer
        peak = optimizer.peak_lr(self._run.config.batch_size)
        for step, loss, metric in state.log[self._written :]:
            # The schedule counts the updates before this one.
            rate = peak * lr_factor(optimizer.schedule, step - 1, self._run.steps)
            self._log(
                step,
                {"learning rate": rate, "loss of the batch": loss, f"{state.objective.name} of the batch": metric},
            )
        self._written = len(state.log)

    def measure(self, state: TrainingState) -> None:
        """Measure the network as it is now, and log that."""
        run = self._run
        self.write_updates(state)  # steps come in their order, which some logs insist on
        # The log is no part of a network's name, so that it must not change what training draws.
        with keep_random_state(state.model):
            # A copy, because training has changed the model's layers, as for recording.
            model = run.new_model()
            model.load_state_dict(state.evaluated_model.state_dict())
            values = _validate(model, run, "running averages")
            if run.has_trace:
                values |= self._compare_with_exact(model, state.step)
        self._log(state.step, values)

    def _compare_with_exact(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure the gap to exact statistics of the training split, and validation under these."""
        run = self._run
        images = run.dataset.train.sample(run.limit_at(step)).images
        batches = images.split(_IMAGES_AT_ONCE)
        try:
            exact = bnlab.population_statistics(model, batches)
        except ValueError as error:  # the network is about to diverge: its exact statistics are not finite
            _LOG.warning(f"{run.id}: no gap at step {step} in the log; {error}")
            return {}

        gaps = bnlab.gap(exact, bnlab.running_statistics(model))["mean_gap"]
        return {"gap of running means": average_one(gaps)} | _validate(model, run, "exact statistics", exact)

    def close(self) -> None:
        """Close the log, if it can be: the training has ended."""
        close = getattr(self._log, "close", None)
        if close is not None:
            close()


@contextmanager
def closing_log(live: LiveLog | None) -> Iterator[None]:
    """Close the log where the training ends or fails in the block; one that is interrupted goes on in the same log."""
    try:
        yield
    except Exception:
        if live is not None:
            live.close()
        raise
    if live is not None:
        live.close()


def _validate(model: nn.Module, run: Run, words: str, statistics: Statistics | None = None) -> dict[str, float]:
    """Compute loss and metric of the validation images, under running averages unless statistics are given."""
    split = run.dataset.val
    model.eval()
    chosen_statistics = nullcontext() if statistics is None else using(model, statistics)
    with torch.no_grad(), chosen_statistics:
        # Copies, as a forward may write into its input.
        output = torch.cat([model(images.clone()) for images in split.images.split(_IMAGES_AT_ONCE)])
        batch = (split.images, split.labels)
        loss = run.objective.loss(output, batch)
        metric = compute_metric(run.objective, output, batch).mean()
    return {
        f"validation loss, {words}": loss.item(),
        f"validation {run.objective.name}, {words}": metric.item(),
    }


class TensorBoard:
    """Writes into the network's folder, with its settings in the tab HPARAMS."""

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        self._settings = settings
        self._folder = folder / "tensorboard"
        self._writer: Any = None
        self._last: dict[str, float] = {}

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # here: takes a second, and is an extra

            # After a kill, updates behind the saved state are made again; what was written of them does not count.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=_FLUSH_SECONDS)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
            self._last[f"last {name}"] = value

    def close(self) -> None:
        if self._writer is None:
            return
        # TensorBoard refuses lists and tuples.
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in self._settings.items()}
        # Without `run_name` torch writes into a new folder, which TensorBoard shows as a run of its own.
        self._writer.add_hparams(plain, self._last, run_name=".")
        self._writer.close()
