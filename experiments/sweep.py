"""python -m experiments.sweep experiment=quickstart: train what is missing, measure, write tables."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import run_command

if TYPE_CHECKING:
    from bnlab.harness.artifacts.settings import Config
    from experiments.compose import Sweep

_HYDRA_ONLY = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion")


def main() -> int:
    """Check everything, then run the jobs; exit 2 for a user's mistake, 1 if a job failed."""
    return run_command(_sweep, options=("-m", "--multirun", *_HYDRA_ONLY))


def _sweep(words: list[str]) -> int:
    if any(word.split("=")[0] in _HYDRA_ONLY for word in words):
        _show()
        return 0
    return run_sweep(words)


def run_sweep(words: list[str]) -> int:
    """The jobs that the words stand for; 1 if one of them failed.

    Raises:
        UserError: as `plan_jobs` and `jobs.prepare`.
    """
    from bnlab.harness.planning import gains_from_processes
    from experiments.compose import on_all_cores, plan_jobs

    multirun = bool({"-m", "--multirun"} & set(words))
    sweep = plan_jobs([word for word in words if not word.startswith("-")], multirun)
    if not sweep.names_its_launcher and gains_from_processes(sweep.configs):
        sweep = on_all_cores(sweep)
    return _dry_run(sweep) if sweep.configs[0].dry_run else _run(sweep, words)


def _show() -> None:
    """Let Hydra answer --help, --cfg and the like."""
    import hydra

    from experiments.compose import register

    register()
    hydra.main(version_base="1.3", config_path="../conf", config_name="config")(lambda _: None)()


def _dry_run(sweep: Sweep) -> int:
    from bnlab.harness.planning import count_cores, plan

    for line in plan(sweep.configs, count_cores() if sweep.launcher == "joblib" else 1):
        print(line)
    return 0


def _run(sweep: Sweep, words: list[str]) -> int:
    from bnlab.harness.jobs import prepare
    from bnlab.harness.planning import outline
    from experiments.launch import check_launcher, launch

    check_launcher(sweep)
    prepare(sweep.configs)
    print(outline(sweep.configs), flush=True)
    started = time.perf_counter()
    failed = launch(sweep)
    return _finish(sweep.configs, words, failed, time.perf_counter() - started)


def _finish(planned: list[Config], words: list[str], failed: list[Path], seconds: float) -> int:
    """Put the tables together and say what there is now."""
    from bnlab.harness.artifacts.runs import Run
    from bnlab.harness.reporting import tables

    first = planned[0]
    folder = Path(first.results) / first.name
    found = tables.write_tables(folder, first.csv)
    runs = found["runs"][found["runs"]["run"].isin({Run(config).id for config in planned})]
    print(f"done in {seconds:.0f} s; {folder}/tables/")
    for name, frame in found.items():
        if len(frame):
            print(f"  {name + '.parquet':20}{len(frame):>9,} rows")
    for row in runs[runs["status"] == "diverged"].itertuples():
        print(f"{row.run} diverged: its rows end there")
    for path in sorted(set(failed)):
        print(f"failed: {path}")
    print(_next(first, words))
    return 1 if failed else 0


def _next(config: Config, words: list[str]) -> str:
    folders = [word for word in words if word.startswith(("experiment=", "name=", "results="))]
    if any(word.startswith("experiment=") for word in folders):
        return f"next: python -m experiments.figures {shlex.join(folders)}"
    elsewhere = "" if config.results == "results" else f', "{config.results}"'
    return f'next: bnlab.harness.load("{config.name}"{elsewhere})'


if __name__ == "__main__":
    sys.exit(main())
