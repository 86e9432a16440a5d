"""Estimates with intervals over seeds, apart from any drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats


def t_interval(values: Iterable[float], level: float = 95) -> tuple[float, float, float, int]:
    """Mean, lower and upper bound of the two-sided Student interval, and n; NaN values are left out.

    One value has no interval: its bounds are NaN.

    >>> mean, low, high, n = t_interval([1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3), n
    (2.0, -0.484, 4.484, 3)
    """
    found = np.array(list(values), dtype=float)
    found = found[~np.isnan(found)]
    n = len(found)
    if n == 0:
        return np.nan, np.nan, np.nan, 0
    mean = float(found.mean())
    half = stats.t.ppf(0.5 + level / 200, n - 1) * found.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return mean, float(mean - half), float(mean + half), n


def summarize(
    frame: pd.DataFrame, value: str, by: Sequence[str], *, level: float = 95, geometric: bool = False
) -> pd.DataFrame:
    """`by` columns and `mean, low, high, n` of `value` over seeds: one row for each. Null keys are kept.

    `geometric`: of positive values that are read on a logarithmic axis; the interval is that of their logarithm.

    Raises:
        ValueError: no column `seed`, or several rows of one seed, which would count as so many seeds.
    """
    if "seed" not in frame:
        raise ValueError("summarize: no column 'seed'; intervals are over seeds")
    doubled = frame.duplicated([*by, "seed"])
    if doubled.any():
        first = ", ".join(f"{key} {frame.loc[doubled, key].iloc[0]}" for key in (*by, "seed"))
        raise ValueError(f"summarize: several rows of one seed ({first}); average over layers and the like first")
    values = np.log(frame[value]) if geometric else frame[value]
    rows = [
        (*(key if isinstance(key, tuple) else (key,)), *t_interval(group.to_numpy(), level))
        for key, group in values.groupby([frame[key] for key in by], dropna=False, sort=False)
    ]
    found = pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])
    if geometric:
        found[["mean", "low", "high"]] = np.exp(found[["mean", "low", "high"]])
    return found
