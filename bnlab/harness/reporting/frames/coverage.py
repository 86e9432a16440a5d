"""Whether what is compared, or averaged side by side, is of the same things: momenta, steps, batch sizes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames.selection import name_value


def check_coverage(frame: pd.DataFrame, groups: Sequence[str], members: Sequence[str], what: Sequence[str]) -> None:
    """UserError if, among rows that agree in `groups`, one has less of something than the others have.

    Args:
        frame: any rows.
        groups: columns in which those agree that have to have the same; none: all have to.
        members: columns that tell these apart, such as "seed"; null is a value.
        what: columns of which each has to have the same combinations of values, such as "momentum".
    """
    parts = frame[[*groups, *members, *what]].drop_duplicates()
    every = parts.drop_duplicates([*groups, *what])
    if groups:
        found = _count(parts, [*groups, *members]).merge(_count(every, groups), on=[*groups], suffixes=("", "_of"))
    else:
        found = _count(parts, members).assign(count_of=len(every))
    lacking = found[found["count"] < found["count_of"]]
    if len(lacking):
        one = _first(lacking)
        _refuse(one, groups, members, f"{one['count']} of {one['count_of']} values of {', '.join(what)}")


def check_shares(frame: pd.DataFrame, groups: Sequence[str], members: Sequence[str]) -> None:
    """UserError if, among rows that agree in `groups`, one has no step near a share of the training that another has.

    Near is the same step, a factor of 1.5, or 5% of training; steps that are spaced by logarithms lie so where
    trainings are of other lengths. Of short trainings, whose steps are farther apart, near is within a step of each.

    Args:
        frame: rows with `step`, and `steps` of the whole training.
        groups, members: as in `check_coverage`.
    """
    columns = dict.fromkeys([*groups, *members, "step", "steps"])
    measured = frame[[*columns]].drop_duplicates()
    for _, beside in measured.groupby([*groups], dropna=False, sort=False) if groups else [((), measured)]:
        at, of = (beside[key].to_numpy()[:, None] for key in ("step", "steps"))
        for _, own in beside.groupby([*members], dropna=False, sort=False):
            step, steps = (own[key].to_numpy() for key in ("step", "steps"))
            wanted, share = at / of, step / steps
            near = (at == step) | (wanted <= 1.5 * share) & (share <= 1.5 * wanted)
            near |= abs(wanted - share) <= np.maximum(0.05, 1 / steps + 1 / of) + 1e-9
            far = wanted[~near.any(axis=1)]
            if len(far):
                _refuse(_first(own), groups, members, f"no step near {100 * far.min():.3g}% of training")


def _first(frame: pd.DataFrame) -> dict[Hashable, Any]:
    """The first row; a whole number stays one beside others."""
    return frame.head(1).to_dict("records")[0]


def _refuse(one: dict[Hashable, Any], groups: Sequence[str], members: Sequence[str], what: str) -> NoReturn:
    who = ", ".join(name_value(key, one[key]) for key in members if pd.notna(one[key]))
    where = ", ".join(name_value(key, one[key]) for key in groups)
    raise UserError(
        f"{who} has {what}{' at ' * bool(where)}{where}, and what is made of them would be of other things than that "
        "of the others; sweep what is missing, or select what all have"
    )


def _count(parts: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The keys and how many rows agree in them."""
    return parts.groupby([*keys], dropna=False, sort=False).size().rename("count").reset_index()
