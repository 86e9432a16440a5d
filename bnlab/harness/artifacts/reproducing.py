"""Weights of past steps of a finished training, made by training to them again from the nearest state."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from bnlab.files import set_aside
from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.announcing import build_announcer
from bnlab.harness.artifacts.averaging import build_averager
from bnlab.harness.artifacts.folders import describe_environment
from bnlab.harness.artifacts.freezing import build_freezer
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import describe_differences
from bnlab.harness.artifacts.training import Diverged, Progress, train
from bnlab.harness.errors import JobError

Keep = Callable[[int, dict[str, Tensor]], None]
"""Gets a step and the weights and buffers after it."""


def make_checkpoints(run: Run, missing: list[int]) -> None:
    """Make the missing checkpoints by training to them again, and leave all else as it is.

    Raises:
        JobError: training does not give what it gave before; checkpoints up to there are kept.
    """
    for start, steps in groupby(missing, key=lambda step: _find_nearest_state(run, step)):
        _make_from(run, start, list(steps))


def _make_from(run: Run, start: Path | None, steps: list[int]) -> None:
    """Make the checkpoints of these steps from a state, and note the environment in which they were made."""
    written: list[int] = []

    def write(step: int, tensors: dict[str, Tensor]) -> None:
        run.save_checkpoint(step, tensors)
        written.append(step)

    try:
        _train_again(run, start, steps, write)
    finally:
        if written:
            run.add_environment(checkpoints=written)


def past_weights(run: Run, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """The weights and buffers after these updates of a finished training; nothing is written.

    Args:
        steps: in order. Training is done again from the state before the first of them.

    Raises:
        JobError: training does not give what it gave before.
    """
    found: dict[int, dict[str, Tensor]] = {}
    with run.lock:
        _train_again(run, _find_nearest_state(run, steps[0]), list(steps), found.__setitem__)
    return found


def _find_nearest_state(run: Run, step: int) -> Path | None:
    """The file of the last state that is not after a step; damaged ones are set aside. None: training begins at 0."""
    _ = run.losses  # what is wrong with the log is no damage of a state
    last = run.folder / "state.safetensors"
    ends_there = step == run.steps and last.exists()
    for path in ([last] if ends_there else []) + run.states(step)[::-1]:
        try:
            states.load_state(run, path)
            return path
        except ValueError as error:
            set_aside(path, error, "training begins at an earlier step")
    return None


def _train_again(run: Run, start: Path | None, missing: list[int], keep: Keep) -> None:
    """Train from a state to the last of the missing checkpoints, with the threads of the first training."""
    threads, progress = torch.get_num_threads(), states.start_training(run)
    if start:
        states.restore_state(run, progress, start)
    count = f"{len(missing)} more checkpoint{'s' * (len(missing) > 1)}"
    print(f"{run.id}: training again from step {progress.step} to {missing[-1]} for {count}", file=sys.stderr)
    # One update more shows that the last weights are those of the first training.
    until = min(missing[-1] + 1, run.steps)
    keeper = _CheckpointKeeper(run, missing, keep)
    callbacks = [keeper.compare, build_freezer(run), build_averager(run), keeper.hold, build_announcer(run, until)]
    try:
        keeper.hold(progress)
        # Recording rounds the buffers' last bit as in the first training; it may be past the step of freezing.
        with warnings.catch_warnings(), states.record_moments(run, progress), contextlib.suppress(Diverged):
            warnings.simplefilter("ignore", UserWarning)
            train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=until)
        keeper.close(progress)
    finally:
        torch.set_num_threads(threads)


class _CheckpointKeeper:
    """Callbacks that keep checkpoints of a second training, each once the next loss is exactly that of the first."""

    def __init__(self, run: Run, missing: list[int], keep: Keep) -> None:
        self._kept: list[int] = []
        self._keep = keep
        self._run, self._missing, self._environments = run, missing, run.environments
        self._losses = run.losses
        self._held: tuple[int, dict[str, Tensor]] | None = None

    def hold(self, progress: Progress) -> None:
        """Hold the weights of a missing checkpoint until the next loss, and set the threads for that update."""
        if progress.step in self._missing:
            self._held = progress.step, {k: v.clone() for k, v in progress.measured.state_dict().items()}
        threads = self._environment(progress.step)["threads"]
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def compare(self, progress: Progress) -> None:
        """Keep what is held if the loss is that of the log."""
        before = self._losses[progress.step]
        if progress.loss != before:
            self._refuse(progress.step, f"the loss of step {progress.step} was {before}, now it is {progress.loss}")
        self._keep_held()

    def close(self, progress: Progress) -> None:
        """Keep the checkpoint after the last update of all, which no loss follows."""
        if progress.step == self._run.steps:
            self._keep_held()
        if self._kept != self._missing:
            self._refuse(progress.step, f"now it diverges after step {progress.step}")

    def _keep_held(self) -> None:
        if self._held:
            self._keep(*self._held)
            self._kept.append(self._held[0])
            self._held = None

    def _environment(self, step: int) -> dict[str, Any]:
        """The one in which the update after `step` was made first."""
        return [entry for entry in self._environments if entry["step"] <= step][-1]

    def _refuse(self, step: int, reason: str) -> NoReturn:
        recorded = {k: v for k, v in self._environment(step - 1).items() if k != "cores"}
        changed = describe_differences(recorded, describe_environment(self._run.device)) or [
            "no recorded version or setting has changed"
        ]
        raise JobError(
            f"cannot be trained again as it was: {reason} ({'; '.join(changed)}). The checkpoints that are "
            "there stay: measure at these (evaluate_at=), or train in another folder (results=)"
        )
