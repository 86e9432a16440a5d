"""Words and numbers as one reads them: settings and estimators with their values, means with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnlab.common.names import StatisticName
from bnlab.harness.reporting.statistic_looks import LOOKS
from bnlab.harness.run_table import DERIVED, RESULTS

# In conditions, in place of columns' names.
_WORDS = {
    "depth": "layer",
    "largest": "largest in layer",
    "norm.batch_size": "parts of",
    "optimizer.lr": "learning rate",
    "optimizer.lr_scaling": "lr scaling",
    "optimizer.momentum": "sgd momentum",
    "optimizer.weight_decay": "weight decay",
    "optimizer.label_smoothing": "label smoothing",
    "optimizer.schedule": "schedule",
    "averaging": "weights averaged by",
    "freeze_with": "frozen with",
}
# Settings that are named where all networks share them.
_SHARED = (
    "data",
    "data.images",
    "task",
    "model",
    "model.depth",
    "norm",
    "batch_size",
    "epochs",
    "optimizer",
    "optimizer.lr",
    "optimizer.schedule",
)
_TINY = 1e-5  # below it numbers are written as 1.2e-07
_MOST_DECIMALS = 6  # of an interval


def name_value(key: str, value: Any) -> str:
    """Say a column with its value; of `line`, `words`, `panel`, `layers` and `estimators` the value says it all.

    >>> name_value("batch_size", 8), name_value("norm.batch_size", 8), name_value("depth", 2)
    ('batch size 8', 'parts of 8', 'layer 2')
    """
    if key == "moment":
        moments = {"mean": "means", "var": "variances"}
        return moments.get(value, str(value))
    if key in ("line", "words", "panel", "layers", "estimators"):
        return str(value)
    words = _WORDS.get(key, key.replace("_", " "))
    return f"{words} {value}"


def name_setting(column: str) -> str:
    """Name a column without a value.

    >>> name_setting("optimizer.weight_decay"), name_setting("batch_size")
    ('weight decay', 'batch size')
    """
    return name_value(column, "").strip()


def write_value(value: Any) -> str:
    """Write a value of a setting as one reads it.

    >>> write_value(8.0), write_value(True), write_value([8, 16])
    ('8', 'yes', '8, 16')
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(write_value, value))
    return str(value)


def list_values(values: pd.Series) -> str:
    """Write the values that occur in order, with commas between them."""
    return ", ".join(map(write_value, sorted(values.dropna().unique())))


def list_varied(runs: pd.DataFrame) -> list[str]:
    """List the settings in which networks differ, seed apart; the first of those that say the same of all networks."""
    firsts: dict[tuple[str, ...], str] = {}
    for column in runs:
        if column in ("run", "seed", *DERIVED, *RESULTS):
            continue
        cells = runs[column]
        if cells.nunique(dropna=False) > 1:
            values = tuple(cells.astype(str))
            firsts.setdefault(values, str(column))
    return list(firsts.values())


def find_length(runs: pd.DataFrame) -> str:
    """Find the setting that said how long networks train: `steps` where all were given these, else `epochs`."""
    # Tables that no sweep has written may lack this column.
    if "settings" not in runs:
        return "epochs"
    has_steps = runs["settings"].map(lambda settings: "steps" in json.loads(settings))
    return "steps" if has_steps.all() else "epochs"


def describe_networks(runs: pd.DataFrame) -> str:
    """Say how many networks there are, in what they differ, what they share, and that this was not varied."""
    length = find_length(runs)
    words = []
    for listed in (*list_varied(runs), *_list_shared(runs)):
        column = length if listed == "epochs" else listed
        values = list_values(runs[column])
        # This list is long as it is, so that the learning rate is said in short.
        words.append(f"lr {values}" if column == "optimizer.lr" else name_value(column, values))

    networks = _count(len(runs), "network")
    seeds = _count(runs["seed"].nunique(), "seed")
    settings = ", ".join(words)
    sentences = [f"{networks}, {seeds}: {settings}."]

    none = pd.Series(dtype=object)
    statuses = list(runs.get("status", none))
    unfinished = []
    for status in ("diverged", "failed"):
        if status in statuses:
            unfinished.append(f"{statuses.count(status)} {status}")
    if unfinished:
        sentences.append(f"Of these {' and '.join(unfinished)}: means are of the rows that there are.")

    unseen = ", ".join(dict.fromkeys(runs.get("unseen", none).dropna()))
    if unseen:
        sentences.append(f"Batch norms that an evaluation does not call are left out: {unseen}.")

    devices = runs.get("device", none).value_counts()
    if len(devices) == 1:
        sentences.append(f"Trained on {devices.index[0]}.")
    elif len(devices):
        parts = [f"{count} on {device}" for device, count in devices.items()]
        sentences.append(f"Trained: {', '.join(parts)}.")
    return " ".join([*sentences, "Settings that all of them share were not varied, and may change the answer."])


def _list_shared(runs: pd.DataFrame) -> list[str]:
    """List the settings that are named because all networks share them, of those that the networks read."""
    shared = [column for column in _SHARED if column in runs and runs[column].nunique() == 1]
    return [column for column in shared if runs[column].notna().all()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}s" if number > 1 else f"{number} {noun}"


def name_row(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Name the first row of a frame, as `batch size 8, seed 0`."""
    return ", ".join(name_value(column, frame[column].iloc[0]) for column in columns)


def list_differences(frame: pd.DataFrame, columns: Iterable[str]) -> str:
    """List the first columns in which the rows of a frame differ, each with three values, as `momentum 0.01, 0.1`."""
    differing = []
    for column in columns:
        values = frame[column].dropna().unique()
        if len(values) > 1:
            examples = ", ".join(map(str, values[:3]))
            differing.append(name_value(column, examples))
    return "; ".join(differing[:3])


def estimator_label(name: object, momentum: Any = math.nan) -> str:
    """Name an estimator in a legend, with its parameters but for those that go without saying.

    >>> estimator_label("window(k=20,pooled=False)"), estimator_label("precise(images=2048)")
    ('mean of the last batches (k=20)', 'precise BN (2,048 images)')
    """
    parsed = StatisticName.parse(str(name))
    look = LOOKS.get(parsed.base)
    unsaid = look.unsaid if look else ()
    words = []
    for key, value in parsed.parameters.items():
        if key == "statistics_split":
            words.append(value)
        elif key == "images" and value.isdecimal():
            words.append(f"{int(value):,} images")
        elif f"{key}={value}" not in unsaid:
            words.append(f"{key}={value}")
    if not math.isnan(momentum):
        words.append(f"momentum {momentum:g}")

    label = look.words if look else parsed.base
    if words:
        label = f"{label} ({', '.join(words)})"
    return label


def round_numbers(mean: float, low: float, high: float, digits: int | None = None) -> list[str]:
    """Round mean, low and high to two digits of the interval's half; the mean alone where there is no interval.

    A mean that is not in the middle of its interval, as a geometric one, has two digits of its own at least. With
    `digits`, as in prose, no number has more significant digits than these.

    >>> round_numbers(26.63, 23.1, 30.12), round_numbers(131.8, 117.0, 148.0)
    (['26.6', '23.1', '30.1'], ['132', '117', '148'])
    >>> round_numbers(26.63, 23.1, 30.12, digits=2), round_numbers(131.8, 117.0, 148.0, digits=2)
    (['27', '23', '30'], ['130', '120', '150'])
    """
    half = (high - low) / 2
    if not math.isfinite(half):
        return [f"{mean + 0.0:.{digits or 3}g}"]  # no -0.0

    numbers = (mean, low, high)
    largest = max(abs(low), abs(high))
    if 0 < largest < _TINY:
        return [f"{number:.1e}" for number in numbers]

    decimals = 3
    if mean:  # two digits, also of small numbers that all seeds share
        decimals = max(decimals, _count_decimals(mean))
    if half > 1e-9 * abs(mean):  # else the interval is of rounding
        decimals = max(0, _count_decimals(half))
    decimals = min(_MOST_DECIMALS, decimals)
    centre, *bounds = [_write(number, decimals, digits) for number in numbers]

    # The ends of the interval say where its middle is, however wide it is, but nothing of another mean.
    is_middle = abs(mean - low - half) <= 1e-6 * half
    if mean and not is_middle:
        centre = _write(mean, max(decimals, _count_decimals(mean)), digits)
        if abs(mean) < _TINY:
            centre = f"{mean:.1e}"
    return [centre, *bounds]


def _count_decimals(number: float, digits: int = 2) -> int:
    """Count the decimals with which a number has so many significant digits; below 0 for tens, hundreds, ..."""
    return digits - 1 - math.floor(math.log10(abs(number)))


def _write(number: float, decimals: int, digits: int | None) -> str:
    """Write a number with so many decimals, or fewer where these would be more than `digits` significant digits."""
    if digits and number:
        shortened = float(f"{number:.{digits - 1}e}")  # 0.0996 has the digits of 0.10
        decimals = min(decimals, _count_decimals(shortened, digits))
    return f"{round(number, decimals) + 0.0:.{max(0, decimals)}f}"  # no -0.0


def format_number(mean: float, low: float, high: float) -> str:
    """Write mean and interval, as `round_numbers` has them.

    >>> format_number(1.0, 0.5, 1.5), format_number(0.25, math.nan, math.nan)
    ('1.00 [0.50, 1.50]', '0.25')
    >>> format_number(0.0312, 1e-9, 3e7)
    '0.031 [0, 30000000]'
    """
    rounded, *bounds = round_numbers(mean, low, high)
    return f"{rounded} [{', '.join(bounds)}]" if bounds else rounded


def count_share(share: float, n: int) -> str:
    """Write a share of networks as a count.

    >>> count_share(2 / 3, 3)
    '2 of 3'
    """
    return f"{round(share * n)} of {n}"


def name_rows(
    frame: pd.DataFrame, columns: Sequence[str], names: Mapping[str, Mapping[Any, str]] | None = None
) -> list[str]:
    """Name each row by its values, as `batch size 32, norm group`."""
    rows = []
    for row in frame.to_dict("records"):
        # A component that does not have a setting, as a norm without a momentum, is named without it.
        shown = [key for key in columns if pd.notna(row[key]) or key.partition(".")[0] not in columns]
        rows.append(", ".join(_name_cell(row, column, names or {}) for column in shown))
    return rows


def _name_cell(row: Mapping[Any, Any], column: str, names: Mapping[str, Mapping[Any, str]]) -> str:
    """Name the value that a row has in a column; an estimator with the row's momentum."""
    given = names.get(column, {}).get(row[column])
    if column == "estimator":
        momentum = row["momentum"]
        of_momentum = names.get("momentum", {}).get(momentum)
        if of_momentum is not None:
            return of_momentum
        if given is None or pd.isna(momentum):
            return given or estimator_label(row["estimator"], momentum)
        return f"{given} (momentum {momentum:g})"
    if given is not None:
        return given
    if column == "when":
        return str(row["when"])
    if pd.isna(row[column]):
        return f"no {name_setting(column)}"
    return name_value(column, write_value(row[column]))
