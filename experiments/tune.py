"""python -m experiments.tune experiment=ground: train networks at learning rates that are tuned, cell by cell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.lab.command import run_command
from bnlab.lab.folders import REFERENCE

if TYPE_CHECKING:
    from bnlab.harness.artifacts.settings import Config
    from bnlab.harness.reporting.experiment import Tables

USAGE = """usage: python -m experiments.tune experiment=NAME [key=value ...]

A cell is a set of networks that differ only in learning rate and seed. For each cell: train seeds 100 to 102 at rates a
factor of four apart, until the best one by validation under exact statistics lies between two others; then train the
experiment's own seeds at that rate. Networks in results/reference count as trained.

dry_run=true                 print what each cell lacks and how long that trains
again=true                   ignore results/reference
batch_size=4                 restrict the cells by a setting
experiment=ground_onecycle   tune one sweep of a question"""


@dataclass(frozen=True)
class Cell:
    """Networks that differ in the learning rate and the seed alone.

    Attributes:
        tested: the jobs of the experiment, one for each seed, at any rate.
    """

    tested: tuple[Config, ...]

    @property
    def name(self) -> str:
        """What the networks have in common, in words."""
        config = self.tested[0]
        norm = config.norm.name
        own = config.norm.own_average()
        if own is not None:
            norm = f"{norm}({own})"
        return f"{norm}, batch size {config.batch_size}, {config.optimizer.schedule}, {config.steps} updates"

    def list_tuning(self, rate: float) -> list[Config]:
        """List the jobs that validate a rate: measured at their end alone, under exact statistics and one average."""
        from experiments.tuning import TUNING_SEEDS

        first = self.tested[0]
        own = first.norm.own_average()
        light = replace(
            first,
            momentum=0.1 if own is None else first.momentum,
            estimator=["ema", "exact"],
            evaluate_at="final",
            accuracy_at="final",
            evaluate_on="val",
            measurements=["evaluations"],
            optimizer=replace(first.optimizer, lr=rate),
        )
        return [replace(light, seed=seed) for seed in TUNING_SEEDS]

    def list_tested(self, rate: float) -> list[Config]:
        """List the jobs that test a rate."""
        return [replace(config, optimizer=replace(config.optimizer, lr=rate)) for config in self.tested]


@dataclass(frozen=True)
class Trained:
    """The networks of an experiment that have been trained.

    Attributes:
        committed: the names of those in results/reference.
        validated: by network of a tuning seed, there or here, its validation accuracy under exact statistics, 0 to 1.
    """

    committed: frozenset[str]
    validated: Mapping[str, float]

    def average(self, jobs: Sequence[Config]) -> float | None:
        """Average the validation accuracy of these jobs' networks; None if one of them has none."""
        from bnlab.harness.artifacts.runs import Run

        names = [Run(job).id for job in jobs]
        if any(name not in self.validated for name in names):
            return None
        return sum(self.validated[name] for name in names) / len(names)


@dataclass(frozen=True)
class Lack:
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
    return run_command(_tune, sys.argv[1:], USAGE)


def _tune(words: list[str]) -> int:
    """Train what the cells lack, or print what that is; the exit code."""
    from joblib import cpu_count

    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.planning import plan

    is_again = "again=true" in words
    cells = _list_cells([word for word in words if word != "again=true"])
    first = cells[0].tested[0]
    folder = Path(first.results) / first.name

    attempted: set[str] = set()
    while True:
        trained = _read_trained(first.name, folder.parent, is_again)
        lacks = [list_lacking(cell, trained) for cell in cells]
        for cell, lack in zip(cells, lacks, strict=True):
            if lack.jobs or first.dry_run:
                print(f"{cell.name}: {lack.description}", flush=True)

        missing = [job for lack in lacks for job in lack.jobs]
        if first.dry_run:
            outlook = [*missing, *(job for lack in lacks for job in lack.later)]
            if outlook:
                print("\n".join(plan(outlook, outlook, cpu_count())))
            return 0
        if not missing:
            print(f"nothing is missing; next: {_name_report(first, trained)}")
            return 0

        # A job that fails says why, and its network stays missing.
        names = {Run(job).id for job in missing}
        failed = names & attempted
        if failed:
            print(f"{len(failed)} networks have failed; see {folder}/failures", file=sys.stderr)
            return 1
        attempted |= names
        _run(missing, folder)


def _list_cells(words: list[str]) -> list[Cell]:
    """List the cells of all sweeps of the question that the words name, or of one of these sweeps.

    Raises:
        UserError: there is no such experiment, or a word cannot be read.
    """
    from bnlab.harness.errors import UserError
    from bnlab.lab.catalogue import find_experiment, list_questions
    from bnlab.lab.compose import plan_jobs

    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    others = [word for word in words if not word.startswith("experiment=")]
    if len(names) != 1:
        raise UserError("name one experiment, as experiment=ground")
    sweeps = tuple(names)
    if names[0] in list_questions():
        sweeps = find_experiment(names[0]).sweeps or sweeps

    groups: dict[str, list[Config]] = {}
    for sweep in sweeps:
        planned = plan_jobs([f"experiment={sweep}", *others], multirun=True)
        for config in planned.configs:
            kind = repr(replace(config, seed=0))
            groups.setdefault(kind, []).append(config)
    return [Cell(tuple(configs)) for configs in groups.values()]


def _read_trained(name: str, results: Path, is_again: bool) -> Trained:
    """Read what has been trained of an experiment, in this folder of results and, unless again, in the committed."""
    from experiments.tuning import validate

    committed: set[str] = set()
    validated: dict[str, float] = {}
    for folder in [results] if is_again else [REFERENCE, results]:
        is_swept = (folder / name / "requests").is_dir()
        if is_again and not is_swept:
            continue  # tables that were committed, in the folder into which all is measured again
        for tables in _load(name, folder):
            runs = tables["runs"]
            has_ended = runs["status"].isin(["finished", "diverged"])
            if folder == REFERENCE:
                committed.update(runs.loc[has_ended, "run"])
            accuracies = validate(tables).dropna(subset="accuracy")
            validated.update(zip(accuracies["run"], accuracies["accuracy"], strict=True))
    return Trained(frozenset(committed), validated)


def _load(name: str, results: Path) -> Iterable[Tables]:
    """Yield the tables of an experiment in a folder of results, if there are any."""
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.tables import load

    try:
        tables = load(name, results)
    except UserError:  # nothing has been measured there
        return
    if "runs" in tables and "evaluations" in tables:
        yield tables


def list_lacking(cell: Cell, trained: Trained) -> Lack:
    """List what a cell lacks: one of the first rates, a rate beyond the edge, or seeds at the best rate."""
    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.jobs import list_waiting
    from experiments.tuning import FIRST_RATES, pick_rate

    accuracies, unvalidated = _average_rates(cell, trained)
    if unvalidated:
        jobs = [job for rate in unvalidated for job in cell.list_tuning(rate)]
        missing = [job for job in jobs if Run(job).id not in trained.validated]
        later = cell.list_tested(FIRST_RATES[1])
        rates = ", ".join(f"{rate:g}" for rate in unvalidated)
        return Lack(f"{len(missing)} networks at rates {rates}, then {len(later)} at the best", missing, later)

    best = pick_rate(accuracies).rate
    missing = [job for job in cell.list_tested(best) if Run(job).id not in trained.committed]
    missing = list_waiting(missing)
    if missing:
        return Lack(f"{len(missing)} networks at the best rate, {best:g}", missing, [])
    return Lack(f"complete, at rate {best:g}", [], [])


def _average_rates(cell: Cell, trained: Trained) -> tuple[dict[float, float], list[float]]:
    """Average the validation accuracy at each rate over the tuning seeds.

    Returns:
        The means by rate; the rates that lack a seed: some of the first ones, or else the one beyond the edge.
    """
    from experiments.tuning import FIRST_RATES, pick_rate

    rates = list(FIRST_RATES)
    accuracies: dict[float, float] = {}
    while True:
        lacking = []
        for rate in rates:
            mean = trained.average(cell.list_tuning(rate))
            if mean is None:
                lacking.append(rate)
            else:
                accuracies[rate] = mean
        if lacking:
            return accuracies, lacking

        beyond = pick_rate(accuracies).next_rate
        if beyond is None:
            return accuracies, []
        rates.append(beyond)


def _run(configs: list[Config], folder: Path) -> None:
    """Run jobs in as many processes as there are cores, and put the tables together."""
    from bnlab.harness.jobs import prepare
    from bnlab.harness.reporting.tables import write_tables
    from bnlab.lab.compose import Job, Launcher
    from bnlab.lab.launch import run_jobs

    prepare(configs)
    jobs = [Job(config, heading="") for config in configs]
    run_jobs(jobs, Launcher("joblib", {"n_jobs": -1}))
    write_tables(folder)


def _name_report(config: Config, trained: Trained) -> str:
    """Name the command that draws the tables, which are put together first where some networks are committed."""
    report = f"bnlab report experiment={config.name}"
    if not trained.committed:
        return report
    return f"python -m experiments.reference {config.results} && {report} results=results/reference"


if __name__ == "__main__":
    sys.exit(main())
