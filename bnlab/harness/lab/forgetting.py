"""bnlab runs rm name=NAME setting=value: taking networks, or rows on them, out of the tables of a sweep."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bnlab.common.names import split_at_commas
from bnlab.harness.errors import UserError, suggest
from bnlab.harness.lab.command import keep_command, print_table
from bnlab.harness.lab.removing import remove_network
from bnlab.harness.reporting.tables import write_tables
from bnlab.harness.reporting.wording import list_values, list_varied
from bnlab.harness.requests import (
    MEASURED_WITH,
    Request,
    Selection,
    list_requests,
    locate_commands,
    locate_failure,
    locate_request,
    read_request,
    read_requests,
    write_request,
)

_OF_ROWS = ("estimator", "momentum")  # settings that tell measured rows of a network apart


def forget(name: str, chosen: Mapping[str, str], results: Path, is_sure: bool, with_networks: bool) -> None:
    """Forget what a sweep asked for of the networks that have these settings; unless that is sure, only list it.

    Measured rows stay with their networks: a sweep that asks for them again measures nothing again.

    Args:
        name: of the sweep.
        chosen: values of settings, as they are typed, several with commas between them; a network has to have them all.
            With an estimator or a momentum only the rows that are of these are forgotten.
        results: the folder of all sweeps.
        is_sure: whether to do it.
        with_networks: whether the networks are removed too, with the rows that no other sweep has asked for.
    """
    folder = results / name
    of_rows = {key: value for key, value in chosen.items() if key in _OF_ROWS}
    of_networks = {key: value for key, value in chosen.items() if key not in _OF_ROWS}
    if of_rows and with_networks:
        raise UserError(f"--networks: stands without {next(iter(of_rows))}=, as a network has rows of others too")

    runs = _read_networks(folder)
    concerned = runs[_agree(runs, of_networks, name)]
    words = [f"{key}={value}" for key, value in chosen.items()]
    where = [] if results == Path("results") else [f"results={results}"]
    command = shlex.join(["bnlab", "runs", "rm", f"name={name}", *words, *where, "--yes"])
    if of_rows:
        _forget_rows(folder, list(concerned["run"]), of_rows, command, is_sure)
    else:
        _forget_networks(folder, concerned, runs, command, is_sure, with_networks)


def _forget_networks(
    folder: Path, forgotten: pd.DataFrame, runs: pd.DataFrame, command: str, is_sure: bool, with_networks: bool
) -> None:
    """Forget networks, or list them."""
    # Requests lie in <name>/requests/, so that the third part from the end is the name of the other sweep.
    others = {run: [path.parts[-3] for path in _list_other_requests(run, folder)] for run in forgotten["run"]}
    if not is_sure:
        _describe(forgotten, runs, others, folder.name)
        with_option = f"{command} --networks" if with_networks else command
        left = "removes these networks too" if with_networks else "the networks stay, unless --networks is added"
        print(f"to forget them: {with_option}   ({left})")
        return

    # Kept first: the loop may end at a network that is being trained, when others have been forgotten.
    keep_command(folder, command)
    try:
        for run in forgotten["run"]:
            if with_networks:
                remove_network(folder.parent / "runs" / run, keeps_rows=bool(others[run]))
            for path in list_requests(folder, run):
                path.unlink(missing_ok=True)
            locate_failure(folder, run).unlink(missing_ok=True)
    finally:
        # A network that is being trained cannot be removed, and ends the loop. Those before it have been forgotten by
        # then.
        _write_what_is_left(folder)
    left = _count(len(runs) - len(forgotten))
    print(f"{_count(len(forgotten))} of {folder.name} forgotten, {left} left{_name_tables(folder)}")


def _forget_rows(folder: Path, networks: Sequence[str], chosen: Mapping[str, str], command: str, is_sure: bool) -> None:
    """Forget rows of some estimators or momenta on these networks, or list them."""
    paths = [path for run in networks for path in list_requests(folder, run)]
    requests = {path: read_request(path) for path in paths}
    rows = pd.DataFrame([columns for request in requests.values() for columns in _list_rows(request)])
    forgotten = rows[_agree(rows, chosen, folder.name, "row")]
    if not is_sure:
        counts = forgotten.groupby([*_OF_ROWS], dropna=False)["run"].nunique()
        print_table(counts.reset_index(name="networks"))
        print(f"these rows of {folder.name} would be forgotten")
        print(f"to forget them: {command}   (they stay with their networks)")
        return

    keep_command(folder, command)
    for path, request in requests.items():
        _leave_out_rows(path, request, chosen)
    _write_what_is_left(folder)
    print(f"rows of {_count(forgotten['run'].nunique())} of {folder.name} forgotten{_name_tables(folder)}")


def _list_rows(request: Request) -> Iterator[dict[str, Any]]:
    """List the network, estimator and momentum of the rows that a job asked for, of tables that have estimators."""
    for selection in request.selections.values():
        for columns, _ in selection.rows:
            if "estimator" in columns:
                yield {"run": request.run, **{key: columns.get(key) for key in _OF_ROWS}}


def _leave_out_rows(path: Path, request: Request, chosen: Mapping[str, str]) -> None:
    """Write a request again, without these rows; nothing of it where it was about no others."""
    selections: dict[str, Selection] = {}
    for table, selection in request.selections.items():
        kept = [(columns, steps) for columns, steps in selection.rows if not _has_all(columns, chosen)]
        if kept:
            selections[table] = replace(selection, rows=kept)
    if selections == request.selections:
        return
    if selections:
        # Under another name: by its old one, a job that asks for all of these rows would count as done.
        changed = locate_request(path.parents[1], request.run, f"{path.stem} without {chosen}")
        # The request keeps its time, because the newest of several counts.
        write_request(changed, replace(request, selections=selections))
    path.unlink(missing_ok=True)


def _read_networks(folder: Path) -> pd.DataFrame:
    """Read the networks that jobs of a sweep asked for: a row each, as in the table `runs`."""
    if not (folder / "requests").is_dir():
        raise UserError(f"name={folder.name}: no sweep of this name has been run in {folder.parent}/")
    # Requests are sorted by time, so that the newest row of a network takes the place of others.
    newest = {request.run: request.row for request in read_requests(folder)}
    return pd.DataFrame(list(newest.values()))


def _agree(frame: pd.DataFrame, chosen: Mapping[str, str], name: str, noun: str = "network") -> pd.Series:
    """Find the networks, or rows, that have all of these values; UserError for a setting or a value that none has."""
    agree = pd.Series(True, frame.index)
    for key, value in chosen.items():
        if key in MEASURED_WITH and key not in frame:
            raise UserError(
                f"{key}={value}: is measured on networks, and forgotten with these; forget all of {name}, and sweep "
                "again without it: what was measured before is read, not measured again"
            )
        if key not in frame:
            raise UserError(f"{key}={value}: networks of {name} have no such setting; {suggest(key, frame)}")
        has_value = frame[key].astype(object).map(lambda cell, value=value: _is_one_of(cell, value))
        if not has_value.any():
            raise UserError(f"{key}={value}: no {noun} of {name} has it; there are {list_values(frame[key])}")
        agree &= has_value
    if not agree.any():
        words = " ".join(f"{key}={value}" for key, value in chosen.items())
        raise UserError(f"{words}: no {noun} of {name} has all of these")
    return agree


def _has_all(columns: Mapping[str, Any], chosen: Mapping[str, str]) -> bool:
    """Decide if a row has all of these values."""
    return all(key in columns and _is_one_of(columns[key], value) for key, value in chosen.items())


def _is_one_of(cell: Any, words: str) -> bool:
    """Decide if a value is what these words say, or one of several with commas between them."""
    # The whole too, because a list is a single value. Commas in brackets, as in `window(k=20,pooled=False)`, separate
    # parameters.
    return any(_is_written(cell, text) for text in (words, *split_at_commas(words)))


def _is_written(cell: Any, text: str) -> bool:
    """Decide if a value is what a word of the command line says: `0.10` is 0.1."""
    # Before numbers, because True is an int in Python.
    if isinstance(cell, bool):
        return text.lower() == str(cell).lower()
    if isinstance(cell, int | float) and not pd.isna(cell):
        try:
            return float(text) == cell
        except ValueError:
            return False
    # For a list, pandas answers for each of its values.
    if not isinstance(cell, list) and pd.isna(cell):
        return text == "null"
    return text == str(cell)


def _list_other_requests(run: str, folder: Path) -> list[Path]:
    """List what jobs of other sweeps asked for of a network."""
    others = [path.parent for path in folder.parent.glob("*/requests") if path.parent != folder]
    return [path for other in others for path in list_requests(other, run)]


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
        locate_commands(folder).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a sweep that runs now has asked for something
            (folder / "requests").rmdir()


def _name_tables(folder: Path) -> str:
    """Name the folder of the tables, if any are left."""
    tables = folder / "tables"
    return f"; {tables}/" if tables.exists() else ""


def _count(networks: int) -> str:
    return "1 network" if networks == 1 else f"{networks:,} networks"
