"""A measurement: a table of your own on trained networks."""

import pandas as pd

from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real


class LargestWeight(Measurement):
    """The magnitude of a network's largest weight."""

    name = "largest_weight"  # of the table
    table = Table(
        about="The largest weight of each network at each step.",
        key=common("run step"),  # no two rows agree in these columns
        others={"magnitude": real("of the largest weight")},
    )

    def measure(self, run, subjects, steps):
        """Return the rows of these steps."""
        rows = []
        for step in steps:
            weights = run.model_at(step).parameters()
            rows.append({"step": step, "magnitude": max(weight.abs().max().item() for weight in weights)})
        return pd.DataFrame(rows)
