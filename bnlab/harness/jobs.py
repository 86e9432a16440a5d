"""The jobs of a sweep: train what is missing, measure, leave the rows in the experiment's folder."""

from __future__ import annotations

import json
import math
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bnlab.files import Unreadable, set_aside, write_text
from bnlab.harness import schema
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run, describe_environment
from bnlab.harness.artifacts.settings import GROUPS, Config, as_list, flatten, list_own_settings, network
from bnlab.harness.artifacts.training import steps_per_epoch
from bnlab.harness.artifacts.trying import try_training
from bnlab.harness.errors import JobError, TimeLimit, UserError, where_raised
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.cache import Failures, complete_rows
from bnlab.harness.measurements.estimates import VERSION
from bnlab.harness.measurements.subjects import find_subjects, try_estimators
from bnlab.harness.own import digest_of_own
from bnlab.harness.requests import Request, Selection, columns_path, list_missing, request_path, write_request
from bnlab.harness.setting_columns import describe_runs
from bnlab.memory import keep_freed_memory

_ALL_THREADS = torch.get_num_threads()
_UNTRAINED = {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan}


def list_waiting(configs: Iterable[Config]) -> list[Config]:
    """List the jobs that are not done: the names of files alone say that rows are missing, or a job has failed."""
    asked: dict[str, str] = {}
    waiting = []
    for config in configs:
        run = Run(config)
        kind = repr(replace(config, seed=0))  # jobs that differ in the seed alone ask for the same
        if kind not in asked:
            asked[kind] = _describe_asked(run)
        if not _has_rows(run, asked[kind]):
            waiting.append(config)
    return waiting


def _has_rows(run: Run, asked: str) -> bool:
    if not run.finished or list_failures(run):
        return False
    try:
        return not list_missing(_find_request(run, asked), Path(run.config.results))
    except Unreadable:  # it is written again
        return False


def _find_request(run: Run, asked: str) -> Path:
    """Where a job says what it asked for."""
    return request_path(_folder(run.config), run.id, asked)


def _describe_asked(run: Run, failed: Iterable[str] = ()) -> str:
    """Describe what a job asks for: what is measured, without the estimators that have failed."""
    config = run.config
    measurements = [find_measurement(name) for name in as_list(config.measurements)]
    own = [digest_of_own(type(each)) for each in measurements]
    measured = [
        [[s.estimator, s.momentum, s.split, s.code] for s in find_subjects(config)],
        [config.population, config.evaluate_at, config.accuracy_at, asdict(config.data), run.predictions],
        [[each.name for each in measurements], VERSION, sorted(failed), config.population_images],
    ]
    if any(own):
        measured.append(own)
    return json.dumps(measured, default=list)


def _folder(config: Config) -> Path:
    return Path(config.results, config.name)


def prepare(configs: list[Config]) -> None:
    """Before the first job: find what would stop them, and forget the failures of earlier sweeps.

    Raises:
        UserError: see `try_all`.
        OSError: the results folder cannot be written.
    """
    try_all(configs)
    _request_checkpoints(configs)
    for config in configs:
        _folder(config).mkdir(parents=True, exist_ok=True)
        _find_failure(Run(config)).unlink(missing_ok=True)
    for folder in {_folder(config) for config in configs}:
        _write_columns(folder)


def _write_columns(folder: Path) -> None:
    """Write what the columns of `runs` are, for reports, which do not see the components."""
    columns = describe_runs().schema
    schema.write_frame(columns_path(folder), schema.empty(columns), columns)


def try_all(configs: list[Config]) -> None:
    """Let each estimator average a short stream, and each network that is not trained yet make a first update.

    Raises:
        UserError: data is corrupt, a network does not fit into the memory, cannot take the data, fails in its update or
            has not what is to be measured, an estimator fails.
    """
    try_estimators(subject for config in configs for subject in find_subjects(config))
    jobs: dict[tuple[Any, ...], list[Run]] = {}
    for run in map(Run, configs):
        if not run.finished or run.config.model.is_own:  # whose layers may be called several times
            jobs.setdefault((run.config.data, run.config.model, run.config.norm), []).append(run)
    for runs in jobs.values():
        repeated = try_training(runs[0])
        if repeated and runs[0].has_trace:
            _explain_repeated(repeated, runs)


def _explain_repeated(calls: dict[str, int], runs: list[Run]) -> None:
    """Say what is measured of layers that a forward calls several times; UserError for what cannot be."""
    layers = ", ".join(f"{name} {count} times" for name, count in calls.items())
    for name in {name for run in runs for name in choose_measurements(run)}:
        if find_measurement(name).about_batches:
            raise UserError(
                f"measurements={name}: is about one batch of moments in a step, but a forward of "
                f"model={runs[0].config.model.name} calls layers several times ({layers}); measure gaps, evaluations"
            )
    print(
        f"model={runs[0].config.model.name}: a forward calls layers several times ({layers}): their statistics are of "
        "all calls together, so that gaps also hold what the calls differ in",
        flush=True,
    )


def list_needed_checkpoints(run: Run) -> list[int]:
    """List the steps whose checkpoints the measurements of the run's configuration read."""
    subjects = find_subjects(run.config)
    steps: set[int] = set()
    for name in choose_measurements(run):
        steps.update(find_measurement(name).reads(run, subjects))
    return sorted(steps)


def _request_checkpoints(configs: list[Config]) -> None:
    """Let the training of a network keep what all jobs on it read, not only the job that comes first."""
    jobs: dict[str, list[Run]] = {}
    for run in map(Run, configs):
        jobs.setdefault(run.id, []).append(run)
    for runs in jobs.values():
        each = [{*list_needed_checkpoints(run)} for run in runs]
        together = set().union(*each)
        if any(steps != together for steps in each) and not runs[0].is_complete(together):
            runs[0].request(together)


def list_failures(run: Run) -> list[Path]:
    """The file that says why a job on this network failed in the last sweep, if one has."""
    return [path for path in [_find_failure(run)] if path.exists()]


def _find_failure(run: Run) -> Path:
    return _folder(run.config) / "failures" / f"{run.id.replace('/', '-')}.txt"


def attempt(config: Config) -> None:
    """`execute`, but what fails is written down and does not end the sweep: status `failed`, with the reason.

    Raises:
        UserError, OSError: what the other jobs would meet too, such as a full disk.
    """
    try:
        execute(config)
    except (JobError, TimeLimit) as error:
        _record_failure(config, str(error))
    except (UserError, OSError):
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise either
        _record_failure(config, where_raised(error))


def _record_failure(config: Config, reason: str) -> None:
    """Print why a job failed, keep it with the traceback in a file, and write the run's row as failed."""
    run = Run(config)
    path = _find_failure(run)
    print(f"{run.id}: failed, {reason}\n  more in {path}", file=sys.stderr)
    write_text(path, f"{reason}\n\n{traceback.format_exc()}")
    _write_request(run, {}, ["this job"])


def execute(config: Config) -> None:
    """Train the configuration's network unless it is there, measure it, write down what was asked for.

    A network of which a file cannot be read is set aside, once, trained again and measured.

    Raises:
        JobError: an estimator fails, or training cannot be repeated; the rows of all other estimators are written.
    """
    prepare_process(config)
    with Run(config).lock:  # another job may want more checkpoints, and train the same network again
        try:
            _train_and_measure(Run(config))
        except Unreadable as error:
            set_aside(Run(config).folder, error, "the network is trained again")
            _train_and_measure(Run(config))
        finally:
            # Without this, processes that share an accelerator and have ended their jobs keep its memory.
            torch.cuda.empty_cache()


def _train_and_measure(run: Run) -> None:
    ensure_trained(run, list_needed_checkpoints)
    _name_left_out(run)
    subjects = find_subjects(run.config)
    failed = Failures()
    selections = {}
    for name in choose_measurements(run):
        selections[find_measurement(name).name] = complete_rows(run, name, subjects, failed)
    _write_request(run, selections, failed)
    if failed:
        error = JobError("; ".join(f"{name}: {reason}" for name, (reason, _) in failed.items()))
        error.add_note("\n".join(details for _, details in failed.values()))
        raise error


def choose_measurements(run: Run) -> list[str]:
    """Choose the measurements of the configuration that this network has rows of."""
    return [name for name in as_list(run.config.measurements) if find_measurement(name).covers(run.config.norm)]


def _name_left_out(run: Run) -> None:
    """Print which measurements of the configuration this network has no rows of."""
    measurements = [find_measurement(name) for name in as_list(run.config.measurements)]
    left_out = [each.name for each in measurements if not each.covers(run.config.norm)]
    if left_out:
        print(f"{run.id}: norm.name={run.config.norm.name}, so not measured: {', '.join(left_out)}", flush=True)


def prepare_process(config: Config) -> None:
    """Set what is the process's own: torch's threads, which an earlier job may have changed, malloc, tqdm's lock."""
    torch.set_num_threads(config.threads or _ALL_THREADS)
    keep_freed_memory()
    tqdm.set_lock(threading.RLock())  # its own is one of several processes, which a killed one leaves behind


def _write_request(run: Run, selections: Mapping[str, Selection], failed: Iterable[str]) -> None:
    """Write what the job asked for, with the run's row: `failed` if one of this sweep's jobs on it has."""
    # Two jobs on one network may end at once, and the second has to see what the first has left.
    with run.lock:
        request = Request(run.id, _describe_run(run), selections)
        write_request(_find_request(run, _describe_asked(run, failed)), request)


def _describe_run(run: Run) -> dict[str, object]:
    """Describe a network in a row of the table `runs`, with the settings of the user's own functions."""
    values = _find_values(run)
    row = {column: values.get(column) for column in describe_runs().columns}
    return row | list_own_settings(run.config)


def _find_values(run: Run) -> dict[str, object]:
    """Find all that is known of a network, by the names of the columns of `runs`."""
    config = run.config
    images = config.data.count_training()
    status = run.status or _UNTRAINED
    environment = run.environment if run.finished else describe_environment(run.device)
    return {
        **flatten(asdict(config)),
        **{group: getattr(config, group).name for group in GROUPS},
        **status,
        **environment,
        "run": run.id,
        "norm_batch_size": config.norm.count_images(config.batch_size),
        "data.images": config.data.count_used(),
        "lr_effective": config.optimizer.peak_lr(config.batch_size),
        "freeze_at": 1.0 if config.freeze_at is None else config.freeze_at,
        "freeze_with": "none" if config.freeze_at is None else config.freeze_with,
        "epochs": run.steps / steps_per_epoch(images, config.batch_size, config.last_batch),
        "steps": run.steps,
        **({"status": "failed"} if list_failures(run) else {}),
        "last_step": status["step"],
        "settings": json.dumps(network(config), sort_keys=True),
        "versions": json.dumps(environment["versions"], sort_keys=True),
    }
