"""Loss, accuracy and gap of a network in TensorBoard, while it is trained."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import bnlab
from bnlab.borrow import keep_random_state
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import TrainingState


class LiveLog:
    """Loss and accuracy of each batch, and the gap of running averages, in `tensorboard/` of a run's folder.

    The gap is the root mean square, over the layers behind the first, of how far their means are from exact ones, in
    standard deviations.
    """

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: takes a second, and is an extra

        self._run = run
        # After a kill, updates behind the saved state are made again; what was written of them does not count.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)

    def write_updates(self, log: Iterable[tuple[int, float, float]]) -> None:
        """Bring these updates, as `TrainingState.log` has them, to disk."""
        for update, loss, accuracy in log:
            self._writer.add_scalar("loss of the batch", loss, update)
            self._writer.add_scalar("accuracy of the batch", accuracy, update)
        self._writer.flush()

    def write_gap(self, progress: TrainingState) -> None:
        """Measure the gap on the training split, and write it."""
        run = self._run
        images = run.dataset.train.sample(run.limit_at(progress.step)).images
        try:
            with keep_random_state(progress.model):
                # A copy, because training has changed its own layers, as for recording.
                model = run.new_model()
                model.load_state_dict(progress.measured.state_dict())
                exact = bnlab.population_statistics(model, images.split(256), memory=run.memory)
        except ValueError as error:  # the network is about to diverge: its exact statistics are not finite
            print(f"{run.id}: no gap at step {progress.step} in TensorBoard; {error}", file=sys.stderr)
            return

        gaps = bnlab.gap(exact, bnlab.running_statistics(model))["mean_gap"]
        behind = gaps[1:] if len(gaps) > 1 else gaps
        self._writer.add_scalar("gap of running means", float((behind**2).mean() ** 0.5), progress.step)
