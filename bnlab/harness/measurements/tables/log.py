"""Table `log`: loss, accuracy and learning rate of every update of a training."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd

from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import METRIC, Table, common, integer, real
from bnlab.harness.updates import lr_factor

_ABOUT = """\
A row for each update of each network."""


class Log(Measurement):
    """Table `log`."""

    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "log"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run"),
            "step": integer("number of the update, from 1"),
        },
        others={
            "loss": real("loss of the mini-batch before the update; of classification in nats, with label smoothing"),
            "accuracy": real("share of the mini-batch that was predicted right before the update", is_optional=True),
            "metric": METRIC,
            "lr": real("learning rate of the update, as it is given to the optimizer, whose groups may have others"),
        },
    )

    def covers(self, norm: Norm) -> bool:
        return True

    def scope(self, run: Run, subjects: list[Subject]) -> dict[None, list[int]]:
        """Choose all updates that there were, without an estimator."""
        return {None: run.read_log()["step"].to_list()}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        return []

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Measure loss, metric and learning rate: a row for each update."""
        optimizer = run.config.optimizer
        peak = optimizer.peak_lr(run.config.batch_size)
        # The schedule counts the updates before this one.
        rates = [peak * lr_factor(optimizer.schedule, step - 1, run.steps) for step in steps]
        log = run.read_log().set_index("step")
        rows = log.loc[steps].reset_index().assign(lr=rates)
        # A log has `accuracy` or the `metric` of another task.
        return rows.reindex(columns=["step", *self.table.others])
