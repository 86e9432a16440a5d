"""The rows of a measurement: read where they have been measured, measured and kept where they are missing.

results/runs/<hash>/seed_<k>/measurements/<table>/<digest>.parquet     what one call measured, and by what
"""

from __future__ import annotations

import errno
import json
import traceback
from typing import Any

import numpy as np
import pandas as pd

from bnlab.files import digest, set_aside
from bnlab.harness import schema
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.errors import UserError, list_own_lines, where_raised
from bnlab.harness.measurements import find_measurement, find_scope, frozen
from bnlab.harness.measurements.sources import Source, code_digest, source_digest

Failures = dict[str, tuple[str, str]]
"""What could not be measured: estimator or table → the reason in one line, and the traceback."""
_SUBJECT = ("source", "estimator", "momentum", "statistics_split")
_IMAGES = ("split", "shift")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what no estimator is to blame for


def complete_rows(run: Run, name: str, sources: list[Source], failures: Failures) -> pd.DataFrame:
    """The rows of the table `name` for these sources, with the columns of `schema.ORIGIN`; measures what is missing.

    A table of predictions has rows of each of `Run.predictions`, and is measured one after the other.

    Args:
        failures: estimators that are left out; gets those that fail now. The rows of all others are measured.
    """
    subjects = find_scope(name)(run, [s for s in sources if s.estimator not in failures])
    frames = [_read_kept(run, name)]
    wanted: set[tuple[Any, ...]] = set()
    present = set(_keys(frames[0]).itertuples(index=False, name=None))
    for options in _options(run, name):
        missing: dict[tuple[int, ...], list[Source | None]] = {}
        for subject, steps in subjects.items():
            keys = {step: (*_key(subject), *options.values(), step) for step in steps}
            wanted.update(keys.values())
            if absent := tuple(step for step in steps if keys[step] not in present):
                missing.setdefault(absent, []).append(subject)
        for absent, group in missing.items():  # what lacks the same steps is measured together
            frames += _measure(run, name, group, list(absent), failures, options)
    frame = pd.concat(frames, ignore_index=True)
    is_wanted = [key in wanted for key in _keys(frame).itertuples(index=False, name=None)]
    frame = frame[np.array(is_wanted, dtype=bool)]
    key = list(schema.TABLES[name].key)
    return frame.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def _options(run: Run, name: str) -> list[dict[str, str]]:
    """What the measurement is called with besides subjects and steps, once for each: the images, where it predicts."""
    if "split" not in schema.TABLES[name].types:
        return [{}]
    return [{"split": split, "shift": shift} for split, shift in run.predictions]


def _key(subject: Source | None) -> tuple[Any, ...]:
    """What rows are found by besides split, shift and step; None: a table that no estimator has a part in."""
    if subject is None:
        return ()
    return source_digest(subject), subject.estimator, subject.momentum, subject.split


def _keys(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `_key`, `split`, `shift` and `step`; no momentum is None."""
    found = frame[[column for column in (*_SUBJECT, *_IMAGES, "step") if column in frame]].astype(object)
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
    expected = {"run": run.id, **_origin(run, name, frame)}
    # Earlier files do not say: they are of the only network that this folder has had, and of images that are looked at.
    for column in [column for column in expected if column in ("training", "training_set", "test_set")]:
        frame[column] = frame[column].where(frame[column].notna(), expected[column])
    return frame[np.logical_and.reduce([frame[column] == value for column, value in expected.items()])]


def _origin(run: Run, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """The values of `schema.ORIGIN` that are the same for all estimators: one for all rows, or one for each.

    Images that are not predicted now have none.
    """
    found = {"version": frozen.VERSION, "training": run.training, "training_set": run.dataset.train.digest}
    if "split" in frame:
        digests = {images: run.digest_of(*images) for images in run.predictions}
        found["test_images"] = [digests.get(images) for images in zip(frame["split"], frame["shift"], strict=True)]
        found["test_set"] = [run.dataset.test_files if split == "test" else "" for split in frame["split"]]
    elif schema.TABLES[name].predicts:
        found |= {"test_images": run.dataset.test.digest, "test_set": run.dataset.test_files}
    return found


def _measure(
    run: Run, name: str, subjects: list[Source | None], steps: list[int], failures: Failures, options: dict[str, str]
) -> list[pd.DataFrame]:
    """Measure together and keep; if that fails, each estimator by itself."""
    try:
        frame = find_measurement(name)(run, subjects, steps, **options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        if isinstance(error, OSError) and (error.errno in _DISK or not list_own_lines(error)):
            raise
        estimators = list(dict.fromkeys(s.estimator if s else name for s in subjects))
        if len(estimators) == 1:
            failures[estimators[0]] = where_raised(error), traceback.format_exc()
            return []
        groups = ([s for s in subjects if s and s.estimator == estimator] for estimator in estimators)
        return [frame for group in groups for frame in _measure(run, name, [*group], steps, failures, options)]
    sources = {s.estimator: s for s in subjects if s}
    origin = _origin(run, name, frame)
    frame = frame.assign(**origin)
    if sources:
        frame["source"] = frame["estimator"].map({key: source_digest(s) for key, s in sources.items()})
        frame["code"] = frame["estimator"].map({key: code_digest(s) for key, s in sources.items()})
    origins = frame[[*origin]].drop_duplicates().to_json(orient="values")
    described = json.dumps([origins, [_key(s) for s in subjects], steps, list(frame)])
    path = run.folder / "measurements" / name / f"{digest(described, digits=10)}.parquet"
    return [schema.write_rows(path, name, frame)]
