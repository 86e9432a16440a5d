"""The rows of a measurement: read where they have been measured, measured and kept where they are missing.

results/runs/<hash>/seed_<k>/measurements/<table>/<digest>.parquet     what one call measured, and by what
"""

from __future__ import annotations

import json
import traceback
from typing import Any

import numpy as np
import pandas as pd

from bnlab.files import digest, set_aside
from bnlab.harness import schema
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.measurements import frozen, measurement, scope
from bnlab.harness.measurements.sources import Source, source_digest

Failures = dict[str, tuple[str, str]]
"""What could not be measured: estimator or table → the reason in one line, and the traceback."""
_SUBJECT = ("source", "estimator", "momentum", "statistics_split")


def complete_rows(run: Run, name: str, sources: list[Source], failures: Failures) -> pd.DataFrame:
    """The rows of the table `name` for these sources, with the columns of `schema.ORIGIN`; measures what is missing.

    Args:
        failures: estimators that are left out; gets those that fail now. The rows of all others are measured.
    """
    subjects = scope(name)(run, [s for s in sources if s.estimator not in failures])
    frames = [_read_kept(run, name)]
    present = set(_keys(frames[0]).itertuples(index=False, name=None))
    missing: dict[tuple[int, ...], list[Source | None]] = {}
    for subject, steps in subjects.items():
        absent = tuple(step for step in steps if (*_key(subject), step) not in present)
        if absent:
            missing.setdefault(absent, []).append(subject)
    for absent, group in missing.items():  # what lacks the same steps is measured together
        frames += _measure(run, name, group, list(absent), failures)
    frame = pd.concat(frames, ignore_index=True)
    wanted = {(*_key(subject), step) for subject, steps in subjects.items() for step in steps}
    is_wanted = [key in wanted for key in _keys(frame).itertuples(index=False, name=None)]
    frame = frame[np.array(is_wanted, dtype=bool)]
    key = list(schema.TABLES[name].key)
    return frame.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def _key(subject: Source | None) -> tuple[Any, ...]:
    """What rows are found by besides their step; None: a table that no estimator has a part in."""
    if subject is None:
        return ()
    return source_digest(subject), subject.estimator, subject.momentum, subject.split


def _keys(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `_key`, and `step`; no momentum is None."""
    found = frame[[column for column in (*_SUBJECT, "step") if column in frame]].astype(object)
    return found.where(found.notna(), None)


def _read_kept(run: Run, name: str) -> pd.DataFrame:
    """All rows that are there, as they would be measured today; damaged files are set aside."""
    frames = [schema.empty_part(name)]
    for path in sorted((run.folder / "measurements" / name).glob("*.parquet")):
        try:
            frames.append(schema.read_part(name, path))
        except ValueError as error:
            set_aside(path, error, "measured again")
    frame = pd.concat(frames, ignore_index=True)
    frame["training"] = frame["training"].fillna(
        run.training
    )  # it was not noted before; the folder has had one network
    for column, value in {"run": run.id, **_origin(run)}.items():
        if column in frame:
            frame = frame[frame[column] == value]
    return frame


def _origin(run: Run) -> dict[str, Any]:
    """The values of `schema.ORIGIN` that are the same for all estimators."""
    return {"version": frozen.VERSION, "test_images": run.dataset.test.digest, "training": run.training}


def _measure(
    run: Run, name: str, subjects: list[Source | None], steps: list[int], failures: Failures
) -> list[pd.DataFrame]:
    """Measure together and keep; if that fails, each estimator by itself."""
    try:
        frame = measurement(name)(run, subjects, steps)
    except (UserError, OSError):
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        estimators = list(dict.fromkeys(s.estimator if s else name for s in subjects))
        if len(estimators) == 1:
            failures[estimators[0]] = where_raised(error), traceback.format_exc()
            return []
        groups = ([s for s in subjects if s and s.estimator == estimator] for estimator in estimators)
        return [frame for group in groups for frame in _measure(run, name, [*group], steps, failures)]
    sources = {s.estimator: source_digest(s) for s in subjects if s}
    for column, value in _origin(run).items():
        frame[column] = value
    if sources:
        frame["source"] = frame["estimator"].map(sources)
    described = json.dumps([_origin(run), [_key(s) for s in subjects], steps, list(frame)])
    path = run.folder / "measurements" / name / f"{digest(described, digits=10)}.parquet"
    return [schema.write_rows(path, name, frame)]
