"""Settings that a sweep has varied, found in its tables: what tells networks apart, in words that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.frames.selection import (
    Tables,
    list_settings,
    list_values,
    list_varied,
    name_value,
    write_value,
)
from bnlab.harness.reporting.style import estimator_label

_MEASURED = ("gaps", "evaluations")  # the tables that an overview reads
_TAKEN = ("momentum", "seed", "statistics")  # words that mean something else where they have no group


@dataclass(frozen=True)
class Swept:
    """The tables of a sweep, with what was varied.

    Attributes:
        tables: in `runs`, truth values are "yes" and "no".
        settings: the columns of `runs` that tell networks apart beside the seed, in the order of the table.
        companions: settings that follow from one of these, by their name: {"optimizer.lr": "batch_size"}.
    """

    tables: Tables
    settings: list[str]
    companions: Mapping[str, str]

    def name_setting(self, column: str) -> str:
        """Name a setting in words: without its group, as `width`, unless another one is called so too.

        >>> Swept({}, ["model.width", "batch_size"], {}).name_setting("model.width")
        'width'
        """
        words = name_value(column, "").strip()
        if "." not in words:
            return words

        last = _leave_off_group(column)
        alike = [other for other in self.settings if _leave_off_group(other) == last]
        if len(alike) > 1 or last in _TAKEN:
            return column
        return last.replace("_", " ")

    def say_setting(self, column: str, value: Any) -> str:
        """Say a setting with its value, as `batch size 32`; `no width` for a network that does not read it."""
        words = self.name_setting(column)
        if pd.isna(value):
            return f"no {words}"
        return f"{words} {write_value(value)}"

    def list_swept(self) -> dict[str, str]:
        """List all that was swept with its values, in words: settings of networks, seeds, momenta and statistics."""
        runs = self.tables["runs"]
        swept = {}
        for column in self.settings:
            words = self.name_setting(column)
            swept[words] = list_values(runs[column])
        swept["seed"] = list_values(runs["seed"])

        sources = self._list_sources()
        swept["momentum"] = list_values(sources["momentum"])
        labels = [estimator_label(name) for name in sources["estimator"].unique()]
        swept["statistics"] = ", ".join(labels)
        return {words: values for words, values in swept.items() if values}

    def _list_sources(self) -> pd.DataFrame:
        """List the estimators with their momenta that were measured."""
        columns = ["estimator", "momentum"]
        frames = [pd.DataFrame(columns=columns, dtype=object)]
        for name in _MEASURED:
            if name in self.tables:
                frame = self.tables[name]
                frames.append(frame[columns].drop_duplicates())
        return pd.concat(frames).astype({"momentum": float})

    def list_shared(self) -> dict[str, str]:
        """List the settings that all networks share, with their values."""
        runs = self.tables["runs"]
        shared = {}
        for column in list_settings(runs):
            values = list_values(runs[column])
            is_read = values != ""
            is_same = runs[column].nunique(dropna=False) == 1
            if is_same and is_read:
                shared[column] = values
        return shared


def say_each(values: pd.Series, say: Callable[[Any], str]) -> list[str]:
    """Say each value, and each distinct one only once: the rows of a large sweep have few."""
    places, distinct = pd.factorize(values, use_na_sentinel=False)
    words = [say(value) for value in distinct]
    return [words[place] for place in places]


def _leave_off_group(column: str) -> str:
    """Leave off the group of a setting, so that `model.width` is `width`."""
    return column.rpartition(".")[2]


def find_swept(tables: Tables) -> Swept:
    """Find what a sweep has varied.

    Raises:
        NoRows: no network has been measured.
    """
    runs = tables.get("runs", pd.DataFrame())
    has_rows = any(len(tables.get(name, ())) for name in _MEASURED)
    if runs.empty or not has_rows:
        raise NoRows("there are neither gaps nor evaluations to draw; sweep with measurements=[gaps,evaluations]")

    runs = runs.apply(_simplify)
    settings: list[str] = []
    companions = {}
    for column in _choose_length(runs, list_varied(runs)):
        leader = _find_leader(runs, column, settings)
        if leader is None:
            settings.append(column)
        elif runs[column].nunique() > 1:  # else it is only that some networks do not read it
            companions[column] = leader
    return Swept({**tables, "runs": runs}, settings, companions)


def _simplify(values: pd.Series) -> pd.Series:
    """Make values comparable: numbers as they are, and words for all others, truth values and lists too."""
    is_number = pd.api.types.is_numeric_dtype(values)
    is_truth = pd.api.types.is_bool_dtype(values)
    if is_number and not is_truth:
        return values
    return values.map(write_value, na_action="ignore")


def _choose_length(runs: pd.DataFrame, varied: list[str]) -> list[str]:
    """Leave out that one of `epochs` and `steps` that follows from the other; both give the length of a training."""
    is_whole = (runs["epochs"] % 1 == 0).all()
    if "epochs" not in varied or is_whole:
        return varied

    place = varied.index("epochs")
    before = varied[:place]
    after = varied[place + 1 :]
    if runs["steps"].nunique() == 1:
        return [*before, *after]
    return [*before, "steps", *after]


def _find_leader(runs: pd.DataFrame, column: str, settings: list[str]) -> str | None:
    """Find a setting from which a column follows: networks that agree in it agree in the column too."""
    for setting in settings:
        groups = runs.groupby(setting, dropna=False)
        values = groups[column].nunique(dropna=False)
        if values.max() == 1:
            return setting
    return None
