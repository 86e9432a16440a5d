"""Values beside those of a reference: of the same network and step, or on a curve."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import Note
from bnlab.harness.reporting.frames.coverage import check_coverage
from bnlab.harness.reporting.frames.selection import (
    check_estimators,
    describe_difference,
    lowest,
    name_value,
    require_columns,
    select,
)

SAME_NETWORK = ("run",)
_PLACES = ("step", "panel", "layer", "channel", "split", "shift", "estimator", "momentum")
_DIFFERING = {
    "estimator": ("estimator", "momentum"),
    "panel": ("panel", "step"),
    "depth": ("depth", "layer"),
    "batch_size": ("batch_size", "step"),
}
"""By the column along which values are compared: the columns that differ with it."""


def paired(
    frame: pd.DataFrame,
    value: str,
    against: Any = "exact",
    *,
    along: str = "estimator",
    matching: Sequence[str] = SAME_NETWORK,
    ratio: bool = False,
) -> pd.DataFrame:
    """All rows but the reference's; `value` compared with that of the reference at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, channels, splits or panels, these agree as well, and where others
            than estimators are compared, estimator and momentum too.
        value: the column that is replaced by its difference to the reference.
        against: the estimator that is the reference, on the training split if it is there on several; or another value
            of `along`. Rows without a reference are left out; with a warning if all are.
        along: the column of which `against` is a value: estimators; or a `size` of batches, a layer by its `depth`, a
            share of the training by its `panel`; a setting of the training, with `matching`.
        matching: columns in which two rows agree that are compared. Networks that were trained with other settings
            agree in ("seed",), or in ("seed", "batch_size") where they also differ in what the comparison is not about.
        ratio: divide by the reference instead of subtracting it.

    Raises:
        UserError: there is no such column, or the reference is named without the parameters that it has in the rows.
        ValueError: the reference has several rows for a network and step, as one of several momenta does.
    """
    require_columns(frame, [value, along, *(matching if matching != SAME_NETWORK else ())])
    if along == "estimator":
        check_estimators(frame["estimator"], against)
    keys = _list_keys(frame, along, matching)
    is_reference = frame[along] == against
    if along == "estimator" and "statistics_split" in frame:
        of_training = is_reference & frame["statistics_split"].eq("train")
        is_reference = of_training if of_training.any() else is_reference
    known = frame[is_reference]
    reference = pd.Series(known[value].to_numpy(), pd.MultiIndex.from_frame(known[keys]))
    if not reference.index.is_unique:
        raise ValueError(
            f"paired: {against!r} has several rows for a network and step{describe_difference(known, keys)}; select or "
            "sweep one"
        )
    others = frame[~is_reference]
    index = pd.MultiIndex.from_frame(others[keys])
    expected = reference.reindex(index).to_numpy()
    compared = others.assign(**{value: others[value] / expected if ratio else others[value] - expected})
    has_reference = index.isin(reference.index)
    if len(known) and len(others) and not has_reference.any():
        differing = [key for key in keys if not {*known[key].astype(str)} & {*others[key].astype(str)}]
        warnings.warn(
            f"no row can be compared with {name_value(along, against)}: rows have to agree in {', '.join(keys)}"
            + f", and no {' or '.join(differing)} does" * bool(differing),
            Note,
            stacklevel=2,
        )
    return compared[has_reference]


def over_best(frame: pd.DataFrame, value: str, estimator: str = "ema") -> pd.DataFrame:
    """All rows; `value` over the smallest that this estimator has with any momentum at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that becomes a ratio, such as a gap; the best momentum in hindsight has 1.
        estimator: the one of which the best momentum is the reference; rows for which it has none are left out.

    Raises:
        UserError: there is no such column, or networks or steps have other momenta than others: the best of fewer is
            farther.
        ValueError: one momentum has several rows for a network and step.
    """
    candidates, keys = select(frame, estimator=estimator), _list_keys(frame)
    if candidates.duplicated([*keys, "momentum"]).any():
        raise ValueError(f"over_best: {estimator!r} has several rows for a momentum, network and step; select one")
    check_coverage(candidates, [], [key for key in ("run", "step") if key in frame], ["momentum"])
    best = lowest(candidates, value, keys)
    return paired(pd.concat([frame, best.assign(estimator="best")]), value, against="best", ratio=True)


def on_curves(points: pd.DataFrame, curves: pd.DataFrame, x: str, by: Sequence[str]) -> pd.DataFrame:
    """The points with the `mean` that their curve has there: on straight lines between neighbours, over the log of `x`.

    Args:
        points: rows with `by` and a positive `x`.
        curves: rows with `by`, `x` and `mean`, such as those of `interval`.
        x: the column across.
        by: what the curves are told apart by, null too; points without a curve, or beyond its ends, are left out.

    Raises:
        UserError: a column is missing.
        ValueError: a curve has several rows at one `x`.
    """
    require_columns(points, [x, *by])
    require_columns(curves, [x, "mean", *by])
    placed = []
    ordered = curves.dropna(subset=[x, "mean"]).sort_values(x, kind="stable")
    if ordered.duplicated([*by, x]).any():
        raise ValueError(f"on_curves: a curve has several rows at one {x}; tell curves apart by what they differ in")
    for key, curve in ordered.groupby(list(by), dropna=False, sort=False):
        same = select(points, **{column: None if at != at else at for column, at in zip(by, key, strict=True)})
        here = same[same[x].between(curve[x].min(), curve[x].max())]
        placed.append(here.assign(mean=np.interp(np.log(here[x]), np.log(curve[x]), curve["mean"])))
    return pd.concat(placed) if placed else points[:0].assign(mean=np.nan)


def _list_keys(frame: pd.DataFrame, along: str = "estimator", matching: Sequence[str] = SAME_NETWORK) -> list[str]:
    """The columns in which rows agree that differ along this one only."""
    differing = _DIFFERING.get(along, (along,))
    return [key for key in (*matching, *_PLACES) if key in frame and key not in differing]
