"""Values compared with those of a reference at the same place: pairs of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.selection import lowest, require_columns, require_one_row, select

# Columns that say where a value was measured: the two rows of a pair agree in them.
_PLACES = ("step", "panel", "layer", "channel", "split", "shift")
# Columns that differ together, by the column along which values are compared.
_DIFFERING = {
    "estimator": ("estimator", "momentum"),
    "panel": ("panel", "step"),
    "depth": ("depth", "layer"),
    "batch_size": ("batch_size", "step"),
}


def list_differing(along: str) -> tuple[str, ...]:
    """List the columns in which the two rows of a pair differ, whose values are compared along a column.

    >>> list_differing("depth"), list_differing("norm")
    (('depth', 'layer'), ('norm',))
    """
    return _DIFFERING.get(along, (along,))


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
        All rows but the reference's.
    """
    require_columns(frame, [value, along, *matching])
    if along in matching:
        raise UserError(f"values of {along} are compared, so that they cannot agree; leave {along} out of matching")

    is_reference = _find_reference(frame, along, against)
    known = frame[is_reference]
    others = frame[~is_reference]
    keys = _list_matched(frame, along, matching)
    require_one_row(known, keys)
    _require_same_seeds(known, others, f"{along} {against}")

    expected = f"{value} of the reference"
    references = known[[*keys, value]].rename(columns={value: expected})
    pairs = others.merge(references, on=keys)
    reference = pairs.pop(expected)
    if ratio:
        pairs[value] = pairs[value] / reference
    else:
        pairs[value] = pairs[value] - reference
    return pairs


def _find_reference(frame: pd.DataFrame, along: str, against: Any) -> pd.Series:
    """Find the reference's rows; those of an estimator on the training split, if it is there."""
    is_reference = frame[along] == against
    if along == "estimator" and "statistics_split" in frame:
        is_trained_on = is_reference & (frame["statistics_split"] == "train")
        if is_trained_on.any():
            return is_trained_on
    return is_reference


def _list_matched(frame: pd.DataFrame, along: str, matching: Sequence[str]) -> list[str]:
    """List the columns in which the rows of a pair agree: what is asked for, and places that do not differ."""
    matched = [*matching]
    differing = list_differing(along)
    for column in (*_PLACES, "estimator", "momentum"):
        is_listed = column in matched or column in differing
        if column in frame and not is_listed:
            matched.append(column)
    return matched


def _require_same_seeds(known: pd.DataFrame, others: pd.DataFrame, reference: str) -> None:
    """Refuse seeds of which there is only one side."""
    if known.empty or others.empty:
        return

    reference_seeds = {*known["seed"]}
    other_seeds = {*others["seed"]}
    alone = reference_seeds ^ other_seeds
    if alone:
        raise UserError(f"seed {min(alone)} has rows of {reference} only, or none; pairs need both: sweep it")


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
