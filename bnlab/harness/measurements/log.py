"""Table `log`: loss, accuracy and learning rate of every update of a training."""

from __future__ import annotations

import pandas as pd

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.checkpoints import no_checkpoint
from bnlab.harness.measurements.sources import Source
from bnlab.harness.schedule import lr_factor

reads = no_checkpoint


def scope(run: Run, sources: list[Source]) -> dict[None, list[int]]:
    """No estimator; all updates there were."""
    return {None: run.read_log()["step"].to_list()}


def log(run: Run, sources: list[None], steps: list[int]) -> pd.DataFrame:
    """One row for each update."""
    optimizer, peak = run.config.optimizer, run.config.optimizer.peak_lr(run.config.batch_size)
    factors = [lr_factor(optimizer.schedule, step - 1, run.steps) for step in steps]
    frame = run.read_log().set_index("step").loc[steps].reset_index()
    return frame.assign(run=run.id, lr=[peak * factor for factor in factors])
