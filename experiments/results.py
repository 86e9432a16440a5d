"""python -m experiments.results: make the reference results again, one experiment after the other."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import run_command
from experiments.places import REFERENCE, RESULTS, Place, find_places, repeat_for_experiments

if TYPE_CHECKING:
    import pandas as pd

USAGE = """usage: python -m experiments.results [experiment=NAME] [dry_run=true]

Sweep and draw every experiment, or one, and keep what its claims and figures are made of in results/reference.
It can be killed and started again: what is finished is kept. dry_run=true only says how long it takes."""


def main() -> int:
    """Exit 2 for a user's mistake, 1 if a job failed."""
    return run_command(_make_all, USAGE)


def _make_all(words: list[str]) -> int:
    from bnlab.harness.errors import UserError
    from bnlab.harness.planning import count_cores, plan
    from experiments.answers import write_answers
    from experiments.compose import plan_jobs

    for word in words:
        if word.partition("=")[0] not in ("experiment", "dry_run"):
            raise UserError(f"{word}: there are experiment=NAME and dry_run=true")
    sweeps = [plan_jobs(command, multirun=False).configs for command in repeat_for_experiments(words)]
    for line in plan([config for sweep in sweeps for config in sweep], count_cores()):
        print(line, flush=True)
    if sweeps[0][0].dry_run:
        return 0
    failed = max(_make(sweep[0].name) for sweep in sweeps)
    write_answers([place.answer() for place in find_places([])])
    return failed


def _make(name: str) -> int:
    from experiments.figures import draw_all
    from experiments.sweep import run_sweep

    print(f"\n{name}", flush=True)
    # Measuring gains from processes too, which a sweep does not know beforehand.
    failed = run_sweep([f"experiment={name}", "hydra/launcher=joblib"])
    if not failed:
        draw_all(Place(name, name, str(RESULTS)))
        keep(name)
    return failed


def keep(name: str) -> None:
    """Copy to `results/reference/<name>` the columns that the experiment declares, and its figures."""
    from bnlab.harness import load
    from bnlab.harness.reporting.experiment import declared
    from experiments.questions import find_experiment

    tables = load(name, str(RESULTS))
    runs = tables["runs"][["versions", "device", "threads"]].drop_duplicates().to_dict("records")
    made = [{**row, "versions": json.loads(row["versions"])} for row in runs]
    write_reference(name, declared(find_experiment(name), tables), RESULTS / name / "figures", made)


def write_reference(
    name: str, tables: Mapping[str, pd.DataFrame], figures: Path, made: Sequence[Mapping[Any, Any]]
) -> None:
    """Tables and figures in place of `results/reference/<name>`, and in `environment.json` what they were made with.

    Figures get a palette of 256 colours, which cannot be told from theirs and takes a third of the room.
    """
    from PIL import Image

    from bnlab.files import write_whole

    folder, path = REFERENCE / name, REFERENCE / "environment.json"
    shutil.rmtree(folder, ignore_errors=True)
    for table, frame in tables.items():
        write_whole(folder / f"{table}.parquet", partial(frame.to_parquet, index=False, compression="zstd"))
    for image in sorted(figures.glob("*.png")):
        colours = Image.open(image).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(folder / image.name, optimize=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = list(made)
    write_whole(path, lambda beside: beside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n"))


if __name__ == "__main__":
    sys.exit(main())
