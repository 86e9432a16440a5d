"""Frames that figures and claims are made of: rows of tables, comparisons, intervals over seeds. No drawing.

`rows` selects rows with their networks' settings, `paired` compares them with a reference, `interval` averages over
seeds; `score` does one after the other. Every function raises UserError where a column is missing. Three more mistakes
are refused: networks that an average would mix (`rows`), several rows of one seed (`interval`), and pairs of which one
side has other seeds (`paired`). Means, also over layers, are defined in `means`,
selections and their order in `selection`.

What a frame says, it says by these columns, which the other modules of reports look for:

- of networks: `run`, `seed`, and the columns of `runs`;
- of statistics: `estimator`, `momentum`, `statistics_split`;
- of a place: `step`, `layer`, `channel`, `depth`, `split`, `shift`, in which two rows of a pair agree;
- of what is drawn where: `panel` (its name), `line` (the name of a series, where a score makes one), `words` (names
  that take the place of values), `series` (the words of the legend, which `looks` adds);
- of `paired`: `is_compared`, true of differences, which no interval cuts off at 0 and 1;
- of `interval`: `mean`, `low`, `high`, `n`, `error`, `log` (all of it is of logarithms), `share` (the mean is a share
  of the seeds, whose interval is exact); `printed` is true of a paper's numbers beside ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.layer_average import DEEPER, FIRST
from bnlab.harness.reporting.means import (
    COMPARED,
    average,
    gap_over_layers,
    interval,
    require_columns,
    require_one_row,
    select_largest_gap,
)
from bnlab.harness.reporting.selection import (
    OtherThan,
    find_parameter,
    lowest,
    name_panels,
    put_in_order,
    select,
    share_name,
)
from bnlab.harness.reporting.wording import list_differences, list_varied, name_row, name_value
from bnlab.harness.run_table import RESULTS

__all__ = [
    "DEEPER",
    "FIRST",
    "RATIO_OVER_LAYERS",
    "OtherThan",
    "Score",
    "Tables",
    "average",
    "find_parameter",
    "gap_over_layers",
    "interval",
    "lowest",
    "name_panels",
    "over_best",
    "paired",
    "put_in_order",
    "rows",
    "score",
    "select",
    "select_largest_gap",
    "share_name",
]

Tables = Mapping[str, pd.DataFrame]
"""The tables of an experiment, by name; `runs` is one of them."""
Score = Callable[[Tables], pd.DataFrame]
"""A function of the tables that returns the frame of `interval`."""
_LONG = ("settings", "versions")  # columns of `runs` with JSON, which would be copied into each measured row
# Columns that say where a value was measured: the two rows of a pair agree in them.
_PLACES = ("step", "panel", "layer", "channel", "split", "shift")
DIFFERING = {
    "estimator": ("estimator", "momentum"),
    "panel": ("panel", "step"),  # a panel is a share of the training, and so another step
    "depth": ("depth", "layer"),
    "batch_size": ("batch_size", "step"),  # at the same share of the training, other sizes have made other updates
}
"""Columns that differ together, by the column along which values are compared."""

RATIO_OVER_LAYERS: dict[str, Any] = {"depth": OtherThan(1), "average": "layer", "geometric": True}
"""In `score`: ratios that were taken layer by layer become their geometric mean over the deeper layers."""


def rows(
    tables: Tables,
    table: str,
    at: float | Sequence[float] = (),
    by: Sequence[str] | None = ("batch_size",),
    **wanted: Any,
) -> pd.DataFrame:
    """Select rows of a table, with their networks' settings and a column `panel`.

    Args:
        tables: the tables of an experiment, `runs` among them.
        table: the name of the table.
        at: shares of the training, 0 to 1, each a panel: for each network the measured step nearest to the share, if it
            is within 2% of the training or half a step. Without any all steps, a panel for each of `by`.
        by: settings in which the networks differ beside the seed, dotted where nested (`model.depth`). None: the batch
            size and what else was swept, so that networks of one seed differ in it; for what averages over no networks.
        wanted: for columns of the table or settings, see `select`.

    Raises:
        NoRows: the table has no rows.
        UserError: networks agree in `by` and seed, or differ in other settings.
    """
    frame = tables.get(table, pd.DataFrame())
    if frame.empty:
        raise NoRows(f"the table {table} has no rows")

    wanted_of_table = {column: wanted[column] for column in wanted if column in frame}
    wanted_of_networks = {column: wanted[column] for column in wanted if column not in frame}
    measured = select(frame, **wanted_of_table)  # before the settings are added: few rows, then many columns

    runs = tables["runs"]
    settings = [column for column in runs if column == "run" or column not in (*frame, *_LONG)]
    joined = measured.merge(runs[settings], on="run")
    chosen = select(joined, **wanted_of_networks)
    # Only networks that are left have to be comparable: those that were not wanted may differ in anything.
    networks = runs[runs["run"].isin(chosen["run"].unique())]
    if by is None:
        by = _list_swept(networks)
    _require_one_network(networks, by)

    shares = np.atleast_1d(at).tolist()
    if shares:
        return pd.concat([select_share(chosen, share) for share in shares], ignore_index=True)
    # Each length of training has panels of its own, and their names say it.
    words = [name_value(column, f"{{{column}}}") for column in by]
    ordered = chosen.sort_values("step", kind="stable")
    return name_panels(ordered, f"{', '.join(words)} ({{steps}} steps)")


def _list_swept(runs: pd.DataFrame) -> list[str]:
    """List the batch size, and the other settings in which networks of one seed and of one value of these differ.

    A setting in which only networks of different seeds differ was not swept: an average over seeds would mix it.
    """
    swept = ["batch_size"]
    for column in list_varied(runs):
        of_one_seed = runs.groupby(["seed", *swept], dropna=False)
        if of_one_seed[column].nunique(dropna=False).max() > 1:
            swept.append(column)
    return swept


def _require_one_network(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Refuse networks that an average over seeds would mix: several of one seed, or seeds that differ in a setting."""
    require_columns(runs, by)
    # What a training ended with may differ between seeds; how it was set up may not.
    settings = [str(column) for column in runs if column not in ("run", "seed", *RESULTS)]
    group = pd.Series(0, runs.index)
    if by:
        group = runs.groupby([*by], dropna=False, sort=False).ngroup()
    counts = runs[settings].groupby(group).nunique(dropna=False)
    differs = counts.gt(1).any(axis=1)
    doubled = runs.assign(group=group).duplicated(["group", "seed"])
    is_doubled = doubled.groupby(group).any()
    mixed = differs.index[differs | is_doubled]
    if mixed.empty:
        return

    first = runs[group == mixed[0]]
    where = name_row(first, by) or "the table"
    differing = list_differences(first, settings)
    if not differing:
        differing = ", ".join(first["run"].head(3))
    raise UserError(
        f"{where} has several networks of one seed, or seeds that were trained with different settings ({differing});\n"
        "tell them apart (by=...), select one of them, or sweep each under its own name=..."
    )


def select_share(frame: pd.DataFrame, share: float) -> pd.DataFrame:
    """Select, for each network, the step nearest to a share of the training, if it is near."""
    steps = frame["steps"]
    # A short training has no step within 2% of every share. Without the 1e-9, rounding would decide about a step that
    # lies just half a step away.
    half_a_step = 0.5 / steps
    allowed = half_a_step.clip(lower=0.02) + 1e-9
    done = frame["step"] / steps
    distance = (done - share).abs()
    by_network = distance.groupby(frame["run"])
    is_nearest = distance == by_network.transform("min")
    is_near = distance <= allowed
    near = frame[is_nearest & is_near]
    latest = near.groupby("run")["step"].transform("max")  # of two steps that are equally near
    selected = near[near["step"] == latest]
    return selected.assign(panel=share_name(share))


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
        matching: further columns in which the two rows of a pair agree: by default they are of one network. With
            ("run", "momentum") each momentum of an estimator is compared with the same one of the reference. Where a
            setting of the training is compared, as a norm, pairs are of different networks: of one seed, ("seed",), and
            alike in what else was varied, ("seed", "batch_size").
        ratio: divide by the reference instead of subtracting it.

    Raises:
        UserError: the reference has several rows for a network and step, or other seeds than what is compared with it,
            over all conditions together (where one condition lacks seeds, the n of its mean shows it); values of a
            column are compared in which rows should agree.

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
    reference_rows = frame[is_reference]
    others = frame[~is_reference]

    compared = DIFFERING.get(along, (along,))
    # Two rows of a pair agree in where and by what they were measured, except in what is compared.
    keys = [*matching]
    for column in (*_PLACES, "estimator", "momentum"):
        if column in frame and column not in (*keys, *compared):
            keys.append(column)
    require_one_row(reference_rows, keys)

    seeds_of_reference = {*reference_rows["seed"]}
    seeds_of_others = {*others["seed"]}
    unpaired = seeds_of_reference ^ seeds_of_others
    # Where one side is empty there are no pairs, and nothing is compared wrongly.
    if unpaired and seeds_of_reference and seeds_of_others:
        raise UserError(f"seed {min(unpaired)} has rows of {along} {against} only, or none; pairs need both: sweep it")

    # Under another name, because `merge` would rename the value's column on both sides.
    expected = f"{value} of the reference"
    references = reference_rows[[*keys, value]].rename(columns={value: expected})
    # pandas joins null with null, so that rows without a momentum find each other, too.
    pairs = others.merge(references, on=keys)
    reference = pairs.pop(expected)
    if ratio:
        pairs[value] = pairs[value] / reference
    else:
        pairs[value] = pairs[value] - reference
    return pairs.assign(**{COMPARED: True})


def over_best(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Divide a column by the smallest value that the EMA has with any momentum at the same network and step.

    Args:
        frame: rows of `rows`; where it has layers, splits or panels, these agree as well.
        value: the column that becomes a ratio, such as a gap; the best momentum in hindsight has 1.
    """
    keys = ["run", *(column for column in _PLACES if column in frame)]
    candidates = select(frame, estimator="ema")
    # The reference is a copy under another name: the best row stays among the others, with a ratio of 1.
    best = lowest(candidates, value, keys).assign(estimator="best")
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
        at: shares of the training, of a table, see `rows`; its networks may differ in the settings among `by`, `along`
            and `matching`, or else in their batch size.
        against, along, matching, ratio: the reference, see `paired`; None: nothing is compared.
        wanted: values of columns that rows have, see `select`. In a comparison both sides have these values, except in
            the columns that are compared (estimator and momentum, if estimators are): there `wanted` says what is
            compared, and `against` with what.
    """
    differing = () if against is None else DIFFERING.get(along, (along,))
    wanted_of_compared = {column: wanted[column] for column in wanted if column in differing}
    wanted_of_both = {column: wanted[column] for column in wanted if column not in differing}
    told_apart = [*by] if against is None else [*by, along, *matching]

    def compute(tables: Tables) -> pd.DataFrame:
        if isinstance(source, str):
            table = tables.get(source, pd.DataFrame())
            # What the table lacks has to be a setting of the networks.
            places = ("run", "seed", "panel", *table)
            settings = [column for column in dict.fromkeys(told_apart) if column not in places]
            frame = rows(tables, source, at, settings or ["batch_size"], **wanted_of_both)
        else:
            frame = select(source(tables), **wanted_of_both)
        if against is not None:
            # What differs between both sides is selected afterwards: the reference has other values there.
            pairs = paired(frame, value, against, along=along, matching=matching, ratio=ratio)
            frame = select(pairs, **wanted_of_compared)
        return interval(frame, value, by, average=average, scale=scale, geometric=geometric)

    return compute
