"""The jobs of a sweep: train what is missing, measure it, record in the sweep's folder which rows were asked for."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count

from bnlab.common.bars import make_bar
from bnlab.common.files import Unreadable, quarantine, write_text
from bnlab.common.printing import format_seconds
from bnlab.harness.artifacts.job_settings import Config, as_list
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.checks import check_device
from bnlab.harness.done import digest_asked, is_trained, locate_failure_of
from bnlab.harness.errors import JobError, TimeLimit, UserError, where_raised
from bnlab.harness.measurements import Measurement, find_measurement
from bnlab.harness.measurements.rows import Failures, complete_rows
from bnlab.harness.measurements.subjects import list_subjects, try_estimators
from bnlab.harness.records import Part, write_record
from bnlab.harness.run_row import UNTRAINED, describe_run
from bnlab.harness.trial import TrialResult, select_tried, try_training
from bnlab.memory import divide_memory, keep_freed_memory

_LOG = logging.getLogger(__name__)


@dataclass
class JobResult:
    """What happened in a job. A job prints nothing, because others may run beside it: the sweep does.

    Attributes:
        heading: what sets the job apart from others of its sweep; empty for a single job.
        network: its name.
        how_trained: how the network was trained in this job; empty if it was there.
        is_measured: whether all rows that the job asks for are there.
        notes: further lines, which a quiet sweep leaves out.
        problems: lines for standard error.
    """

    heading: str
    network: str = ""
    how_trained: str = ""
    is_measured: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Say in a line what happened."""
        end = "measured" if self.is_measured else "failed"
        if self.how_trained:
            end = f"{self.how_trained}, {end}"
        return "  ".join(part for part in (self.heading, self.network, end) if part)


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


def try_sweep(configs: Sequence[Config], untrained: Iterable[Run]) -> dict[Run, TrialResult]:
    """Find out before the first job what would stop a sweep; nothing is written.

    Args:
        configs: all jobs.
        untrained: the networks that are not trained.

    Returns:
        What a trial of its kind says of each network that is not trained.

    Raises:
        UserError: an estimator cannot average a short stream, a kind of network cannot make an update, the folder
            cannot be written, or networks would be measured on two numbers of images under one name.
    """
    samples = {config.population_images for config in configs}
    if len(samples) > 1:
        raise UserError(
            f"population_images={','.join(map(str, samples))}: the tables of one name do not tell them apart; sweep "
            "each under a name= of its own, which trains nothing again"
        )
    require_writable(Path(configs[0].results), configs[0].folder)
    try_estimators(subject for config in configs for subject in list_subjects(config))
    return try_networks(untrained)


def begin_sweep(configs: Iterable[Config]) -> None:
    """Make the folder of a sweep, and forget the failures of earlier ones."""
    for config in configs:
        config.folder.mkdir(parents=True, exist_ok=True)
        locate_failure_of(Run(config)).unlink(missing_ok=True)


def list_untrained(configs: Iterable[Config]) -> dict[Run, set[int]]:
    """List the networks of jobs that are not trained with all checkpoints that the jobs read, with their steps."""
    runs: dict[str, Run] = {}
    needed: dict[str, set[int]] = {}
    for run in map(Run, configs):
        # Several jobs may measure one network, which then needs the checkpoints of all of them.
        runs.setdefault(run.id, run)
        steps = needed.setdefault(run.id, set())
        # A job sets a network with a damaged file aside, and trains it again.
        with suppress(Unreadable):
            steps.update(list_needed_checkpoints(run))
    return {run: needed[name] for name, run in runs.items() if not is_trained(run, needed[name])}


def try_networks(runs: Iterable[Run]) -> dict[Run, TrialResult]:
    """Try some updates of each kind of network, at each batch size; the result of each network's kind.

    UserError if a kind of network cannot make an update.
    """
    trials: dict[tuple[Any, ...], TrialResult] = {}
    results = {}
    for run in runs:
        # Whether an update can be made depends on the kind alone, its time on the batch size as well.
        kind = (select_tried(run.config), run.config.batch_size)
        if kind not in trials:
            prepare_process(run.config)
            trials[kind] = try_training(run)
        results[run] = trials[kind]
    return results


def list_warnings(trials: Mapping[Run, TrialResult]) -> list[str]:
    """List what there is to say of networks before they are trained, each once."""
    return list(dict.fromkeys(warning for trial in trials.values() for warning in trial.warnings))


def estimate_training(trials: Mapping[Run, TrialResult]) -> dict[Run, float]:
    """Estimate the seconds that each network has left to train, from the time of one update."""
    seconds = {}
    for run, trial in trials.items():
        step = 0
        # A killed training goes on from its state, unless that is damaged.
        with suppress(Unreadable):
            step = run.read_step()
        seconds[run] = (run.steps - step) * trial.update
    return seconds


def list_needed_checkpoints(run: Run) -> list[int]:
    """List the steps whose checkpoints the measurements of the run's configuration read."""
    subjects = list_subjects(run.config)
    steps: set[int] = set()
    for measurement in find_measurements(run.config):
        if measurement.covers(run.config.norm):
            steps.update(measurement.reads(run, subjects))
    return sorted(steps)


def attempt(config: Config, heading: str, command: str) -> JobResult:
    """`execute`, but what fails is written down as `failed`, unless other jobs would meet it too, as a full disk."""
    result = JobResult(heading, Run(config).id)
    with _listen(result):
        try:
            execute(config, command, result)
            result.is_measured = True
        # A JobError is a UserError, too, but leaves the other jobs alone.
        except (JobError, TimeLimit) as error:
            _record_failure(config, command, str(error))
        except (UserError, OSError):
            raise
        except (Exception, SystemExit) as error:  # a user's code may raise either
            _record_failure(config, command, where_raised(error))
    return result


class _Listener(logging.Handler):
    """Keeps what is logged in a job for its result."""

    def __init__(self, result: JobResult) -> None:
        super().__init__()
        self._result = result

    def emit(self, record: logging.LogRecord) -> None:
        lines = self._result.problems if record.levelno >= logging.WARNING else self._result.notes
        lines.append(record.getMessage())


@contextmanager
def _listen(result: JobResult) -> Iterator[None]:
    """Keep in the result what bnlab logs in the block, which then is printed nowhere else."""
    logger = logging.getLogger("bnlab")
    listener = _Listener(result)
    before = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = before


def _record_failure(config: Config, command: str, reason: str) -> None:
    """Say why a job failed, keep it with the traceback in a file, and write the run's row as failed."""
    run = Run(config)
    path = locate_failure_of(run)
    _LOG.warning(f"{run.id}: failed, {reason}\n  more in {path}")
    write_text(path, f"{reason}\n\n{traceback.format_exc()}")
    _write_record(run, command)


def execute(config: Config, command: str = "", result: JobResult | None = None) -> None:
    """Train the configuration's network unless it is there, measure it, write down what was asked for.

    A network of which a file cannot be read is set aside, once, trained again and measured. JobError where an estimator
    fails; the rows of all others are written.

    Args:
        config: the job.
        command: what measures the rows again, if they are of earlier code one day.
        result: records whether the network was trained.
    """
    prepare_process(config)
    check_device(config.device)  # on a cluster not that of the command
    result = result or JobResult("")
    with Run(config).lock:  # another job may want more checkpoints, and train the same network again
        try:
            _train_and_measure(Run(config), command, result)
        except Unreadable as error:
            # Each Run is a new one, because a Run remembers what it has read.
            quarantine(Run(config).folder, error, "the network is trained again")
            _train_and_measure(Run(config), command, result)
        finally:
            # Without this, processes that share an accelerator and have ended their jobs keep its memory.
            torch.cuda.empty_cache()


def prepare_process(config: Config) -> None:
    """Set what is the process's own: torch's threads, which an earlier job may have changed, and malloc."""
    torch.set_num_threads(config.threads)
    # Otherwise mapping and zeroing fresh memory takes a quarter of the time of a small network.
    keep_freed_memory()
    # The processes that a sweep has started all measure at once.
    is_one_of_several = parent_process() is not None
    divide_memory(max(1, cpu_count() // config.threads) if is_one_of_several else 1)


def _train_and_measure(run: Run, command: str, result: JobResult) -> None:
    measurements = find_measurements(run.config)
    subjects = list_subjects(run.config)
    # Before the training, which may take hours: the user's code has just been imported, and its files may change.
    asked = digest_asked(run.config)
    if ensure_trained(run, list_needed_checkpoints):
        result.how_trained = _describe_training(run)

    chosen = [each for each in measurements if each.covers(run.config.norm)]
    left_out = [each.name for each in measurements if each not in chosen]
    if left_out:
        _LOG.info(f"{run.id}: {_describe_norm(run.config)}, so not measured: {', '.join(left_out)}")

    failed = Failures()
    parts = {}
    with make_bar(run.config.quiet, is_inner=True, total=len(chosen), unit="table") as bar:
        for measurement in chosen:
            bar.set_description(f"{run.id}, {measurement.name}")
            # Where the first update diverges, nothing is measured, and no batch was recorded.
            repeated = _find_repeated(run) if measurement.about_batches and run.measured_steps else ""
            if repeated:
                reason = f"is about one batch of moments in an update, but a forward calls {repeated} several times"
                failed[measurement.name] = reason, ""
            else:
                parts[measurement.name] = complete_rows(run, measurement, subjects, failed)
            bar.update()
    # The rows of all other estimators are asked for before the failure is raised.
    _write_record(run, command, parts, "" if failed else asked)
    if failed:
        error = JobError("; ".join(f"{name}: {reason}" for name, (reason, _) in failed.items()))
        error.add_note("\n".join(details for _, details in failed.values()))
        raise error


def _describe_training(run: Run) -> str:
    """Say how long a training took, or where it ended."""
    status = run.status or UNTRAINED
    if status["status"] == "diverged":
        return f"diverged at step {status['step']:,}"
    return f"trained in {format_seconds(status['train_seconds'])}, loss {status['final_loss']:.3f}"


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
        write_record(run.config.folder, run.id, describe_run(run), command, asked, parts or {})
