"""The rows of a measurement: read where they have been measured, measured and kept where they are missing.

results/runs/<hash>/seed_<k>/measurements/<table>/<digest>.parquet     what one call measured, and from what
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from bnlab.files import Unreadable, digest
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.errors import UserError, list_own_lines, where_raised
from bnlab.harness.measurements import frozen
from bnlab.harness.measurements.base import Measurement, find_measurement
from bnlab.harness.measurements.sources import Source, code_digest
from bnlab.harness.own import digest_of_own
from bnlab.harness.requests import Selection
from bnlab.harness.schema import ORIGIN, read_frame, write_rows

Failures = dict[str, tuple[str, str]]
"""Failures of measurements: estimator or table → the reason in one line, and the traceback."""
_SOUGHT = (ORIGIN, "estimator", "momentum", "statistics_split", "split", "shift", "step")


def complete_rows(run: Run, name: str, sources: list[Source], failures: Failures) -> Selection:
    """Select the rows of a measurement for these sources; what is missing is measured and kept with the network.

    A table of predictions is measured for each of `Run.predictions`, one after the other.

    Args:
        run: the network.
        name: of the measurement, as `find_measurement` takes it.
        sources: where statistics come from.
        failures: estimators that are left out; gets those that fail now. The rows of all others are measured.
    """
    measurement = find_measurement(name)
    subjects = measurement.scope(run, [s for s in sources if s.estimator not in failures])
    folder = run.folder / "measurements" / measurement.name
    held = {path.name: _read_keys(path) for path in sorted(folder.glob("*.parquet"))}
    present = {key for keys in held.values() for key in keys}

    selected = []
    for images in run.predictions if measurement.predicts else [()]:
        missing: dict[tuple[int, ...], list[Source | None]] = {}
        for subject, steps in subjects.items():
            columns = _describe_subject(run, measurement, subject, images)
            selected.append((columns, list(steps)))
            absent = tuple(step for step in steps if (*columns.values(), step) not in present)
            if absent:
                missing.setdefault(absent, []).append(subject)
        for absent_steps, group in missing.items():  # what lacks the same steps is measured together
            for path in _measure(run, measurement, group, [*absent_steps], failures, images):
                held[path.name] = _read_keys(path)

    wanted = {(*columns.values(), step) for columns, steps in selected for step in steps}
    return Selection([file for file, keys in held.items() if keys & wanted], selected)


def _describe_subject(
    run: Run, measurement: Measurement, subject: Source | None, images: tuple[str, ...]
) -> dict[str, Any]:
    """The columns that all rows of a subject agree in, with their values, in the order of `_SOUGHT`."""
    columns: dict[str, Any] = {ORIGIN: _find_origin(run, measurement, subject, *images)}
    if subject is not None:
        columns |= {
            "estimator": subject.estimator,
            "momentum": subject.momentum,
            "statistics_split": subject.split,
        }
    return columns | dict(zip(("split", "shift"), images, strict=False))


def _read_keys(path: Path) -> set[tuple[Any, ...]]:
    """Key by which the rows of a file are found; no momentum is None."""
    frame = read_frame(path)
    found = frame[[column for column in _SOUGHT if column in frame]].astype(object)
    return set(found.where(found.notna(), None).itertuples(index=False, name=None))


def _find_origin(
    run: Run, measurement: Measurement, subject: Source | None, split: str = "test", shift: str = "none"
) -> str:
    """A digest of all that rows depend on: version, a user's own code, images, training."""
    predicted = run.digest_of(split, shift) if "accuracy" in measurement.table.columns else ""
    code = code_digest(subject) if subject else ""
    made_from = [frozen.VERSION, code, run.dataset.train.digest, predicted, run.training]
    if run.config.population_images is not None:
        made_from.append(run.config.population_images)
    own = digest_of_own(type(measurement))
    if own:
        made_from.append(own)
    return digest(json.dumps(made_from), digits=10)


def _measure(
    run: Run,
    measurement: Measurement,
    subjects: list[Source | None],
    steps: list[int],
    failures: Failures,
    images: tuple[str, ...],
) -> list[Path]:
    """Measure together and keep; if that fails, each estimator by itself. The files that hold the rows."""
    try:
        frame = measurement.measure(run, subjects, steps, *images)  # type: ignore[call-arg]  # without `predicts` there are none
    except (UserError, Unreadable):
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        if isinstance(error, OSError) and not list_own_lines(error):  # a full disk, say
            raise
        estimators = list(dict.fromkeys(s.estimator if s else measurement.name for s in subjects))
        if len(estimators) == 1:
            failures[estimators[0]] = where_raised(error), traceback.format_exc()
            return []
        groups = ([s for s in subjects if s and s.estimator == estimator] for estimator in estimators)
        return [path for group in groups for path in _measure(run, measurement, [*group], steps, failures, images)]
    origins = {s.estimator if s else "": _find_origin(run, measurement, s, *images) for s in subjects}
    frame[ORIGIN] = frame["estimator"].map(origins) if "estimator" in frame else origins[""]
    measured = digest(repr((origins, subjects, steps, images)), digits=10)
    path = run.folder / "measurements" / measurement.name / f"{measured}.parquet"
    write_rows(path, measurement.table, frame)
    return [path]
