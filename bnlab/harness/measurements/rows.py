"""The rows of a measurement on a network: read where they have been measured, measured and kept where they are missing.

`bnlab.harness.records` says how they travel from here.
"""

from __future__ import annotations

import json
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnlab.common.files import Unreadable, digest, quarantine
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError, list_own_lines, where_raised
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.records import SAMPLE, VERSION, Part, locate_rows
from bnlab.harness.schema import ROW_KEY, Table, empty, find_fault, read_frame, read_schema, write_rows
from bnlab.harness.user_code import digest_class

Failures = dict[str, tuple[str, str]]
"""Failures of measurements: estimator, or table if no estimator is to blame → the reason in a line, the traceback."""


@dataclass(frozen=True)
class _Wanted:
    """Rows of one subject that a job asks for.

    Attributes:
        key: a digest of all that the rows depend on but their step; each row carries it.
        subject: None in a table without estimators.
        images: split and shift of the images that are predicted; empty in a table without.
        columns: what the rows have in `estimator`, `momentum` and `statistics_split`, as far as the table has these.
        steps: all that are asked for, measured or not.
        origin: see `Part`.
    """

    key: str
    subject: Subject | None
    images: tuple[str, ...]
    columns: Mapping[str, Any]
    steps: Sequence[int]
    origin: Mapping[str, str]


def complete_rows(run: Run, measurement: Measurement, subjects: list[Subject], failures: Failures) -> dict[str, Part]:
    """Measure and keep the rows of a measurement that a network lacks.

    A table of predictions is measured for each of `Run.predicted_images`. Estimators among `failures` are left out;
    those that fail now come to them.

    Returns:
        Which rows there are of what was asked for, by estimator.
    """
    chosen = measurement.scope(run, [each for each in subjects if each.label not in failures])
    if any(chosen) and "estimator" not in measurement.table.key:
        raise UserError(
            f"measurements={measurement.name}: its `scope` chooses estimators, which its rows have to tell apart; "
            'write key=common("run step estimator momentum statistics_split") into its table'
        )
    # A table without splits is measured once, with `()` in place of a split and a shift.
    all_images: Sequence[tuple[str, ...]] = run.predicted_images if measurement.is_by_split else [()]
    wanted = [
        _describe(run, measurement, subject, images, steps)
        for images in all_images
        for subject, steps in chosen.items()
    ]

    folder = locate_rows(Path(run.config.results), run.id, measurement.name)
    present = _read_present(folder)
    # What lacks the same steps, of the same images, is measured together.
    groups: dict[tuple[Any, ...], list[_Wanted]] = {}
    for each in wanted:
        absent = tuple(step for step in each.steps if (each.key, step) not in present)
        if absent:
            groups.setdefault((each.images, absent), []).append(each)
    for (_, steps), group in groups.items():
        _measure(run, measurement, group, [*steps], failures)

    if groups:
        compact(folder, measurement.table)
        present = _read_present(folder)
    parts: dict[str, Part] = {}
    for each in wanted:
        there = [step for step in each.steps if (each.key, step) in present]
        estimator = each.columns.get("estimator", "")
        part = Part(each.origin, run.losses_digest, {each.key: there}, is_own=bool(digest_class(type(measurement))))
        parts[estimator] = parts[estimator].join(part) if estimator in parts else part
    return parts


def _describe(
    run: Run, measurement: Measurement, subject: Subject | None, images: tuple[str, ...], steps: Sequence[int]
) -> _Wanted:
    """Describe the rows of a subject on these images: their key digests all that they depend on but the step."""
    columns: dict[str, Any] = {}
    if subject is not None:
        columns = {"estimator": subject.label, "momentum": subject.momentum, "statistics_split": subject.split}
    # A user's table may lack the momentum, say.
    columns = {name: value for name, value in columns.items() if name in measurement.table.columns}

    origin = _list_origin(run, measurement, subject)
    predicted = ""
    if measurement.predicts:
        # A table that predicts without `split` in its key does so on the test images as they are.
        predicted = run.digest_of(*(images or ("test", "none")))
    parts = [measurement.name, columns, images, predicted, run.losses_digest, origin, run.order_of_calls]
    key = digest(json.dumps(parts, sort_keys=True), digits=16)
    return _Wanted(key, subject, images, columns, steps, origin)


def _list_origin(run: Run, measurement: Measurement, subject: Subject | None) -> dict[str, str]:
    """List what rows depend on that no setting says, and that has to be the same in all rows of a line."""
    code = [str(VERSION), subject.code if subject else "", digest_class(type(measurement))]
    limit = run.config.population_images
    data = digest(json.dumps(run.config.data.identify(), sort_keys=True, default=str), digits=10)
    return {
        "code": digest(json.dumps(code), digits=10),
        SAMPLE: "null" if limit is None else str(limit),
        # Other settings of the data have other images.
        f"images of {data}": run.dataset.train.digest,
    }


def _read_present(folder: Path) -> set[tuple[str, int]]:
    """Read the keys and steps of all rows of a folder."""
    present: set[tuple[str, int]] = set()
    for path in sorted(folder.glob("*.parquet")):
        try:
            frame = read_frame(path, [ROW_KEY, "step"])
        except Unreadable as error:
            quarantine(path, error, "its rows are measured again")
            continue
        present |= {*zip(frame[ROW_KEY], frame["step"], strict=True)}
    return present


def compact(folder: Path, table: Table) -> None:
    """Put the files of a folder into one, and remove them; the caller holds the lock of the network.

    The new file comes first, so that no row is lost at any moment. A reader who finds a file gone lists again.
    """
    # Rows that another version of a user's measurement has measured may have other columns.
    paths = [path for path in sorted(folder.glob("*.parquet")) if read_schema(path).names == table.part.names]
    if len(paths) < 2:
        return
    whole = pd.concat([read_frame(path) for path in paths], ignore_index=True)
    # Rows are there twice where an earlier union was written and its parts were not removed.
    _write(folder, table, whole.drop_duplicates([ROW_KEY, *table.key], keep="last"))
    for path in paths:
        path.unlink()


def _write(folder: Path, table: Table, frame: pd.DataFrame) -> None:
    write_rows(folder / f"{uuid.uuid4().hex}.parquet", table, frame)


def _measure(
    run: Run, measurement: Measurement, wanted: Sequence[_Wanted], steps: list[int], failures: Failures
) -> None:
    """Measure together and keep; if that fails, each estimator by itself."""
    subjects = [each.subject for each in wanted]
    try:
        frame = measurement.measure(run, subjects, steps, *wanted[0].images)
    # These are about the network and its files, so that no estimator is to blame.
    except (UserError, Unreadable):
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        # With no line of the user's code in the traceback, an OSError comes from the machine, such as a full
        # disk, which other jobs would meet too.
        if isinstance(error, OSError) and not list_own_lines(error):
            raise

        estimators = list(dict.fromkeys(each.columns.get("estimator", measurement.name) for each in wanted))
        if len(estimators) == 1:
            failures[estimators[0]] = where_raised(error), traceback.format_exc()
            return
        # One estimator has failed, and nobody knows which. Measured one by one, the others keep their rows.
        for name in estimators:
            of_estimator = [each for each in wanted if each.columns.get("estimator") == name]
            _measure(run, measurement, of_estimator, steps, failures)
        return

    if isinstance(frame, pd.DataFrame) and not len(frame):  # all rows may be left out, and then the columns are too
        frame = empty(measurement.table.schema)
    fault = _fill_in(frame, run, measurement) or _find_other_rows(frame, wanted, steps)
    if not fault and digest_class(type(measurement)):
        fault = _find_missing_value(frame, measurement.table)
    if fault:
        failures[measurement.name] = fault, ""
        return

    keys = {tuple(each.columns.values()): each.key for each in wanted}
    rows = frame.assign(**{ROW_KEY: [keys[subject] for subject in _list_subjects(frame, wanted)]})
    if len(rows):
        _write(locate_rows(Path(run.config.results), run.id, measurement.name), measurement.table, rows)


def _list_subjects(frame: pd.DataFrame, wanted: Sequence[_Wanted]) -> list[tuple[Any, ...]]:
    """List the values that tell subjects apart, for each row; no momentum is None, as NaN does not equal itself."""
    names = [*wanted[0].columns]
    if not names:
        return [()] * len(frame)
    values = frame[names].astype(object)
    return list(values.where(values.notna(), None).itertuples(index=False, name=None))


def _fill_in(frame: Any, run: Run, measurement: Measurement) -> str:
    """Fill in the columns `run` and `epoch`; what is wrong with the rows then, empty: nothing."""
    if not isinstance(frame, pd.DataFrame):
        return f"measure() has to give a pandas.DataFrame, found a {type(frame).__name__}"
    frame["run"] = run.id
    if "epoch" in measurement.table.columns and "epoch" not in frame and "step" in frame:
        frame["epoch"] = frame["step"] / run.batches.per_epoch
    return find_fault(measurement.table, frame)


def _find_missing_value(frame: pd.DataFrame, table: Table) -> str:
    """Find a value that is missing or NaN, which means would leave out in silence; in words, empty: none.

    bnlab's own tables have none where a number has no meaning, and say so. No momentum has a meaning too.
    """
    for column in table.columns:
        missing = frame[frame[column].isna()]
        if len(missing) and column != "momentum":
            row = ", ".join(f"{key}={missing[key].iloc[0]}" for key in table.key)
            return f"its row {row} has {column}=NaN; give it a value, or leave the row out"
    return ""


def _find_other_rows(frame: pd.DataFrame, wanted: Sequence[_Wanted], steps: list[int]) -> str:
    """Find rows that were not asked for, in words; empty: none."""
    other_steps = frame.loc[~frame["step"].isin(steps), "step"]
    if len(other_steps):
        return f"its rows have step {other_steps.iloc[0]}, which was not asked for: {', '.join(map(str, steps))} were"
    asked = {tuple(each.columns.values()) for each in wanted}
    for subject in _list_subjects(frame, wanted):
        if subject not in asked:
            values = zip(wanted[0].columns, subject, strict=True)
            return f"its rows have {', '.join(f'{name}={value}' for name, value in values)}, which was not asked for"
    return ""
