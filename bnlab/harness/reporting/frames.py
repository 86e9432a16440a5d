"""Frames that figures and claims are made of: rows of tables, comparisons, intervals over seeds. No drawing.

`rows` selects rows with their networks' settings, `paired` compares them with a reference, `interval` averages over
seeds; `score` does one after the other. Every function raises UserError where a column is missing. Three more mistakes
are refused: networks that an average would mix (`rows`), several rows of one seed (`interval`), and pairs of which one
side has other seeds (`paired`). Gaps over the layers of a network have their definition in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.layers import BEHIND, FIRST, find_largest_gap, gap_over_layers
from bnlab.harness.reporting.means import (
    COMPARED,
    average,
    best_on_average,
    interval,
    locate_minimum,
    other_seeds,
    require_columns,
    require_one_row,
)
from bnlab.harness.reporting.selection import (
    OtherThan,
    Tables,
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
    "Score",
    "Tables",
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

Score = Callable[[Tables], pd.DataFrame]
"""A function of the tables that returns the frame of `interval`."""
RATIO_OVER_LAYERS: dict[str, Any] = {"depth": OtherThan(1), "average": "layer", "geometric": True}
"""In `score`: ratios that were taken layer by layer become their geometric mean over the layers behind the first."""

# Columns that say where a value was measured: the two rows of a pair agree in them.
_PLACES = ("step", "panel", "layer", "channel", "split", "shift")
# Columns that differ together, by the column along which values are compared.
_DIFFERING = {
    "estimator": ("estimator", "momentum"),
    "panel": ("panel", "step"),
    "depth": ("depth", "layer"),
    "batch_size": ("batch_size", "step"),
}


def paired(
    frame: pd.DataFrame,
    value: str,
    against: Any = "exact",
    *,
    along: str = "estimator",
    matching: Sequence[str] = ("run",),
    ratio: bool = False,
) -> pd.DataFrame:
    """Compare a column with its value in the reference's row of the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, channels, splits or panels, these agree as well, and where others
            than estimators are compared, estimator and momentum too.
        value: the column that is replaced by its difference to the reference; NaN where one of the two is.
        against: the estimator that is the reference, on the training split if it is there on several; or another value
            of `along`. Rows without a reference at their place are left out.
        along: the column of which `against` is a value: estimators; or a `size` of batches, a layer by its `depth`, a
            share of the training by its `panel`; a setting of the training, with `matching`.
        matching: columns in which two rows agree that are compared, always: with "momentum" each momentum of an
            estimator is compared with the same one of the reference. Networks that were trained with other settings
            agree in ("seed",), or in ("seed", "batch_size") where they also differ in what the comparison is not about.
        ratio: divide by the reference instead of subtracting it.

    Raises:
        UserError: the reference has several rows for a network and step, or other seeds than what is compared with it;
            values of a column are compared in which rows should agree.

    Returns:
        All rows but the reference's, with a column that says that they were compared: differences of shares are none.
    """
    require_columns(frame, [value, along, *matching])
    if along in matching:
        raise UserError(f"values of {along} are compared, so that they cannot agree; leave {along} out of matching")

    is_reference = frame[along] == against
    if along == "estimator" and "statistics_split" in frame:
        is_trained_on = is_reference & (frame["statistics_split"] == "train")
        if is_trained_on.any():
            is_reference = is_trained_on
    known = frame[is_reference]
    others = frame[~is_reference]

    compared = _DIFFERING.get(along, (along,))
    keys = [*matching]
    for column in (*_PLACES, "estimator", "momentum"):
        if column in frame and column not in (*keys, *compared):
            keys.append(column)
    require_one_row(known, keys)

    seeds_of_reference = {*known["seed"]}
    seeds_of_others = {*others["seed"]}
    alone = seeds_of_reference ^ seeds_of_others
    if alone and seeds_of_reference and seeds_of_others:
        raise UserError(f"seed {min(alone)} has rows of {along} {against} only, or none; pairs need both: sweep it")

    expected = f"{value} of the reference"
    references = known[[*keys, value]].rename(columns={value: expected})
    pairs = others.merge(references, on=keys)
    reference = pairs.pop(expected)
    if ratio:
        pairs[value] = pairs[value] / reference
    else:
        pairs[value] = pairs[value] - reference
    return pairs.assign(**{COMPARED: True})


def over_best(frame: pd.DataFrame, value: str, estimator: str = "ema") -> pd.DataFrame:
    """Divide a column by the smallest value that an estimator has with any momentum at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that becomes a ratio, such as a gap; the best momentum in hindsight has 1.
        estimator: the one of which the best momentum is the reference; rows for which it has none are left out.
    """
    places = ["run", *(column for column in _PLACES if column in frame)]
    candidates = select(frame, estimator=estimator)
    best = lowest(candidates, value, places).assign(estimator="best")
    return paired(pd.concat([frame, best]), value, against="best", ratio=True)


def score(
    source: str | Score,
    value: str,
    by: Sequence[str],
    *,
    at: float | Sequence[float] = (),
    against: Any = None,
    along: str = "estimator",
    matching: Sequence[str] = ("run",),
    ratio: bool = False,
    average: str | Sequence[str] | None = None,
    scale: float = 1,
    geometric: bool = False,
    **wanted: Any,
) -> Score:
    """Declare a score of one value: `rows`, `paired` if there is a reference, and `interval`, one after the other.

    Args:
        source: the name of a table, of which `rows` are taken, or a function of the tables that gives other rows.
        value, by, average, scale, geometric: see `interval`.
        at: shares of the training, of a table, see `rows`; its networks may differ in the settings among `by`, or else
            in their batch size.
        against, along, matching, ratio: the reference, see `paired`; None: nothing is compared.
        wanted: see `select`. With a reference both sides of a comparison have these values, but in the columns in which
            they differ: estimator and momentum, where estimators are compared. There the reference is `against`, and
            `wanted` is what is compared with it.
    """
    differing = () if against is None else _DIFFERING.get(along, (along,))
    of_one = {column: wanted[column] for column in wanted if column in differing}
    of_both = {column: wanted[column] for column in wanted if column not in differing}

    def compute(tables: Tables) -> pd.DataFrame:
        if isinstance(source, str):
            table = tables.get(source, pd.DataFrame())
            settings = [column for column in by if column != "panel" and column not in table]
            if not settings:
                settings = ["batch_size"]
            frame = rows(tables, source, at, settings, **of_both)
        else:
            frame = select(source(tables), **of_both)
        if against is not None:
            pairs = paired(frame, value, against, along=along, matching=matching, ratio=ratio)
            frame = select(pairs, **of_one)
        return interval(frame, value, by, average=average, scale=scale, geometric=geometric)

    return compute
