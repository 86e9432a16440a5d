"""bnlab sweep experiment=quickstart: train what is missing, measure, write tables."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.lab.command import run_command

if TYPE_CHECKING:
    from bnlab.harness.artifacts.settings import Config
    from bnlab.lab.compose import Launcher, Sweep

_HYDRA_OPTIONS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion")


def main(words: list[str]) -> int:
    """Check everything, then let Hydra run the jobs; exit 2 for a user's mistake, 1 if a job failed."""
    return run_command(_sweep, words, options=("-m", "--multirun", "--config-dir", *_HYDRA_OPTIONS))


def _sweep(words: list[str]) -> int:
    """Let Hydra print what it can alone, such as `--help`, and run a sweep otherwise; the exit code."""
    words = _join_folders(words)
    if any(word.partition("=")[0] in _HYDRA_OPTIONS for word in words):
        from bnlab.lab.compose import print_with_hydra

        print_with_hydra(words)
        return 0
    return _run_missing(words)


def _join_folders(words: list[str]) -> list[str]:
    """Make `--config-dir FOLDER` one word, `--config-dir=FOLDER`."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--config-dir":
            joined[-1] = f"--config-dir={word}"
        else:
            joined.append(word)
    return joined


def _run_missing(words: list[str]) -> int:
    """Check all jobs, run them unless their rows are there, and write the tables."""
    started = time.perf_counter()
    from bnlab.lab.compose import plan_jobs

    multirun = bool({"-m", "--multirun"} & {*words})
    sweep = plan_jobs([word for word in words if word not in ("-m", "--multirun")], multirun)

    from bnlab.harness.jobs import list_waiting  # takes a second or two, in which a mistake has been answered
    from bnlab.harness.planning import name_small_batches, outline

    configs = sweep.configs
    waiting = list_waiting(configs)
    launcher = _choose_launcher(waiting, words, sweep.launcher)
    if configs[0].dry_run:
        return _estimate(configs, waiting, launcher)
    print(outline(configs, waiting), *name_small_batches(waiting), sep="\n", flush=True)
    if waiting:
        _run(sweep, waiting, launcher, words)
    return _finish(configs, waiting, words, started)


def _estimate(configs: list[Config], waiting: list[Config], launcher: Launcher) -> int:
    """Print what a sweep would train, and for how long; the exit code."""
    from bnlab.harness.artifacts.cores import count_cores
    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.planning import plan

    processes = 1
    if launcher.name == "joblib":
        networks = {Run(config).id for config in waiting}
        told = launcher.settings["n_jobs"]
        allowed = told if told > 0 else count_cores()
        processes = max(1, min(allowed, len(networks)))
    if launcher.name != "basic":  # as in the processes of a launcher
        waiting = [replace(config, threads=config.threads or 1) for config in waiting]
    print("\n".join(plan(configs, waiting, processes)))
    return 0


def _choose_launcher(waiting: list[Config], words: list[str], launcher: Launcher) -> Launcher:
    """Choose the launcher: that of the words; without one processes, where several networks have work left."""
    from bnlab.harness.planning import gains_from_processes
    from bnlab.lab.compose import Launcher

    is_chosen = launcher.name != "basic" or any("hydra/launcher" in word for word in words)
    if is_chosen or not gains_from_processes(waiting):
        return launcher
    return Launcher("joblib", {"n_jobs": -1})


def _run(sweep: Sweep, waiting: list[Config], launcher: Launcher, words: list[str]) -> None:
    """Run the jobs that are not done; the command is kept for the pages of reports."""
    from bnlab.files import write_text
    from bnlab.harness.jobs import prepare
    from bnlab.lab.launch import run_jobs

    prepare(sweep.configs)
    first = waiting[0]
    ordered = sorted(words, key=lambda word: not word.startswith("-"))  # options first
    command = shlex.join(["bnlab", "sweep", *ordered])
    write_text(Path(first.results, first.name, "command.txt"), f"{command}\n")

    is_waiting = {id(config) for config in waiting}
    jobs = [job for job in sweep.jobs if id(job.config) in is_waiting]
    run_jobs(jobs, launcher)


def _finish(planned: list[Config], waiting: list[Config], words: list[str], started: float) -> int:
    """Put the tables together and say what there is now.

    Args:
        planned: all jobs of the sweep.
        waiting: those that it has run; no other one can have failed.
        words: of the command line.
        started: when the sweep began, by `time.perf_counter`.

    Returns:
        The exit code.
    """
    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.jobs import list_failures
    from bnlab.harness.reporting import tables

    first = planned[0]
    folder = Path(first.results) / first.name
    found = tables.write_tables(folder, first.csv)
    print(f"done in {time.perf_counter() - started:.0f} s; {folder}/tables/")
    for name, frame in found.items():
        if len(frame):
            print(f"  {name + '.parquet':20}{len(frame):>9,} rows")

    networks = {Run(config).id for config in planned}
    runs = found["runs"]
    is_planned = runs["run"].isin(networks)
    is_diverged = runs["status"] == "diverged"
    for name in runs.loc[is_planned & is_diverged, "run"]:
        print(f"{name} diverged: its rows end there")

    failed: set[Path] = set()
    for config in waiting:
        failed.update(list_failures(Run(config)))
    for path in sorted(failed):
        print(f"failed: {path}")
    unfinished = _list_unfinished(waiting)
    for name in unfinished:
        print(f"not finished: {name}, whose job was ended from outside; the same command continues")
    print(_next(first, words))
    return 1 if failed or unfinished else 0


def _list_unfinished(jobs: list[Config]) -> list[str]:
    """List the networks of the jobs that have neither ended nor said why not."""
    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.jobs import list_failures, list_waiting

    runs = [Run(config) for config in list_waiting(jobs)]
    return sorted({run.id for run in runs if not list_failures(run)})


def _next(config: Config, words: list[str]) -> str:
    """Write the command that draws the tables: of the question that the sweep is one of, if there is one."""
    question = _find_question(config, words)
    told = []
    if question:
        told.append(f"experiment={question}")
    if config.name != question:
        told.append(f"name={config.name}")
    if config.results != "results":
        told.append(f"results={config.results}")
    return f"next: bnlab report {shlex.join(told)}"


def _find_question(config: Config, words: list[str]) -> str | None:
    """Find the question that the experiments of the command line measure."""
    from bnlab.harness.errors import UserError
    from bnlab.lab.catalogue import find_experiment, list_questions

    files = {word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiment=")}
    if not files:
        return None
    known = list_questions()
    if config.name in known:
        return config.name
    for name in known:  # its tables were given another name
        try:
            question = find_experiment(name)
        except UserError:  # another one cannot be imported
            continue
        if files & {*question.sweeps, name}:
            return name
    return None
