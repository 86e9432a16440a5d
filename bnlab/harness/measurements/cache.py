"""The rows of a measurement: read where they have been measured, measured and kept where they are missing."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bnlab.common.files import Unreadable, digest
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError, list_own_lines, where_raised
from bnlab.harness.measurements import estimates
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.own import digest_user_code, find_code
from bnlab.harness.requests import Selection
from bnlab.harness.schema import ORIGIN, Table, empty, find_fault, read_frame, write_rows
from bnlab.harness.source_code import Code

Failures = dict[str, tuple[str, str]]
"""Failures of measurements: estimator, or table if no estimator is to blame → the reason in a line, the traceback."""
_OF_SUBJECTS = ("estimator", "momentum", "statistics_split")


def complete_rows(run: Run, measurement: Measurement, subjects: list[Subject], failures: Failures) -> Selection:
    """Select the rows of a measurement for these subjects; what is missing is measured and kept with the network.

    A table of predictions is measured for each of `Run.predicted_images`. Estimators among `failures` are left out;
    those that fail now come to them.
    """
    chosen = measurement.scope(run, [each for each in subjects if each.estimator not in failures])
    key = _choose_key(measurement, has_subjects=any(chosen))
    folder = run.folder / "measurements" / measurement.name
    files = {path.name: _read_keys(path, key) for path in sorted(folder.glob("*.parquet"))}
    present = set().union(*files.values())

    selected = []
    # A table without splits is measured once, with `()` in place of a split and a shift.
    all_images: Sequence[tuple[str, ...]] = run.predicted_images if measurement.is_by_split else [()]
    for images in all_images:
        missing: dict[tuple[int, ...], list[Subject | None]] = {}
        for subject, steps in chosen.items():
            described = _describe_rows(run, measurement, subject, images)
            columns = {name: described[name] for name in key}  # in the order in which `_read_keys` has them
            selected.append((columns, list(steps)))
            absent = tuple(step for step in steps if (*columns.values(), step) not in present)
            if absent:
                missing.setdefault(absent, []).append(subject)
        for absent_steps, group in missing.items():  # what lacks the same steps is measured together
            for path in _measure(run, measurement, group, [*absent_steps], failures, images):
                files[path.name] = _read_keys(path, key)

    wanted = {(*columns.values(), step) for columns, steps in selected for step in steps}
    # The other files hold other steps and estimators, or rows of an earlier origin.
    holding = [file for file, keys in files.items() if keys & wanted]
    is_own = bool(digest_user_code(type(measurement)))
    return Selection(holding, selected, _list_code(measurement, chosen), is_own)


def _list_code(measurement: Measurement, subjects: Iterable[Subject | None]) -> dict[str, Code]:
    """List the user's code of a measurement and an estimator together, by the estimator's name; empty without one."""
    codes = {}
    for subject in subjects:
        kinds: list[type] = [type(measurement)]
        if subject is not None:
            kinds.append(type(subject.statistic))
        code: Code = {}
        for kind in kinds:
            code |= find_code(kind)
        if code:
            codes[subject.statistic.name if subject else ""] = code
    return codes


def _choose_key(measurement: Measurement, *, has_subjects: bool) -> list[str]:
    """Choose the columns by which the rows of a table are found, other than the step.

    A user's table may lack the momentum, say, or have a column of this name although it is about no estimators.
    """
    names: list[str] = []
    if has_subjects:
        names += _OF_SUBJECTS
    if measurement.is_by_split:
        names += ("split", "shift")
    if has_subjects and "estimator" not in measurement.table.key:
        raise UserError(
            f"measurements={measurement.name}: its `scope` chooses estimators, which its rows have to tell apart; "
            'write key=common("run step estimator momentum statistics_split") into its table'
        )
    return [ORIGIN, *(name for name in names if name in measurement.table.columns)]


def _read_keys(path: Path, key: Sequence[str]) -> set[tuple[Any, ...]]:
    """Read the values of these columns and the step by which the rows of a file are found; no momentum is None."""
    keys = read_frame(path)[[*key, "step"]].astype(object)
    # NaN does not equal itself, so that rows without a momentum would never be found.
    return set(keys.where(keys.notna(), None).itertuples(index=False, name=None))


def _describe_rows(
    run: Run, measurement: Measurement, subject: Subject | None, images: tuple[str, ...]
) -> dict[str, Any]:
    """Describe a subject's rows by the columns in which they agree; their origin digests all that they depend on."""
    # A table that predicts without `split` in its key does so on the test images as they are.
    predicted = images or ("test", "none")
    made_from = [
        estimates.VERSION,
        subject.code if subject else "",
        run.dataset.train.digest,
        run.digest_of(*predicted) if measurement.predicts else "",
        run.training,
    ]
    # These are added only where there is something to add, so that all other rows keep their origin.
    if run.config.population_images is not None:
        made_from.append(run.config.population_images)
    if run.order_of_calls is not None:  # rows of before have layers in another order
        made_from.append(run.order_of_calls)
    code = digest_user_code(type(measurement))
    if code:
        made_from.append(code)

    columns: dict[str, Any] = {ORIGIN: digest(json.dumps(made_from), digits=10)}
    if subject is not None:
        columns["estimator"] = subject.estimator
        columns["momentum"] = subject.momentum
        columns["statistics_split"] = subject.split
    return columns | dict(zip(("split", "shift"), images, strict=False))


def _measure(
    run: Run,
    measurement: Measurement,
    subjects: list[Subject | None],
    steps: list[int],
    failures: Failures,
    images: tuple[str, ...],
) -> list[Path]:
    """Measure together and keep; if that fails, each estimator by itself. The files that hold the rows."""
    try:
        frame = measurement.measure(run, subjects, steps, *images)
    # These are about the network and its files, so that no estimator is to blame.
    except (UserError, Unreadable):
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        # With no line of the user's code in the traceback, an OSError comes from the machine, such as a full
        # disk, which other jobs would meet too.
        if isinstance(error, OSError) and not list_own_lines(error):
            raise

        estimators = list(dict.fromkeys(each.estimator if each else measurement.name for each in subjects))
        if len(estimators) == 1:
            failures[estimators[0]] = where_raised(error), traceback.format_exc()
            return []
        # One estimator has failed, and nobody knows which. Measured one by one, the others keep their rows.
        paths: list[Path] = []
        for name in estimators:
            of_estimator: list[Subject | None] = [each for each in subjects if each and each.estimator == name]
            paths += _measure(run, measurement, of_estimator, steps, failures, images)
        return paths

    if isinstance(frame, pd.DataFrame) and not len(frame):  # all rows may be left out, and then the columns are too
        frame = empty(measurement.table.schema)
    described = [_describe_rows(run, measurement, subject, images) for subject in subjects]
    fault = _fill_in(frame, run, measurement) or _find_other_rows(frame, described, steps)
    if not fault and digest_user_code(type(measurement)):
        fault = _find_missing_value(frame, measurement.table)
    if fault:
        failures[measurement.name] = fault, ""
        return []

    # Subjects of one estimator have the same origin, whatever their momentum or population.
    origins = {columns.get("estimator", ""): columns[ORIGIN] for columns in described}
    frame[ORIGIN] = frame["estimator"].map(origins) if "estimator" in frame else origins[""]
    # Named by what was asked for: if the same rows are measured again, they take the place of the old file.
    file_name = digest(repr((described, steps)), digits=10)
    path = run.folder / "measurements" / measurement.name / f"{file_name}.parquet"
    write_rows(path, measurement.table, frame)
    return [path]


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


def _find_other_rows(frame: pd.DataFrame, described: Sequence[dict[str, Any]], steps: list[int]) -> str:
    """Find rows that were not asked for, in words; empty: none."""
    other_steps = frame.loc[~frame["step"].isin(steps), "step"]
    if len(other_steps):
        return f"its rows have step {other_steps.iloc[0]}, which was not asked for: {', '.join(map(str, steps))} were"
    if "estimator" in frame:
        asked = [columns.get("estimator") for columns in described]
        others = frame.loc[~frame["estimator"].isin(asked), "estimator"]
        if len(others):
            return f"its rows have estimator {others.iloc[0]}, which was not asked for"
    return ""
