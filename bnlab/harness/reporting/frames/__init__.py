"""Frames that figures and claims are made of: rows of tables, comparisons, intervals over seeds. No drawing.

`selection` has rows with their networks' settings, chosen, ordered and named; `comparisons` compares their values with
those of a reference; `means` averages over seeds; `scores` does one after the other. `layers` averages gaps over the
layers of a network; `minimum` finds the best of a sweep.

Every function raises UserError where a column is missing. Three more mistakes are refused: networks that an average
would mix (`rows`), several rows of one seed (`interval`), and pairs of which one side has other seeds (`paired`).
"""

from bnlab.harness.reporting.frames.comparisons import over_best, paired
from bnlab.harness.reporting.frames.layers import BEHIND, FIRST, RATIO_OVER_LAYERS, find_largest_gap, gap_over_layers
from bnlab.harness.reporting.frames.means import average, best_on_average, interval, other_seeds
from bnlab.harness.reporting.frames.minimum import locate_minimum
from bnlab.harness.reporting.frames.scores import score
from bnlab.harness.reporting.frames.selection import (
    OtherThan,
    find_parameter,
    lowest,
    name_panels,
    put_in_order,
    rows,
    select,
    share_name,
)

__all__ = [
    "BEHIND",
    "FIRST",
    "RATIO_OVER_LAYERS",
    "OtherThan",
    "average",
    "best_on_average",
    "find_largest_gap",
    "find_parameter",
    "gap_over_layers",
    "interval",
    "locate_minimum",
    "lowest",
    "name_panels",
    "other_seeds",
    "over_best",
    "paired",
    "put_in_order",
    "rows",
    "score",
    "select",
    "share_name",
]
