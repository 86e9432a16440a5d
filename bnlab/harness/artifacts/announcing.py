"""What is shown of a training while it runs."""

from __future__ import annotations

from tqdm import tqdm

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Callback, Progress


def build_announcer(run: Run, until: int) -> Callback:
    """A callback that shows a progress bar on a terminal, and prints a line for each epoch elsewhere."""
    per_epoch = run.batches.per_epoch
    epochs = -(-run.steps // per_epoch)
    bar = tqdm(total=until, desc=run.id, unit="step", disable=None, leave=False)

    def announce(progress: Progress) -> None:
        bar.update(progress.step - bar.n)
        done = progress.step == until
        if bar.disable and (progress.step % per_epoch == 0 or done):
            epoch = -(-progress.step // per_epoch)
            print(f"{run.id}  epoch {epoch}/{epochs}  step {progress.step}  loss {progress.loss:.3f}", flush=True)
        if done:
            bar.close()

    return announce
