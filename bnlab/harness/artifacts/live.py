"""Loss, accuracy and gap of a network in TensorBoard, while it is trained."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import bnlab
from bnlab.borrow import keep_random_state
from bnlab.harness.artifacts.freezing import measure_exact
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.training import Callback
from bnlab.harness.errors import UserError

if TYPE_CHECKING:
    from bnlab.harness.artifacts.runs import Run


def check(log: str) -> None:
    """Raise UserError for a way of logging whose package is missing."""
    if log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("log=tensorboard: needs a package; pip install tensorboard")


def build_live_log(run: Run, progress: Progress) -> Callback:
    """Build a callback that writes loss and accuracy of each batch to `tensorboard/` in the run's folder.

    At the steps of `evaluate_at` it adds the gap of the network's running averages: the root mean square, over the
    layers behind the first, of how far their means are from exact ones, in standard deviations. Training itself stays
    as it is.
    """
    if run.config.log == "none":
        return lambda progress: None
    from torch.utils.tensorboard import SummaryWriter  # here: takes a second, and is an extra

    # After a kill what was written of the steps that are done again does not count.
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=progress.step + 1)
    written = len(progress.log)

    def write(progress: Progress) -> None:
        nonlocal written
        step = progress.step
        if step in (*run.wanted, run.steps):
            progress.read_log()
        for update, loss, accuracy in progress.log[written:]:
            writer.add_scalar("loss of the batch", loss, update)
            writer.add_scalar("accuracy of the batch", accuracy, update)
        written = len(progress.log)

        if run.has_trace and step in run.wanted:
            gap = measure_gap(run, progress)
            writer.add_scalar("gap of running means", gap, step)
        if step == run.steps:
            writer.close()

    return write


def measure_gap(run: Run, progress: Progress) -> float:
    """Measure the gap of the running averages on the training split, see `build_live_log`."""
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
