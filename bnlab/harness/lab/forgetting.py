"""bnlab runs rm name=NAME setting=value: taking networks out of a sweep, without their tables knowing them any more."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.lab.command import print_table
from bnlab.harness.lab.removing import remove_network
from bnlab.harness.reporting.tables import read_requests, write_tables
from bnlab.harness.reporting.wording import list_values, list_varied
from bnlab.harness.requests import MEASURED_WITH, failure_path, list_requests


def forget(name: str, chosen: Mapping[str, str], results: Path, is_sure: bool, with_networks: bool) -> None:
    """Forget what a sweep asked for of the networks that have these settings; unless that is sure, only list them.

    Measured rows stay with their networks: a sweep that asks for them again measures nothing again.

    Args:
        name: of the sweep.
        chosen: values of settings, as they are typed, several with commas between them; a network has to have them all.
        results: the folder of all sweeps.
        is_sure: whether to do it.
        with_networks: whether the networks are removed too, with the rows that no other sweep has asked for.
    """
    folder = results / name
    runs = _read_networks(folder)
    forgotten = runs[_agree(runs, chosen, name)]
    others = {run: [path.parts[-3] for path in _list_other_requests(run, folder)] for run in forgotten["run"]}
    if not is_sure:
        _describe(forgotten, runs, others, name)
        words = [f"{key}={value}" for key, value in chosen.items()]
        options = ["--networks", "--yes"] if with_networks else ["--yes"]
        where = [] if results == Path("results") else [f"results={results}"]
        command = shlex.join(["bnlab", "runs", "rm", f"name={name}", *words, *where, *options])
        left = "removes these networks too" if with_networks else "the networks stay, unless --networks is added"
        print(f"to forget them: {command}   ({left})")
        return

    try:
        for run in forgotten["run"]:
            if with_networks:
                remove_network(results / "runs" / run, keeps_rows=bool(others[run]))
            for path in list_requests(folder, run):
                path.unlink(missing_ok=True)
            failure_path(folder, run).unlink(missing_ok=True)
    finally:
        _write_what_is_left(folder)
    print(f"{_count(len(forgotten))} of {name} forgotten, {_count(len(runs) - len(forgotten))} left; {folder}/tables/")


def _read_networks(folder: Path) -> pd.DataFrame:
    """Read the networks that jobs of a sweep asked for: a row each, as in the table `runs`."""
    if not (folder / "requests").is_dir():
        raise UserError(f"name={folder.name}: no sweep of this name has been run in {folder.parent}/")
    newest = {request.run: request.row for request in read_requests(folder)}
    return pd.DataFrame(list(newest.values()))


def _agree(runs: pd.DataFrame, chosen: Mapping[str, str], name: str) -> pd.Series:
    """Find the networks that have all of these values; UserError for a setting or a value that none has."""
    agree = pd.Series(True, runs.index)
    for key, value in chosen.items():
        if key in MEASURED_WITH:
            raise UserError(
                f"{key}={value}: is measured on networks, and forgotten with these; forget all of {name}, and sweep "
                "again without it: what was measured before is read, not measured again"
            )
        if key not in runs:
            raise UserError(f"{key}={value}: networks of {name} have no such setting; {suggest(key, runs)}")
        texts = value.split(",")
        cells = runs[key].astype(object)
        has_value = cells.map(lambda cell, texts=texts: any(_is_written(cell, text) for text in texts))
        if not has_value.any():
            raise UserError(f"{key}={value}: no network of {name} has it; there are {list_values(runs[key])}")
        agree &= has_value
    if not agree.any():
        words = " ".join(f"{key}={value}" for key, value in chosen.items())
        raise UserError(f"{words}: no network of {name} has all of these")
    return agree


def _is_written(cell: Any, text: str) -> bool:
    """Decide if a value is what a word of the command line says: `0.10` is 0.1."""
    if isinstance(cell, bool):
        return text.lower() == str(cell).lower()
    if isinstance(cell, int | float) and not pd.isna(cell):
        try:
            return float(text) == cell
        except ValueError:
            return False
    if not isinstance(cell, list) and pd.isna(cell):
        return text == "null"
    return text == str(cell)


def _list_other_requests(run: str, folder: Path) -> list[Path]:
    """List what jobs of other sweeps asked for of a network."""
    folders = [path.parent for path in folder.parent.glob("*/requests")]
    return [path for other in folders if other != folder for path in list_requests(other, run)]


def _describe(forgotten: pd.DataFrame, runs: pd.DataFrame, others: Mapping[str, Sequence[str]], name: str) -> None:
    """Print a line for each network that would be forgotten, and which other sweeps have asked for it too."""
    shown = forgotten[["run", *list_varied(runs), "status"]]
    if any(others.values()):
        shown = shown.assign(also_in=[", ".join(dict.fromkeys(others[run])) for run in shown["run"]])
    print_table(shown)
    print(f"{_count(len(forgotten))} of {len(runs)} in {name} would be forgotten")


def _write_what_is_left(folder: Path) -> None:
    """Write the tables without what was forgotten; the folder is as if it had not been swept where nothing is left."""
    left = write_tables(folder)
    for path in (folder / "tables").glob("*.parquet"):
        if path.stem not in left:
            path.unlink()
    if not left:
        shutil.rmtree(folder / "tables", ignore_errors=True)
        with contextlib.suppress(OSError):  # a sweep that runs now has asked for something
            (folder / "requests").rmdir()


def _count(networks: int) -> str:
    return "1 network" if networks == 1 else f"{networks:,} networks"
