"""python -m experiments.tune experiment=ground: train networks at learning rates that are tuned, cell by cell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import run_command

if TYPE_CHECKING:
    from bnlab.harness.artifacts.settings import Config
    from bnlab.harness.reporting.experiment import Tables

USAGE = """usage: python -m experiments.tune experiment=NAME [key=value ...]

Of each cell of the experiment, the networks that differ in the learning rate and the seed alone: train seeds 100 to 102
at rates a factor of four apart, until the best one by validation under exact statistics has a smaller and a larger one
beside it; then train the experiment's own seeds at that rate. Networks in results/reference count as trained.

dry_run=true    say what each cell still lacks, and how long it takes
anew=true       train those too that results/reference has
batch_size=4    and other settings: choose cells; of one of its sweeps with experiment=ground_onecycle"""
REFERENCE = Path(__file__).parents[1] / "results" / "reference"
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Cell:
    """Networks that differ in the learning rate and the seed alone.

    Attributes:
        tested: the jobs of the experiment, one for each seed, at any rate.
    """

    tested: tuple[Config, ...]

    @property
    def name(self) -> str:
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
class State:
    """What has been trained of an experiment, here or in the committed results.

    Attributes:
        trained: the names of all networks that have ended.
        validated: by network of a tuning seed, its validation accuracy under exact statistics.
    """

    trained: frozenset[str]
    validated: Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """What a cell lacks.

    Attributes:
        words: that say it.
        jobs: that can be run now.
        later: that come after them, at a rate that is a guess, for an estimate of the time.
    """

    words: str
    jobs: list[Config]
    later: list[Config]


def main() -> int:
    """Run the command; its exit code, 2 for a user's mistake."""
    return run_command(_tune, USAGE)


def _tune(words: list[str]) -> int:
    """Train what the cells lack, or say what that is; the exit code."""
    from bnlab.harness.artifacts.cores import count_cores
    from bnlab.harness.planning import plan

    is_anew = "anew=true" in words
    cells = _list_cells([word for word in words if word != "anew=true"])
    first = cells[0].tested[0]
    folder = Path(first.results) / first.name
    known = [folder.parent] if is_anew else [REFERENCE, folder.parent]

    for _ in range(_MOST_ROUNDS):
        state = _read_state(first.name, known)
        steps = [find_next(cell, state) for cell in cells]
        for cell, step in zip(cells, steps, strict=True):
            if step.jobs or first.dry_run:
                print(f"{cell.name}: {step.words}", flush=True)

        missing = [job for step in steps for job in step.jobs]
        if first.dry_run:
            outlook = [*missing, *(job for step in steps for job in step.later)]
            if outlook:
                print("\n".join(plan(outlook, outlook, count_cores())))
            return 0
        if not missing:
            print(f"nothing is missing; next: bnlab report experiment={first.name}")
            return 0
        _run(missing, folder)
    print(f"the best rate of a cell is still at an edge after {_MOST_ROUNDS} extensions", file=sys.stderr)
    return 1


def _list_cells(words: list[str]) -> list[Cell]:
    """List the cells of all sweeps of the question that the words name, or of one of these sweeps.

    Raises:
        UserError: there is no such experiment, or a word cannot be read.
    """
    from bnlab.harness.errors import UserError
    from experiments.catalogue import find_experiment, list_questions
    from experiments.compose import plan_jobs

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


def _read_state(name: str, folders: Iterable[Path]) -> State:
    """Read what has been trained of an experiment, in several folders of results."""
    from experiments.tuning import validate

    trained: set[str] = set()
    validated: dict[str, float] = {}
    for tables in _load_all(name, folders):
        runs = tables["runs"]
        has_ended = runs["status"].isin(["finished", "diverged"])
        trained.update(runs.loc[has_ended, "run"])
        accuracies = validate(tables).dropna(subset="accuracy")
        validated.update(zip(accuracies["run"], accuracies["accuracy"], strict=True))
    return State(frozenset(trained), validated)


def _load_all(name: str, folders: Iterable[Path]) -> Iterable[Tables]:
    """Yield the tables that there are of the experiment."""
    from bnlab.harness.errors import UserError
    from bnlab.harness.reporting.tables import load

    for results in folders:
        try:
            tables = load(name, results)
        except UserError:  # nothing has been measured there
            continue
        if "runs" in tables and "evaluations" in tables:
            yield tables


def find_next(cell: Cell, state: State) -> Step:
    """Find what a cell lacks: one of the first rates, a rate beyond the edge, or seeds at the best rate."""
    from bnlab.harness.artifacts.runs import Run
    from experiments.tuning import FIRST_RATES, pick_rate

    accuracies, unvalidated = _average_rates(cell, state)
    if unvalidated:
        jobs = [job for rate in unvalidated for job in cell.list_tuning(rate)]
        missing = [job for job in jobs if Run(job).id not in state.validated]
        later = cell.list_tested(FIRST_RATES[1])
        rates = ", ".join(f"{rate:g}" for rate in unvalidated)
        return Step(f"{len(missing)} networks at rates {rates}, then {len(later)} at the best", missing, later)

    best = pick_rate(accuracies).rate
    missing = [job for job in cell.list_tested(best) if Run(job).id not in state.trained]
    if missing:
        return Step(f"{len(missing)} networks at the best rate, {best:g}", missing, [])
    return Step(f"complete, at rate {best:g}", [], [])


def _average_rates(cell: Cell, state: State) -> tuple[dict[float, float], list[float]]:
    """Average the validation accuracy at each rate over the tuning seeds.

    Returns:
        The means by rate; the rates that lack a seed, ascending: of the first ones, or else the one beyond the edge.
    """
    from bnlab.harness.artifacts.runs import Run
    from experiments.tuning import FIRST_RATES, pick_rate

    accuracies: dict[float, float] = {}
    unvalidated: list[float] = []
    waiting = list(FIRST_RATES)
    while waiting:
        rate = waiting.pop()
        jobs = cell.list_tuning(rate)
        known = [state.validated[Run(job).id] for job in jobs if Run(job).id in state.validated]
        if len(known) == len(jobs):
            accuracies[rate] = sum(known) / len(known)
        else:
            unvalidated.append(rate)

        if waiting or unvalidated:
            continue
        beyond = pick_rate(accuracies).next_rate
        if beyond is not None:
            waiting.append(beyond)
    return accuracies, sorted(unvalidated)


def _run(jobs: list[Config], folder: Path) -> None:
    """Run jobs in as many processes as there are cores, and put the tables together."""
    from joblib import Parallel, delayed

    from bnlab.harness.artifacts.cores import count_cores
    from bnlab.harness.jobs import attempt, prepare
    from bnlab.harness.reporting.tables import write_tables

    prepare(jobs)
    Parallel(n_jobs=count_cores())(delayed(attempt)(job) for job in jobs)
    write_tables(folder)


if __name__ == "__main__":
    sys.exit(main())
