"""bnlab runs list | show RUN | rm RUN... | rm name=NAME | export RUN FILE: the networks that have been trained."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from bnlab.common.files import Unreadable, reading
from bnlab.common.names import split_at_commas
from bnlab.harness.artifacts.job_settings import flatten_settings
from bnlab.harness.errors import UserError, find_network, suggest
from bnlab.harness.lab.command import keep_command, print_table, run_command, write_command
from bnlab.harness.records import (
    list_sweeps_with,
    locate_commands,
    locate_failure,
    locate_record,
    read_records,
)

if TYPE_CHECKING:
    import pandas as pd

USAGE = """usage: bnlab runs list [name=NAME] [SETTING=VALUE ...]
                                networks, of a sweep or all, with these settings: in what they differ, their state,
                                their disk space
       bnlab runs show RUN      one of them, or all seeds of its settings: settings, environment, files
       bnlab runs rm RUN... [--yes]
                                remove these networks; their rows stay in the tables of sweeps. Where one word stands
                                for several seeds they are listed, and removed with --yes
       bnlab runs rm SETTING=VALUE ... [--yes]
                                the same for all networks with these settings, as batch_size=32 or seed=0,1
       bnlab runs rm name=NAME [SETTING=VALUE ...] [--yes] [--networks]
                                take networks out of the tables of a sweep: list them; with --yes do it. The networks
                                stay, unless --networks removes them too
       bnlab runs export RUN FILE.safetensors [step=K] [statistics=exact]
                                weights and buffers as safetensors, with torch's keys
RUN is a name as HASH/seed_0, or a beginning that no other has; show and rm take HASH for all of its seeds.
results=FOLDER looks elsewhere than in results/."""
_OPTIONS = ("--yes", "--networks")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml, six times as fast, where there is one
_ENDS = ("status", "step", "seconds", "MB")  # columns of a list that are no settings


def main(words: list[str]) -> int:
    """Run the command; exit 2 for a user's mistake."""
    return run_command(_dispatch, words, USAGE, options=_OPTIONS)


def _dispatch(words: list[str]) -> int:
    """Do what the first word says; the exit code."""
    # The file of an export is no setting, also where its name or that of its folder has an equals sign.
    given = [word for word in words if "=" in word and not word.endswith(".safetensors")]
    settings = _parse_settings(given)
    options = [word for word in words if word in _OPTIONS]
    results = Path(settings.pop("results", "results"))
    names = [word for word in words if word and word not in given and word not in _OPTIONS]
    is_sure = "--yes" in options
    match names:
        case ["list"] if not options:
            _list(results, settings)
        case ["show", run] if not options and not settings:
            for folder in _find_seeds(results, run):
                _show(folder)
        case ["export", run, file] if not options:
            _export(_find(results, run), Path(file), settings, results)
        case ["rm"] if "name" in settings:
            _take_out(settings, results, is_sure, "--networks" in options)
        case ["rm"] if settings and "--networks" not in options:
            frame = select_networks(_read_networks(results), settings)
            _remove([results / "runs" / run for run in frame["run"]], given, results, is_sure)
        case ["rm", run, *more] if not settings and "--networks" not in options:
            folders = [folder for word in (run, *more) for folder in _find_seeds(results, word)]
            _remove(folders, [run, *more], results, is_sure or len(folders) == 1 + len(more))
        case ["show" | "export" | "rm"]:
            command = write_command("runs", "list", results)
            raise UserError(f"{names[0]}: name a network; {command} shows them")
        case _:
            raise UserError(f"cannot read {' '.join(words)!r}; there are list, show, rm and export, see --help")
    return 0


def _parse_settings(words: list[str]) -> dict[str, str]:
    """Parse words such as batch_size=32; UserError for a setting that is given twice."""
    settings: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in settings:
            raise UserError(f"{word}: {key} is given twice; leave one of them out")
        settings[key] = value
    return settings


def _list(results: Path, settings: dict[str, str]) -> None:
    """Print a line for each network of a sweep, or of all, that has these settings."""
    name = settings.pop("name", "")
    table = _read_networks(results, name)
    if table.empty:
        command = write_command("sweep", "experiment=quickstart", results)
        print(f"no networks in {results}/runs; train some: {command}")
        return
    table = select_networks(table, settings)
    megabytes = table["MB"].sum()
    table["MB"] = table["MB"].round(1)  # after the sum: many networks take less
    print_table(_leave_out_agreeing(table))
    print(f"{_count(len(table))}, {megabytes:,.1f} MB; settings in which all agree are left out (see show)")


def _leave_out_agreeing(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the settings in which all networks agree."""
    settings = table.columns.drop(["run", "seed", *_ENDS])  # the name of the run has the seed
    differing = [key for key in settings if table[key].map(str).nunique() > 1]  # null counts too
    return table[["run", *differing, *_ENDS]]


def _read_networks(results: Path, name: str = "") -> pd.DataFrame:
    """Read settings, state and disk space of networks, all or those of a sweep; a damaged file is named on stderr."""
    import pandas as pd

    folder = results / name
    if name and not (folder / "jobs").is_dir():
        raise UserError(f"name={name}: no sweep of this name has been run in {results}/")
    records = {record.run: record for record in read_records(folder)} if name else {}
    folders = {_id(path): path for path in _list_folders(results)}
    rows = []
    for run in sorted(records or folders):
        if run not in folders:  # its training has failed, or it was removed
            status = records[run].row["status"]
            rows.append(
                {"run": run, "status": status, "step": 0, "seconds": 0, "MB": 0.0, "seed": records[run].row["seed"]}
            )
            continue
        try:
            rows.append(_read_status(folders[run]) | _read_settings(folders[run]))
        except Unreadable as error:
            print(f"{run} is left out: {error}", file=sys.stderr)
    frame = pd.DataFrame(rows)
    if rows:
        frame["seed"] = frame["run"].str.extract(r"seed_(\d+)", expand=False).astype(int)
    return frame


def select_networks(frame: pd.DataFrame, chosen: Mapping[str, str]) -> pd.DataFrame:
    """Select the networks that have all of these values; UserError for a setting or a value that none has."""
    import pandas as pd

    for key, value in chosen.items():
        if key not in frame:
            raise UserError(f"{key}={value}: the networks have no such setting; {suggest(key, frame)}")
        # The whole too, because a list is a single value. Commas in brackets separate parameters.
        texts = {value, *split_at_commas(value)}
        has_value = pd.Series([any(_is_written(cell, text) for text in texts) for cell in frame[key]], frame.index)
        if not has_value.any():
            there = ", ".join(sorted({str(cell) for cell in frame[key]}))
            raise UserError(f"{key}={value}: no network has it; there are {there}")
        frame = frame[has_value]
    return frame.copy()


def _is_written(cell: Any, text: str) -> bool:
    """Decide if a value is what a word of the command line says: `0.10` is 0.1."""
    # Before numbers, because True is an int in Python.
    if isinstance(cell, bool):
        return text.lower() == str(cell).lower()
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return text == "null"
    if isinstance(cell, int | float):
        try:
            return float(text) == cell
        except ValueError:
            return False
    return text == str(cell)


def _remove(folders: list[Path], words: list[str], results: Path, is_sure: bool) -> None:
    """Remove networks, or only list them; their rows stay."""
    if not is_sure:
        for folder in folders:
            print(_id(folder))
        print(f"to remove these {_count(len(folders))}: {_write_removal(words, results)} --yes")
        return
    for folder in folders:
        remove_network(folder, keeps_rows=True)


def _write_removal(words: Sequence[str], results: Path) -> str:
    """Write the command that removes."""
    where = [] if results == Path("results") else [f"results={results}"]
    return shlex.join(["bnlab", "runs", "rm", *(word for word in words if word not in where), *where])


def _take_out(settings: dict[str, str], results: Path, is_sure: bool, with_networks: bool) -> None:
    """Take the networks with these settings out of the tables of the sweep that `name` says, or list them.

    Measured rows stay with their networks: a sweep that asks for them again measures nothing again.
    """
    name = settings["name"]
    chosen = {key: value for key, value in settings.items() if key != "name"}
    frame = _read_networks(results, name)
    taken = select_networks(frame, chosen)
    folder = results / name
    others = {run: [each for each in list_sweeps_with(results, run) if each != name] for run in taken["run"]}
    command = _write_removal([f"name={name}", *(f"{key}={value}" for key, value in chosen.items())], results)
    if not is_sure:
        shown = _leave_out_agreeing(frame).loc[taken.index]
        if any(others.values()):
            shown = shown.assign(also_in=[", ".join(others[run]) for run in shown["run"]])
        print_table(shown)
        print(f"{_count(len(taken))} of {len(frame)} in {name} would be taken out")
        left = "removes these networks too" if with_networks else "the networks stay, unless --networks is added"
        print(f"to do it: {command} --yes{' --networks' * with_networks}   ({left})")
        return

    # Kept first: the loop may end at a network that is being trained, when others have been taken out.
    keep_command(folder, f"{command} --yes")
    try:
        for run in taken["run"]:
            if with_networks:
                remove_network(results / "runs" / run, keeps_rows=bool(others[run]))
            locate_record(folder, run).unlink(missing_ok=True)
            locate_failure(folder, run).unlink(missing_ok=True)
    finally:
        _write_what_is_left(folder)
    tables = folder / "tables"
    where = f"; {tables}/" if tables.exists() else ""
    print(f"{_count(len(taken))} of {name} taken out, {len(frame) - len(taken)} left{where}")


def _write_what_is_left(folder: Path) -> None:
    """Write the tables without what was taken out; the folder is as if not swept where nothing is left."""
    from bnlab.harness.reporting.tables import write_tables

    left = write_tables(folder)
    for path in (folder / "tables").glob("*.parquet"):
        if path.stem not in left:
            path.unlink()
    if not left:
        shutil.rmtree(folder / "tables", ignore_errors=True)
        locate_commands(folder).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a sweep that runs now has written a record
            (folder / "jobs").rmdir()


def remove_network(folder: Path, keeps_rows: bool) -> None:
    """Remove a network; `keeps_rows`: not its measured rows, which the tables of sweeps have.

    UserError while it is trained.
    """
    run = _id(folder)
    if not folder.exists():
        return
    try:
        # The file is that of `Run.lock`. Making a Run would mean to import torch.
        with FileLock(folder.with_name(f"{folder.name}.lock")).acquire(timeout=0):
            before = measure_size(folder)
            (folder / "status.json").unlink(missing_ok=True)  # first: what a kill leaves is no whole run
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
                elif path.name != "rows":
                    shutil.rmtree(path)
            # Tables look for rows under the network's own name, and never in a folder that was set aside.
            if ".damaged" in folder.name or not keeps_rows:
                shutil.rmtree(folder)
            has_rows = (folder / "rows").exists()
            freed = before - measure_size(folder)
    except Timeout as error:
        raise UserError(
            f"{run}: is being trained or measured; neither it nor what comes after it was removed"
        ) from error
    kept = "; its measured rows stay, for the tables of sweeps that have them" if has_rows else ""
    print(f"removed {run} ({freed:.1f} MB){kept}")


def measure_size(path: Path) -> float:
    """Measure a file, or all files of a folder, in MB."""
    files = [path, *path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _count(networks: int) -> str:
    return "1 network" if networks == 1 else f"{networks:,} networks"


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read what the network was trained with, called as in the table `runs`; the seed is in the name of the run."""
    path = folder / "config.yaml"
    with reading(path):
        config = dict(yaml.load(path.read_text(encoding="utf-8"), _LOADER))
    return flatten_settings(config)


def _read_status(folder: Path) -> dict[str, Any]:
    """Read state, time and disk space of a network; of an unfinished one those from which it goes on."""
    path = folder / "status.json"
    saved = folder / "resume.pt"
    state: dict[str, Any] = {"status": "unfinished", "step": 0, "train_seconds": 0}
    if path.exists():
        with reading(path):
            state = json.loads(path.read_text(encoding="utf-8"))
    elif saved.exists():
        import torch  # here: a list waits for it only where a network is unfinished

        with reading(saved):
            values = torch.load(saved, map_location="cpu", weights_only=True)
            state |= {"step": values["step"], "train_seconds": values["seconds"]}

    # The file may hold something else, or lack one of these.
    with reading(path):
        return {
            "run": _id(folder),
            "status": "set aside" if ".damaged" in folder.name else state["status"],
            "step": state["step"],
            "seconds": round(state["train_seconds"]),
            "MB": measure_size(folder),
        }


def _show(folder: Path) -> None:
    """Print settings, environment and files of a network."""
    print(f"{_id(folder)}  {folder}")
    for name in ("status.json", "environment.json", "config.yaml"):
        path = folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            print(f"\n{name}\n{text.strip()}")

    print("\nfiles")
    for path in sorted(folder.iterdir()):
        kilobytes = 1e3 * measure_size(path)
        print(f"{kilobytes:12,.1f} kB  {path.name}")


def _export(folder: Path, file: Path, settings: dict[str, str], results: Path) -> None:
    """Write a network as safetensors; its metadata say what images have to be standardized by."""
    from safetensors.torch import save_file

    from bnlab.harness.loading import build_network, open_run

    step = settings.pop("step", "")
    statistics = settings.pop("statistics", "running")
    if settings or not (step or "0").isdigit():
        raise UserError("export takes step=, a number, and statistics=, as exact or 'ema(momentum=0.01)'")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: name a file that ends with .safetensors")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    if file.exists():
        raise UserError(f"{file}: is there already; name another file, or remove it")

    try:
        run = open_run(_id(folder), results)
        model = build_network(run, int(step) if step else None, statistics)
    except Unreadable as error:
        raise UserError(str(error)) from error
    mean, std = run.dataset.mean, run.dataset.std
    # Of a network that is being trained, or whose training was killed, it is the latest step that was kept.
    wanted = int(step) if step else max(run.list_checkpoints())
    metadata = {
        "run": run.id,
        "step": str(wanted),
        "statistics": statistics,
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }
    # safetensors refuses tensors that are not contiguous, or that share memory, as tied weights do.
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(tensors, file, metadata)
    with_statistics = f" with {statistics} statistics" if run.has_trace else ""
    ends = {"finished": "", "diverged": ", which diverged,"}
    end = ends[run.status["status"]] if run.status else ", whose training has not finished,"
    print(f"{file}: step {wanted:,} of {run.steps:,} of {run.id}{end}{with_statistics}")
    print(f"images are standardized by mean {mean} and standard deviation {std} of each channel")


def _find(results: Path, run: str) -> Path:
    """Find the folder of the one network whose name begins so."""
    folders = {_id(folder): folder for folder in _list_folders(results)}
    command = write_command("runs", "list", results)
    return folders[find_network(run, folders, f"in {results}/runs; {command} shows them")]


def _find_seeds(results: Path, run: str) -> list[Path]:
    """Find the folders of all seeds of the settings whose hash begins so, or of the one network that is named."""
    of_hash = [folder for folder in _list_folders(results) if folder.parent.name.startswith(run)]
    # A word that several hashes begin with, or that names a seed, is left to `_find`.
    if len({folder.parent for folder in of_hash}) == 1:
        return of_hash
    return [_find(results, run)]


def _list_folders(results: Path) -> list[Path]:
    """List the folders of all networks, those too that were set aside as damaged."""
    return sorted(path.parent for path in results.glob("runs/*/seed_*/config.yaml"))


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
