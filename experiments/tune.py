"""python -m experiments.tune experiment=ground: train networks at learning rates that are tuned, cell by cell."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from joblib import cpu_count

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import list_waiting, prepare
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.compose import Job, Launcher, plan_jobs
from bnlab.harness.lab.launch import run_jobs
from bnlab.harness.lab.registry import REFERENCE, find_experiment, list_questions
from bnlab.harness.lab.watching import Display, NetworkCount
from bnlab.harness.planning import plan
from bnlab.harness.reporting.tables import load, write_tables
from experiments.tuning import FIRST_RATES, TUNING_SEEDS, pick_rate, validate

USAGE = """usage: python -m experiments.tune experiment=NAME [key=value ...]

A cell is a set of networks that differ only in learning rate and seed. For each cell: train seeds 100 to 102 at rates a
factor of four apart, until the best one by validation under exact statistics lies between two others; then train the
experiment's own seeds at that rate. Networks in results/reference count as trained, unless the experiment is
measured again there (results=results/reference).

dry_run=true                 print what each cell lacks and how long that trains
batch_size=4                 restrict the cells by a setting
experiment=ground_onecycle   tune one sweep of a question"""


class Lack(NamedTuple):
    """The jobs that a cell still lacks.

    Attributes:
        description: one line for the user.
        jobs: those that can run now.
        later: those that follow at the best rate, here at a guessed one, to estimate the time of training.
    """

    description: str
    jobs: list[Config]
    later: list[Config]


def main() -> int:
    """Run the command; its exit code, 2 for a user's mistake."""
    return run_command(_tune, sys.argv[1:], USAGE, resumes="; the same command continues")


def _tune(words: list[str]) -> int:
    """Train what the cells lack, or print what that is; the exit code."""

    cells = _list_cells(words)
    first = cells[0][0]
    folder = Path(first.results) / first.name

    # A network that has failed is not tried again, or the loop would never end.
    attempted: set[str] = set()
    # A round trains all that can be trained at once. What a cell lacks next depends on the accuracies of this
    # round, so that each round reads the tables again.
    while True:
        committed, validated = _read_trained(folder)
        lacks = [list_lacking(cell, committed, validated) for cell in cells]
        for cell, lack in zip(cells, lacks, strict=True):
            if lack.jobs or first.dry_run:
                print(f"{_describe_cell(cell)}: {lack.description}", flush=True)

        missing = [job for lack in lacks for job in lack.jobs]
        if first.dry_run:
            later = [job for lack in lacks for job in lack.later]
            outlook = [*missing, *later]
            if outlook:
                print("\n".join(plan(outlook, outlook, cpu_count())))
            return 0
        if not missing:
            report = f"bnlab report experiment={first.name}"
            if committed:
                part = shlex.quote(first.results)
                # Networks that are committed were not trained again, so that the tables of this folder alone
                # are incomplete.
                report = f"python -m experiments.reference {part} && {report} results=results/reference"
            print(f"nothing is missing; next: {report}")
            return 0

        # A job that fails says why, and its network stays missing.
        names = {Run(job).id for job in missing}
        failed = names & attempted
        if failed:
            print(f"{len(failed)} networks have failed; see {folder}/failures", file=sys.stderr)
            return 1
        attempted |= names
        prepare(missing)
        with Display(first.quiet) as display:
            display.show(NetworkCount(missing).describe)
            command = shlex.join(["python", "-m", "experiments.tune", *words])
            run_jobs([Job(config, heading="") for config in missing], Launcher("joblib", {"n_jobs": -1}), command)
        write_tables(folder)


def _list_cells(words: list[str]) -> list[list[Config]]:
    """List the cells of the sweeps that the words name: of each the jobs that test it, one a seed, at any rate."""
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    others = [word for word in words if not word.startswith("experiment=")]
    if len(names) != 1:
        raise UserError("name one experiment, as experiment=ground")
    # A question may be measured by several sweeps, each with a file of its own in conf/experiment.
    sweeps = tuple(names)
    if names[0] in list_questions():
        sweeps = find_experiment(names[0]).sweeps or sweeps

    cells: dict[str, list[Config]] = {}
    for sweep in sweeps:
        for config in plan_jobs([f"experiment={sweep}", *others], multirun=True).configs:
            # A cell is a job without its seed; its rate does not matter yet.
            kind = repr(replace(config, seed=0))
            cells.setdefault(kind, []).append(config)
    return list(cells.values())


def _describe_cell(cell: Sequence[Config]) -> str:
    """Say what the networks of a cell have in common."""
    config = cell[0]
    average = config.norm.get_training_average()
    norm = config.norm.name
    if average is not None:
        norm = f"{norm}({average})"
    return f"{norm}, batch size {config.batch_size}, {config.optimizer.schedule}, {config.steps} updates"


def _read_trained(folder: Path) -> tuple[set[str], dict[str, float]]:
    """Read what has been trained of an experiment, in its folder of results and in the committed one.

    Returns:
        The names of the networks in results/reference; by network of a tuning seed, there or here, its validation
        accuracy under exact statistics, 0 to 1.
    """
    committed: set[str] = set()
    validated: dict[str, float] = {}
    folders = [REFERENCE, folder.parent]
    # Committed tables have no records. A folder with records has been swept, and its tables hold what was measured
    # there.
    if folder.parent.resolve() == REFERENCE:  # all is measured again: tables that were committed do not count
        folders = [folder.parent] if (folder / "jobs").is_dir() else []
    for results in folders:
        try:
            tables = load(folder.name, results)
        except UserError:  # nothing has been measured there
            continue
        if not {"runs", "evaluations"} <= {*tables}:
            continue
        has_ended = tables["runs"]["status"].isin(["finished", "diverged"])
        # Of networks in this folder, `list_waiting` knows which are done.
        if results.resolve() == REFERENCE:
            committed.update(tables["runs"].loc[has_ended, "run"])
        accuracies = validate(tables).dropna(subset="accuracy")
        validated.update(zip(accuracies["run"], accuracies["accuracy"], strict=True))
    return committed, validated


def list_lacking(cell: Sequence[Config], committed: Collection[str], validated: Mapping[str, float]) -> Lack:
    """List what a cell lacks: one of the first rates, a rate beyond the edge, or seeds at the best rate."""
    rates = list(FIRST_RATES)
    # Each turn asks for one more rate, until the best one lies between two others.
    while True:
        jobs = [job for rate in rates for job in list_tuning(cell, rate)]

        missing = [job for job in jobs if Run(job).id not in validated]
        if missing:
            missing_rates = {job.optimizer.lr for job in missing}
            lacking = [f"{rate:g}" for rate in rates if rate in missing_rates]
            # For the time that training takes, any rate will do: the best one is not known yet.
            later = _set_rate(cell, FIRST_RATES[1])
            description = f"{len(missing)} networks at rates {', '.join(lacking)}, then {len(later)} at the best"
            return Lack(description, missing, later)

        accuracies: dict[float, list[float]] = {}
        for job in jobs:
            accuracies.setdefault(job.optimizer.lr, []).append(validated[Run(job).id])
        best, beyond = pick_rate({rate: sum(values) / len(values) for rate, values in accuracies.items()})
        if beyond is None:
            break
        rates.append(beyond)

    missing = list_waiting([job for job in _set_rate(cell, best) if Run(job).id not in committed])
    if missing:
        return Lack(f"{len(missing)} networks at the best rate, {best:g}", missing, [])
    return Lack(f"complete, at rate {best:g}", [], [])


def list_tuning(cell: Sequence[Config], rate: float) -> list[Config]:
    """List the jobs that validate a rate: measured at their end alone, under exact statistics and one average."""

    (first,) = _set_rate(cell[:1], rate)
    # One running average alone, because `validate` takes one accuracy of each network. A norm that trains
    # with a running average is refused with another momentum than its own.
    light = replace(
        first,
        momentum=0.1 if first.norm.get_training_average() is None else first.momentum,
        estimator=["ema", "exact"],
        evaluate_at="final",
        accuracy_at="final",
        evaluate_on="val",
        measurements=["evaluations"],
    )
    return [replace(light, seed=seed) for seed in TUNING_SEEDS]


def _set_rate(cell: Sequence[Config], rate: float) -> list[Config]:
    optimizer = replace(cell[0].optimizer, lr=rate)  # the same in the whole cell
    return [replace(config, optimizer=optimizer) for config in cell]


if __name__ == "__main__":
    sys.exit(main())
