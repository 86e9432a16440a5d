"""bnlab runs list | show RUN | rm RUN... | export RUN FILE: the networks that have been trained."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from experiments.command import run_command

USAGE = """usage: bnlab runs list          every network: in what it differs, its state, its disk space
       bnlab runs show RUN      one of them: settings, environment, files
       bnlab runs rm RUN...     remove these networks; RUN is a beginning that one name has
       bnlab runs export RUN FILE.safetensors [step=K] [statistics=exact]
                                weights and buffers as safetensors, with torch's keys
       (results=FOLDER looks elsewhere than in results/)"""


def main() -> int:
    """Exit 2 for a user's mistake."""
    return run_command(_dispatch, USAGE)


def _dispatch(words: list[str]) -> int:
    from bnlab.harness.errors import UserError

    settings = dict(word.split("=", 1) for word in words if "=" in word)
    results = Path(settings.pop("results", "results"))
    names = [word for word in words if "=" not in word]
    if settings and names[:1] != ["export"]:
        raise UserError(f"{next(iter(settings))}: only export has settings beside results=; see --help")
    match names:
        case ["list"]:
            _list(results)
        case ["show", run]:
            _show(_find(results, run))
        case ["export", run, file]:
            _export(_find(results, run), Path(file), settings, results)
        case ["rm", run, *more]:
            _remove([_find(results, one) for one in (run, *more)])
        case found:
            raise UserError(
                f"cannot read {' '.join(found)!r}; there are list, show RUN, rm RUN... and export RUN FILE, see --help"
            )
    return 0


def _list(results: Path) -> None:
    import pandas as pd

    folders = _list_folders(results)
    if not folders:
        command = shlex.join(["bnlab", "sweep", "experiment=quickstart", *_say_where(results)])
        print(f"no networks in {results}/runs; train some: {command}")
        return
    readable = _read_all(folders)
    if not readable:
        return
    settings = pd.DataFrame([settings for settings, _ in readable])
    states = pd.DataFrame([state for _, state in readable])
    differing = [key for key in settings if settings[key].astype(str).nunique() > 1]
    table = pd.concat([states["run"], settings[differing], states.drop(columns="run")], axis=1)
    print(table.to_string(index=False, na_rep=""))
    print(f"{len(states)} networks, {states['MB'].sum():,.1f} MB; settings in which all agree are left out (see show)")


def _read_all(folders: list[Path]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and state of each network; one with a damaged file is named on stderr and left out."""
    from bnlab.files import Unreadable

    readable = []
    for folder in folders:
        try:
            readable.append((_settings(folder), _describe(folder)))
        except Unreadable as error:
            print(f"{_id(folder)} is left out: {error}", file=sys.stderr)
    return readable


def _describe(folder: Path) -> dict[str, Any]:
    """What is listed of a network beside its settings."""
    from bnlab.files import reading

    path = folder / "status.json"
    found: dict[str, Any] = {"status": "unfinished", "step": 0, "train_seconds": 0}
    with reading(path):
        if path.exists():
            found = json.loads(path.read_text())
        status = "set aside" if ".damaged" in folder.name else found["status"]
        seconds = round(found["train_seconds"])
        step = found["step"]
    return {"run": _id(folder), "status": status, "step": step, "seconds": seconds, "MB": round(_size(folder), 1)}


def _show(folder: Path) -> None:
    print(f"{_id(folder)}  {folder}")
    for name in ("status.json", "environment.json", "config.yaml"):
        if (folder / name).exists():
            print(f"\n{name}\n{(folder / name).read_text(errors='replace').strip()}")
    print("\nfiles")
    for path in sorted(folder.iterdir()):
        print(f"{1e3 * _size(path):12,.1f} kB  {path.name}")


def _export(folder: Path, file: Path, settings: dict[str, str], results: Path) -> None:
    """Write a network as safetensors; its metadata say what images have to be standardized by."""
    from safetensors.torch import save_file

    from bnlab.harness.errors import UserError
    from bnlab.harness.loading import build_network, open_run

    step = settings.pop("step", "")
    statistics = settings.pop("statistics", "running")
    if settings or not (step or "0").isdigit():
        raise UserError("export takes step=, a number, and statistics=, as exact or 'ema(momentum=0.01)'")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: name a file that ends with .safetensors")

    run = open_run(_id(folder), results)
    model = build_network(run, int(step) if step else None, statistics)
    metadata = {
        "run": run.id,
        "statistics": statistics,
        "mean": json.dumps(run.dataset.mean),
        "std": json.dumps(run.dataset.std),
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file, metadata)
    print(f"{file}: {run.id} with {statistics} statistics")
    print(
        f"images are standardized by mean {run.dataset.mean} and standard deviation {run.dataset.std} of each channel"
    )


def _remove(folders: list[Path]) -> None:
    """Remove networks; measured rows, which tables of several sweeps may need, stay."""
    from bnlab.harness.errors import UserError

    for folder in folders:
        try:
            with FileLock(folder.with_name(f"{folder.name}.lock")).acquire(timeout=0):
                before = _size(folder)
                (folder / "status.json").unlink(missing_ok=True)  # first: what a kill leaves is no whole run
                _empty(folder)
                freed = before - _size(folder)
        except Timeout as error:
            raise UserError(f"{_id(folder)}: is being trained; it was not removed") from error
        print(f"removed {_id(folder)} ({freed:.1f} MB); its measured rows stay in the tables")


def _empty(folder: Path) -> None:
    """Remove all from a network's folder but its measured rows; the folder of one that was set aside has none."""
    if ".damaged" in folder.name:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.name == "measurements":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _find(results: Path, run: str) -> Path:
    """The folder of the one network whose name begins so."""
    from bnlab.harness.errors import UserError

    folders = _list_folders(results)
    found = [folder for folder in folders if _id(folder) == run] or [f for f in folders if _id(f).startswith(run)]
    if len(found) != 1:
        which = f"{len(found)} networks, such as {_id(found[0])}" if found else "no network"
        command = shlex.join(["bnlab", "runs", "list", *_say_where(results)])
        raise UserError(f"{run}: names {which} in {results}/runs; {command} shows them")
    return found[0]


def _say_where(results: Path) -> list[str]:
    """The word that a command needs to find this folder, if it needs one."""
    return [] if results == Path("results") else [f"results={results}"]


def _list_folders(results: Path) -> list[Path]:
    """Of all networks, those too that were set aside as damaged."""
    return sorted(path.parent for path in results.glob("runs/*/seed_*/config.yaml"))


def _settings(folder: Path) -> dict[str, Any]:
    """What the network was trained with, by dotted names; the seed is in the name of the run."""
    from bnlab.files import reading

    with reading(folder / "config.yaml"):
        config = dict(yaml.safe_load((folder / "config.yaml").read_text()))
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key in ("batch_size", "epochs", "steps", "order", "averaging", "freeze_at", "freeze_with"):
            found[key] = value
    if found.get("steps"):  # instead of which epochs are not read
        found.pop("epochs", None)
    return found


def _size(path: Path) -> float:
    """MB of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 1e6


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


if __name__ == "__main__":
    sys.exit(main())
