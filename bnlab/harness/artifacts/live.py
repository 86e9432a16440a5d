"""Loss, accuracy and gap of a network in TensorBoard, while it is trained."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import bnlab
from bnlab.borrow import keep_random_state
from bnlab.harness.artifacts.freezing import measure_exact
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from bnlab.harness.artifacts.runs import Run


def check(log: str) -> None:
    """Raise UserError for a way of logging whose package is missing."""
    if log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("log=tensorboard: needs a package; pip install tensorboard")


class LiveLog:
    """The files in `tensorboard/` of a run's folder: loss and accuracy of each batch, and the gap; none with log=none.

    At the steps of `evaluate_at` it adds the gap of the network's running averages: the root mean square, over the
    layers behind the first, of how far their means are from exact ones, in standard deviations. Training itself stays
    as it is.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        self._written = len(progress.log)  # the first rows of the log, which are in the files
        self._writer: SummaryWriter | None = None
        if run.config.log == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # here: takes a second, and is an extra

            # After a kill, updates behind the saved state are made again; what was written of them does not count.
            self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=progress.step + 1)

    def write(self, progress: Progress) -> None:
        """Write, as a callback of training, the updates that have been read, and the gap where it is measured."""
        if self._writer is None:
            return
        is_measured = progress.step in self._run.wanted
        if is_measured:
            progress.read_log()
        self._write_updates(self._writer)
        if is_measured and self._run.has_trace:
            self._write_gap(self._writer)

    def flush(self) -> None:
        """Bring all updates that have been read to disk."""
        if self._writer is not None:
            self._write_updates(self._writer)
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()

    def _write_updates(self, writer: SummaryWriter) -> None:
        log = self._progress.log
        for update, loss, accuracy in log[self._written :]:
            writer.add_scalar("loss of the batch", loss, update)
            writer.add_scalar("accuracy of the batch", accuracy, update)
        self._written = len(log)

    def _write_gap(self, writer: SummaryWriter) -> None:
        step = self._progress.step
        try:
            gap = measure_gap(self._run, self._progress)
        except ValueError as error:  # the network is about to diverge: its exact statistics are not finite
            print(f"{self._run.id}: no gap at step {step} in TensorBoard; {error}", file=sys.stderr)
        else:
            writer.add_scalar("gap of running means", gap, step)


def measure_gap(run: Run, progress: Progress) -> float:
    """Measure the gap of the running averages on the training split, see `LiveLog`."""
    images = run.dataset.train.sample(run.limit_at(progress.step)).images
    with keep_random_state(progress.model):
        # A copy, because training has changed its own layers, as for recording.
        model = run.new_model()
        model.load_state_dict(progress.measured.state_dict())
        exact = measure_exact(run, model, images)

    running = bnlab.running_statistics(model)
    gaps = bnlab.gap(exact, running)["mean_gap"]
    behind = gaps[1:] if len(gaps) > 1 else gaps
    return float((behind**2).mean() ** 0.5)
