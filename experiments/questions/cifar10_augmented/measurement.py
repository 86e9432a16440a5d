"""Table `augmented_gaps`: the gaps to statistics of the images as training sees them."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
import torch

from bnlab.gaps.gap import GAP_COLUMNS, layer_gaps
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import flat_statistics, measure_at, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.gaps import Gaps
from bnlab.harness.schema import Table, common, real
from bnlab.harness.statistic_kinds import Exact

_AUGMENTED = Subject(Exact(), "train_augmented")

_ABOUT = """\
How far each estimator's statistics are from exact ones of the augmented training images, which is what running averages
estimate where training augments. Networks that are trained on the images as they are have no rows: see `gaps`. Each
image is augmented once, in the same way for all networks and steps."""


class AugmentedGaps(Gaps):
    """Table `augmented_gaps`."""

    name: ClassVar[str] = "augmented_gaps"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key=common("run step estimator momentum statistics_split layer"),
        others={
            **common("epoch depth channels"),
            "mean_gap": real("as in `gaps`, in standard deviations of the augmented images' exact statistics"),
            "var_gap": real("as in `gaps`"),
            "kl": real("as in `gaps`"),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose `evaluate_at` for all but rules at inference time, of a network whose training augments."""
        return super().scope(run, subjects) if run.batches.augments else {}

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure the gap to exact statistics of the augmented images: a row for each step, subject and layer."""
        layout = run.trace.layout
        estimates = flat_statistics(run, subjects, steps)
        measured = []
        for place, step in enumerate(steps):
            exact = layout.flatten(measure_at(run, step, _AUGMENTED))
            # Of all subjects at this step: [subjects, 2, channels].
            gaps = layer_gaps(layout, exact, estimates[:, place])
            measured.append(gaps)

        columns = torch.stack(measured, dim=1).numpy()  # each [steps, subjects, layers]
        values = dict(zip(GAP_COLUMNS, columns, strict=True))
        return tabulate(subjects, steps, {**values, "channels": layout.channels}, layer=layout.names)
