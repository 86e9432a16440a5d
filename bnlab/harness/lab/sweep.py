"""bnlab sweep experiment=quickstart: train what is missing, measure, write tables."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import yaml

from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import keep_command, require_memory, run_command
from bnlab.harness.lab.registry import CONF, list_questions

_MULTIRUN = ("-m", "--multirun")
# Seconds of training up to which no processes are started, each of which takes a few seconds of a core to start.
_ALONE = 60.0

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bnlab.harness.artifacts.job_settings import Config
    from bnlab.harness.jobs import JobResult
    from bnlab.harness.lab.compose import Job, Launcher


def main(words: list[str]) -> int:
    """Check everything, then run the jobs; exit 2 for a user's mistake, 1 if a job failed."""
    usage = (CONF / "help.txt").read_text(encoding="utf-8").rstrip()  # waits neither for torch nor for Hydra
    resumes = "; the same command continues"
    return run_command(_sweep, words, usage, options=(*_MULTIRUN, "--cfg"), resumes=resumes)


def _sweep(words: list[str]) -> int:
    """Check all jobs, run them unless their rows are there, and write the tables; the exit code."""
    require_memory()
    parts = []
    for word in words:
        # Hydra takes `--cfg=job` as well as `--cfg job`.
        if word.startswith("--cfg="):
            parts += word.split("=", 1)
        else:
            parts.append(word)
    if "--cfg" in parts:
        index = parts.index("--cfg")
        kind = parts[index + 1 : index + 2]
        others = [*parts[:index], *parts[index + 2 :]]
        _print_settings(kind, others)
        return 0
    code, _ = plan_and_run(words)
    return code


def _print_settings(kind: list[str], words: list[str]) -> None:
    """Print the settings of the job that the words stand for, of several the first, as Hydra does for `--cfg job`."""
    if kind != ["job"]:
        raise UserError("--cfg: there is --cfg job, the settings of a job; see --help for what is left out of Hydra's")
    from bnlab.harness.lab.compose import plan_jobs

    settings = [word for word in words if word not in _MULTIRUN]
    jobs = plan_jobs(settings, len(settings) < len(words)).jobs
    if len(jobs) > 1:
        print(f"# of {len(jobs)} jobs: {jobs[0].heading}")
    print(yaml.safe_dump(asdict(jobs[0].config), sort_keys=False), end="")


def plan_and_run(words: list[str]) -> tuple[int, Config]:
    """Do what the words say; the exit code, and the settings of the first job."""
    started = time.perf_counter()
    from bnlab.harness.done import count_jobs
    from bnlab.harness.lab.compose import plan_jobs

    settings = [word for word in words if word not in _MULTIRUN]
    sweep = plan_jobs(settings, len(settings) < len(words))
    configs = sweep.configs
    first = configs[0]
    if not sweep.waiting:
        if first.dry_run or not first.quiet:
            print(f"{count_jobs(configs)}, all trained and measured")
        return (0 if first.dry_run else _finish(configs, [], words)), first

    # With torch, for which a sweep that has nothing to do does not wait.
    from bnlab.harness.jobs import begin_sweep, estimate_training, list_untrained, list_warnings, try_sweep
    from bnlab.harness.planning import outline, plan

    unfinished = [job.config for job in sweep.waiting]
    if sweep.launcher.is_cluster and not first.dry_run:
        # The machine that sends jobs to a cluster need not have the devices on which they run.
        unfinished = [replace(config, device="cpu") for config in unfinished]
    untrained = list_untrained(unfinished)
    if first.dry_run or not first.quiet:
        print(*outline(configs, untrained), sep="\n", flush=True)
    trials = try_sweep(configs, untrained)
    for warning in list_warnings(trials):
        print(warning, file=sys.stderr)
    training_seconds = sum(estimate_training(trials).values())
    launcher, alone_for = _choose_launcher(unfinished, words, sweep.launcher, training_seconds)
    if first.dry_run:
        processes = 1 if alone_for else _count_processes(unfinished, launcher)
        print(*plan(first, untrained, trials, processes), sep="\n")
        return 0, first

    # Files are written only from here on: a sweep that is refused leaves none.
    begin_sweep(configs)
    ordered = sorted(words, key=lambda word: not word.startswith("-"))  # options first
    command = shlex.join(["bnlab", "sweep", *ordered])
    keep_command(first.folder, command)
    results = _run(sweep.waiting, launcher, command, alone_for)
    _show(results, len(sweep.waiting), first.quiet)
    if not first.quiet:
        print(f"done in {time.perf_counter() - started:.0f} s")
    return _finish(configs, unfinished, words), first


def _run(jobs: Sequence[Job], launcher: Launcher, command: str, alone_for: float) -> Iterator[JobResult]:
    """Run the jobs: first in this process, for `alone_for` seconds, then as the launcher does."""
    from bnlab.harness.lab.launch import run_here, run_in_processes

    left = deque(jobs)
    if launcher.name == "basic":
        yield from run_here(left, command)
    elif launcher.name == "joblib":
        yield from run_here(left, command, alone_for)
        if left:
            yield from run_in_processes(left, launcher, command)
    else:
        from bnlab.harness.lab.cluster import run_on_cluster  # with submitit, which is an extra

        yield from run_on_cluster(jobs, launcher, command)


def _show(results: Iterator[JobResult], count: int, quiet: bool) -> None:
    """Show how far the jobs have come: by a bar where somebody watches, elsewhere by a line for each job."""
    from bnlab.common.bars import make_bar, print_above, shows_bars, ticking

    trained = measured = failed = 0
    # Jobs that run side by side end in no even rhythm, so that the time left is estimated from the mean of all of them.
    with make_bar(quiet, total=count, unit="job", smoothing=0) as bar, ticking(bar):
        for result in results:
            trained += bool(result.how_trained)
            measured += result.is_measured
            failed += not result.is_measured
            bar.set_postfix_str(f"{trained} trained, {measured} measured, {failed} failed", refresh=False)
            for line in result.problems:
                print_above(line, is_problem=True)
            lines = result.notes
            if not shows_bars():
                lines = [*lines, result.describe()]
            if not quiet:
                for line in lines:
                    print_above(line)
            bar.update()


def _choose_launcher(
    waiting: list[Config], words: list[str], launcher: Launcher, seconds: float
) -> tuple[Launcher, float]:
    """Choose the launcher: that of the words; without one processes, where several networks have work left.

    Args:
        waiting: the jobs that are not done.
        words: of the command line.
        launcher: that of the words, or Hydra's default.
        seconds: that training takes in one process.

    Returns:
        The launcher, and the seconds for which jobs run in this process before it takes over.
    """
    from joblib import cpu_count

    from bnlab.harness.artifacts.run import Run
    from bnlab.harness.lab.compose import Launcher

    if launcher.name.startswith("submitit") and find_spec("submitit") is None:
        raise UserError(f'hydra/launcher={launcher.name}: needs submitit; pip install "bnlab[slurm]"')
    # hydra/launcher=basic asks for one network after the other, although it is the default.
    is_chosen = launcher.name != "basic" or any("hydra/launcher" in word for word in words)
    runs = [Run(config) for config in waiting]
    # As many networks as there are cores may not fit into an accelerator's memory.
    has_accelerator = any(run.device.type != "cpu" for run in runs)
    if is_chosen or len({run.id for run in runs}) < 2 or cpu_count() < 2 or has_accelerator:
        return launcher, 0.0
    # How long measuring takes is not known beforehand, so that processes are started after all once this has passed.
    return Launcher("joblib", {"n_jobs": -1}), _ALONE if seconds < _ALONE else 0.0


def _count_processes(waiting: list[Config], launcher: Launcher) -> int:
    """Count the networks that are trained at a time, each on a core of its own."""
    from joblib import cpu_count, effective_n_jobs

    from bnlab.harness.artifacts.run import Run

    if launcher.name != "joblib":
        return 1
    networks = {Run(config).id for config in waiting}
    return max(1, min(effective_n_jobs(launcher.settings["n_jobs"]), cpu_count(), len(networks)))


def _finish(planned: list[Config], waiting: list[Config], words: list[str]) -> int:
    """Put the tables together and say what there is now, and which jobs that were run have failed; the exit code."""
    from bnlab.harness.artifacts.run_folder import RunFolder

    first = planned[0]
    rows, notes = _put_tables_together(first.folder)
    lines = [f"{first.folder}/tables/"] if rows else []  # each job may have been ended before it left anything
    lines += [f"  {name + '.parquet':20}{count:>9,} row{'' if count == 1 else 's'}" for name, count in rows.items()]
    lines += notes
    if not first.quiet:
        print(*lines, sep="\n")

    networks = {run.id: run for run in map(RunFolder, planned)}
    for name, run in networks.items():
        if run.status and run.status["status"] == "diverged":
            print(f"{name} diverged: it has no rows from then on")

    are_all_done = _say_unfinished(waiting)
    report = _name_report(first, words)
    if _has_figures(rows, report) and not first.quiet:
        print(f"next: bnlab report {shlex.join(report)}")
    return 0 if are_all_done else 1


def _put_tables_together(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Put the tables together unless that was done; count the rows of each that has some, and list the notes."""
    from bnlab.harness.records import read_summary

    summary = read_summary(folder)
    if summary is None:
        from bnlab.harness.reporting.tables import write_tables  # with pandas

        tables = write_tables(folder)
        summary = {"rows": {name: len(frame) for name, frame in tables.items()}, "notes": tables.notes}
    return {name: count for name, count in summary["rows"].items() if count}, summary["notes"]


def _say_unfinished(waiting: list[Config]) -> bool:
    """Say which jobs have failed, and which were ended from outside; return whether there is none of either."""
    from bnlab.harness.artifacts.run_folder import RunFolder
    from bnlab.harness.done import list_waiting, locate_failure_of

    failures = {locate_failure_of(RunFolder(config)) for config in waiting}
    failed = sorted(path for path in failures if path.exists())
    for path in failed:
        print(f"failed: {path}")
    left = map(RunFolder, list_waiting(waiting))
    missing = {run.id for run in left if not locate_failure_of(run).exists()}
    for name in sorted(missing):
        print(
            f"not finished: {name}, whose job was ended from outside, or found code that has changed since; the same "
            "command continues"
        )
    return not failed and not missing


def _has_figures(rows: Iterable[str], report: list[str]) -> bool:
    """Return whether a report of these tables would draw something: of a question any, else the usual ones."""
    from bnlab.harness.artifacts.job_settings import USUAL_TABLES

    measured = [name for name in rows if name != "runs"]
    is_of_question = report[0].startswith("experiment=")
    return any(is_of_question or name in USUAL_TABLES for name in measured)


def _name_report(config: Config, words: list[str]) -> list[str]:
    """Name the report of the tables in words: of the question that was swept, if there is one, and of its name."""
    experiments = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    questions = [name for name in (config.name, *experiments) if name in list_questions()]
    question = questions[0] if questions else ""
    report = []
    if question:
        report.append(f"experiment={question}")
    if config.name != question:
        report.append(f"name={config.name}")
    if config.results != "results":
        report.append(f"results={config.results}")
    return report
