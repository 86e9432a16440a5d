"""Frames that figures and claims are made of: rows of tables, comparisons, intervals over seeds. No drawing.

`networks` has rows with their networks' settings, which `selection` and `panels` choose and name; `comparisons` and
`averages` compute with them, where `coverage` finds that they are of the same things; `scores` puts these together.
"""

from bnlab.harness.reporting.frames.averages import MEASURES, NUMBERS, average, best_on_average, interval, other_seeds
from bnlab.harness.reporting.frames.comparisons import on_curves, over_best, paired
from bnlab.harness.reporting.frames.coverage import check_coverage
from bnlab.harness.reporting.frames.networks import RESULTS, rows
from bnlab.harness.reporting.frames.panels import name_panels, overlay, share_name
from bnlab.harness.reporting.frames.scores import Rows, score
from bnlab.harness.reporting.frames.selection import (
    DEFAULT_MOMENTUM,
    OtherThan,
    find_parameter,
    lowest,
    name_value,
    put_in_order,
    select,
)

__all__ = [
    "DEFAULT_MOMENTUM",
    "MEASURES",
    "NUMBERS",
    "RESULTS",
    "OtherThan",
    "Rows",
    "average",
    "best_on_average",
    "check_coverage",
    "find_parameter",
    "interval",
    "lowest",
    "name_panels",
    "name_value",
    "on_curves",
    "other_seeds",
    "over_best",
    "overlay",
    "paired",
    "put_in_order",
    "rows",
    "score",
    "select",
    "share_name",
]
