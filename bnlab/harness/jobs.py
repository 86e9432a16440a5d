"""The jobs of a sweep: train what is missing, measure, leave the rows in the experiment's folder."""

from __future__ import annotations

import json
import math
import os
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count
from tqdm import tqdm

from bnlab.common.files import Unreadable, quarantine, write_text
from bnlab.harness.artifacts.job_settings import GROUPS, Config, as_list, list_own_settings
from bnlab.harness.artifacts.run import Run, describe_environment
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.config import check_device
from bnlab.harness.done import digest_asked, locate_failure_of
from bnlab.harness.errors import JobError, TimeLimit, UserError, where_raised
from bnlab.harness.measurements import Measurement, find_measurement
from bnlab.harness.measurements.rows import Failures, complete_rows
from bnlab.harness.measurements.subjects import list_subjects, try_estimators
from bnlab.harness.progress import Progress, remove_progress, say, say_problem, write_progress
from bnlab.harness.records import Part, write_record
from bnlab.harness.setting_columns import describe_runs
from bnlab.harness.trial import TrialResult, select_kind, try_training
from bnlab.harness.updates import steps_per_epoch
from bnlab.memory import keep_freed_memory, share_memory

_UNTRAINED = {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan}


def require_writable(results: Path, *folders: Path) -> None:
    """Raise UserError unless a folder of results can be written, and these in it; nothing is made here."""
    for folder in (results, results / "runs", *folders):
        # The lowest one that is there: the others are made in it. Not Path.exists, which raises where it may not look.
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        reason = "" if there.is_dir() else "is a file and no folder"
        # It takes both rights to make a file in a folder.
        if not reason and not os.access(there, os.W_OK | os.X_OK):
            reason = "cannot be written by you"
        if reason:
            raise UserError(f"results={results}: {there} {reason}; name another folder, as results=/tmp/results")


def prepare(configs: list[Config]) -> float:
    """Before the first job: find what would stop them, warn once, and forget the failures of earlier sweeps.

    Returns the seconds that training takes, see `try_networks`.

    UserError for an estimator that cannot average a short stream, a kind of network that cannot make an update, or
    networks that would be measured on two numbers of images under one name.
    """
    samples = {config.population_images for config in configs}
    if len(samples) > 1:
        raise UserError(
            f"population_images={','.join(map(str, samples))}: the tables of one name do not tell them apart; sweep "
            "each under a name= of its own, which trains nothing again"
        )
    require_writable(Path(configs[0].results), configs[0].folder)
    try_estimators(subject for config in configs for subject in list_subjects(config))
    runs = [Run(config) for config in configs]
    seconds, warnings = try_networks(runs)
    for warning in warnings:
        say_problem(warning)

    for run in runs:
        # What may refuse the sweep comes first: files are written only from here on.
        run.config.folder.mkdir(parents=True, exist_ok=True)
        locate_failure_of(run).unlink(missing_ok=True)
        remove_progress(run.folder)  # what a killed process has left
    return seconds


def try_networks(runs: Iterable[Run]) -> tuple[float, list[str]]:
    """Try two updates of each kind of network that is not trained, at each batch size.

    Returns the seconds that training all of them takes one after the other, NaN where a loss is not finite, and what to
    say beforehand, each once.

    Raises:
        UserError: a kind of network cannot make an update.
    """
    trials: dict[tuple[Any, ...], TrialResult] = {}
    seconds = 0.0
    untrained = {run.id: run for run in runs if not run.finished}
    for run in untrained.values():
        # Whether an update can be made depends on the kind alone, its time on the batch size as well.
        kind = (select_kind(run.config), run.config.batch_size)
        if kind not in trials:
            prepare_process(run.config)
            trials[kind] = try_training(run)
        seconds += run.steps * trials[kind].update
    warnings = [warning for trial in trials.values() for warning in trial.warnings]
    return seconds, list(dict.fromkeys(warnings))


def list_needed_checkpoints(run: Run) -> list[int]:
    """List the steps whose checkpoints the measurements of the run's configuration read."""
    subjects = list_subjects(run.config)
    steps: set[int] = set()
    for measurement in find_measurements(run.config):
        if measurement.covers(run.config.norm):
            steps.update(measurement.reads(run, subjects))
    return sorted(steps)


def attempt(config: Config, command: str) -> None:
    """`execute`, but what fails is written down as `failed`, unless other jobs would meet it too, as a full disk."""
    try:
        execute(config, command)
    # A JobError is a UserError, too, but leaves the other jobs alone.
    except (JobError, TimeLimit) as error:
        _record_failure(config, command, str(error))
    except (UserError, OSError):
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise either
        _record_failure(config, command, where_raised(error))


def _record_failure(config: Config, command: str, reason: str) -> None:
    """Print why a job failed, keep it with the traceback in a file, and write the run's row as failed."""
    run = Run(config)
    path = locate_failure_of(run)
    say_problem(f"{run.id}: failed, {reason}\n  more in {path}")
    write_text(path, f"{reason}\n\n{traceback.format_exc()}")
    _write_record(run, command)


def execute(config: Config, command: str = "") -> None:
    """Train the configuration's network unless it is there, measure it, write down what was asked for.

    A network of which a file cannot be read is set aside, once, trained again and measured. `command` is what measures
    the rows again, if they are of earlier code one day. JobError where an estimator fails; the rows of all others are
    written.
    """
    prepare_process(config)
    check_device(config.device)  # on a cluster not that of the command
    with Run(config).lock:  # another job may want more checkpoints, and train the same network again
        try:
            _train_and_measure(Run(config), command)
        except Unreadable as error:
            # Each Run is a new one, because a Run remembers what it has read.
            quarantine(Run(config).folder, error, "the network is trained again")
            _train_and_measure(Run(config), command)
        finally:
            remove_progress(Run(config).folder)
            # Without this, processes that share an accelerator and have ended their jobs keep its memory.
            torch.cuda.empty_cache()


def prepare_process(config: Config) -> None:
    """Set what is the process's own: torch's threads, which an earlier job may have changed, malloc, tqdm's lock."""
    torch.set_num_threads(config.threads)
    # Otherwise mapping and zeroing fresh memory takes a quarter of the time of a small network.
    keep_freed_memory()
    # The processes that a sweep has started all measure at once.
    is_one_of_several = parent_process() is not None
    share_memory(max(1, cpu_count() // config.threads) if is_one_of_several else 1)
    # tqdm's default lock is shared by processes, and one that is killed leaves it behind in the system.
    tqdm.set_lock(threading.RLock())


def _train_and_measure(run: Run, command: str) -> None:
    measurements = find_measurements(run.config)
    subjects = list_subjects(run.config)
    # Before the training, which may take hours: the user's code has just been imported, and its files may change.
    asked = digest_asked(run.config)
    ensure_trained(run, list_needed_checkpoints)

    chosen = [each for each in measurements if each.covers(run.config.norm)]
    left_out = [each.name for each in measurements if each not in chosen]
    if left_out:
        reason = f"{_describe_norm(run.config)}, so not measured: {', '.join(left_out)}"
        say(f"{run.id}: {reason}", run.config.quiet)

    failed = Failures()
    parts = {}
    for measurement in chosen:
        # Where the first update diverges, nothing is measured, and no batch was recorded.
        repeated = _find_repeated(run) if measurement.about_batches and run.measured_steps else ""
        if repeated:
            reason = f"is about one batch of moments in an update, but a forward calls {repeated} several times"
            failed[measurement.name] = reason, ""
        else:
            write_progress(run.folder, Progress(f"measuring {measurement.name}", share=1.0))
            parts[measurement.name] = complete_rows(run, measurement, subjects, failed)
    # The rows of all other estimators are asked for before the failure is raised.
    _write_record(run, command, parts, "" if failed else asked)
    if failed:
        error = JobError("; ".join(f"{name}: {reason}" for name, (reason, _) in failed.items()))
        error.add_note("\n".join(details for _, details in failed.values()))
        raise error


def _describe_norm(config: Config) -> str:
    """Name the norm, and say of one of the user's own what it lacks."""
    norm = config.norm
    if not norm.is_own:
        return f"norm.name={norm.name}"
    lacks = "" if norm.uses_batch else " has no batch norm whose averages could be measured"
    return f"norm={norm.name}{lacks}"


def _find_repeated(run: Run) -> str:
    """Find a layer of which an update recorded several moments; a table about batches would take each for one."""
    for name, layer in run.trace.layers.items():
        if len({*layer.steps}) < len(layer.steps):
            return name
    return ""


def find_measurements(config: Config) -> list[Measurement]:
    """Find the measurements that a job asks for; not every network has rows of all."""
    return [find_measurement(name) for name in as_list(config.measurements)]


def _write_record(
    run: Run, command: str, parts: Mapping[str, Mapping[str, Part]] | None = None, asked: str = ""
) -> None:
    """Write what the job asked for, with the run's row: `failed` if one of this sweep's jobs on it has.

    Args:
        run: the network.
        command: the sweep that asked.
        parts: the rows that are there.
        asked: digest of what was asked for; empty unless all of it is there, so that the job is done.
    """
    # Two jobs on one network may end at once, and the second has to see what the first has left.
    with run.lock:
        write_record(run.config.folder, run.id, _describe_run(run), command, asked, parts or {})


def _describe_run(run: Run) -> dict[str, object]:
    """Describe a network in a row of the table `runs`, with the settings of the user's own functions."""
    config = run.config
    settings = asdict(config)
    for group in GROUPS:
        for name, value in settings.pop(group).items():
            settings[f"{group}.{name}"] = value
        settings[group] = getattr(config, group).name
    if not config.task.is_own:
        del settings["task"]

    status = run.status or _UNTRAINED
    # Before the end of its training, a network may have no environment.json to read.
    environment = run.environment if run.finished else describe_environment(run.device)
    # `run.unseen` builds the network, which may be what has failed.
    unseen = run.unseen if run.finished else []
    images = config.data.count_training()
    # What comes last counts: values that were used take the place of settings that were left open.
    values = {
        **settings,
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
        "status": "failed" if locate_failure_of(run).exists() else status["status"],
        "last_step": status["step"],
        "unseen": ", ".join(unseen) or None,
        "settings": json.dumps(run.settings, sort_keys=True),
        "versions": json.dumps(environment["versions"], sort_keys=True),
    }
    # A setting that the network does not read is no column unless another network of the table reads it.
    row = {column: values[column] for column in describe_runs().columns if column in values}
    return row | list_own_settings(config, run.settings)
