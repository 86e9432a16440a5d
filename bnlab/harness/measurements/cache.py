"""The rows of a measurement: read where they have been measured, measured and kept where they are missing.

results/runs/<hash>/seed_<k>/measurements/<table>/<digest>.parquet     what one call measured, and from what
"""

from __future__ import annotations

import json
import traceback
from typing import Any

import numpy as np
import pandas as pd

from bnlab.files import Unreadable, digest
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.errors import UserError, list_own_lines, where_raised
from bnlab.harness.measurements import frozen
from bnlab.harness.measurements.base import Measurement, list_measurements
from bnlab.harness.measurements.sources import Source, code_digest
from bnlab.harness.schema import empty, read_frame, write_rows

Failures = dict[str, tuple[str, str]]
"""What could not be measured: estimator or table → the reason in one line, and the traceback."""
_SOUGHT = ("origin", "estimator", "momentum", "statistics_split", "split", "shift", "step")


def complete_rows(run: Run, name: str, sources: list[Source], failures: Failures) -> pd.DataFrame:
    """The rows of the table `name` for these sources, with their `origin`; measures what is missing.

    A table of predictions is measured for each of `Run.predictions`, one after the other.

    Args:
        failures: estimators that are left out; gets those that fail now. The rows of all others are measured.
    """
    measurement = list_measurements()[name]
    subjects = measurement.scope(run, [s for s in sources if s.estimator not in failures])
    schema, folder = measurement.table.part, run.folder / "measurements" / name
    frames = [empty(schema), *(read_frame(path, schema) for path in sorted(folder.glob("*.parquet")))]
    present, wanted = set(_keys(pd.concat(frames))), set()
    for images in run.predictions if measurement.predicts else [()]:
        missing: dict[tuple[int, ...], list[Source | None]] = {}
        for subject, steps in subjects.items():
            source = () if subject is None else (subject.estimator, subject.momentum, subject.split)
            begin = (_find_origin(run, measurement, subject, *images), *source, *images)
            wanted |= {(*begin, step) for step in steps}
            if absent := tuple(step for step in steps if (*begin, step) not in present):
                missing.setdefault(absent, []).append(subject)
        for absent_steps, group in missing.items():  # what lacks the same steps is measured together
            frames += _measure(run, measurement, group, [*absent_steps], failures, images)
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[np.array([key in wanted for key in _keys(frame)], dtype=bool)]
    key = list(measurement.table.key)
    return frame.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def _keys(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """What rows are found by; no momentum is None."""
    found = frame[[column for column in _SOUGHT if column in frame]].astype(object)
    return list(found.where(found.notna(), None).itertuples(index=False, name=None))


def _find_origin(
    run: Run, measurement: Measurement, subject: Source | None, split: str = "test", shift: str = "none"
) -> str:
    """A digest of all that rows depend on: version, a user's own code, images, training."""
    predicted = run.digest_of(split, shift) if "accuracy" in measurement.table.columns else ""
    code = code_digest(subject) if subject else ""
    made_from = [frozen.VERSION, code, run.dataset.train.digest, predicted, run.training]
    made_from += [run.config.population_images] * (run.config.population_images is not None)
    return digest(json.dumps(made_from), digits=10)


def _measure(
    run: Run,
    measurement: Measurement,
    subjects: list[Source | None],
    steps: list[int],
    failures: Failures,
    images: tuple[str, ...],
) -> list[pd.DataFrame]:
    """Measure together and keep; if that fails, each estimator by itself."""
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
        return [frame for group in groups for frame in _measure(run, measurement, [*group], steps, failures, images)]
    origins = {s.estimator if s else "": _find_origin(run, measurement, s, *images) for s in subjects}
    frame["origin"] = frame["estimator"].map(origins) if "estimator" in frame else origins[""]
    measured = digest(repr((origins, subjects, steps, images)), digits=10)
    path = run.folder / "measurements" / measurement.name / f"{measured}.parquet"
    return [write_rows(path, measurement.table, frame)]
