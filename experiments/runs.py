"""python -m experiments.runs list | show RUN | rm RUN...: the networks that have been trained."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from experiments.command import run_command

USAGE = """usage: python -m experiments.runs list          every network: in what it differs, its state, its disk space
       python -m experiments.runs show RUN      one of them: settings, environment, files
       python -m experiments.runs rm RUN...     remove these networks; RUN is the beginning of a name
       (results=FOLDER looks elsewhere than in results/)"""


def main() -> int:
    """Exit 2 for a user's mistake."""
    return run_command(_dispatch, USAGE)


def _dispatch(words: list[str]) -> int:
    from bnlab.harness.errors import UserError

    folders = [word.removeprefix("results=") for word in words if word.startswith("results=")]
    results = Path(folders[-1] if folders else "results")
    match [word for word in words if not word.startswith("results=")]:
        case ["list"]:
            _list(results)
        case ["show", run]:
            _show(_find(results, run))
        case ["rm", run, *more]:
            _remove([_find(results, one) for one in (run, *more)])
        case found:
            raise UserError(f"cannot read {' '.join(found)!r}; there are list, show RUN and rm RUN..., see --help")
    return 0


def _list(results: Path) -> None:
    folders = _list_folders(results)
    if not folders:
        print(f"no networks in {results}/runs; train some: python -m experiments.sweep experiment=quickstart")
        return
    settings = [_settings(folder) for folder in folders]
    keys = dict.fromkeys(key for found in settings for key in found)
    differing = [key for key in keys if len({str(found.get(key)) for found in settings}) > 1]
    rows = [("run", *differing, "status", "step", "seconds", "MB")]
    for folder, found in zip(folders, settings, strict=True):
        status = _status(folder)
        values = [str(found.get(key, "")) for key in differing]
        seconds = f"{status['train_seconds']:.0f}" if "train_seconds" in status else ""
        rows.append(
            (_id(folder), *values, status["status"], str(status.get("step", "")), seconds, f"{_size(folder):.1f}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    total = sum(map(_size, folders))
    print(f"{len(folders)} networks, {total:,.1f} MB; settings in which all agree are left out (see show)")


def _show(folder: Path) -> None:
    print(f"{_id(folder)}  {folder}")
    for name in ("status.json", "environment.json", "config.yaml"):
        if (folder / name).exists():
            print(f"\n{name}\n{(folder / name).read_text().strip()}")
    print("\nfiles")
    for place in sorted(folder.iterdir()):
        count = f" ({sum(path.is_file() for path in place.rglob('*'))})" if place.is_dir() else ""
        print(f"{1e3 * _size(place):12,.1f} kB  {place.name}{count}")


def _remove(folders: list[Path]) -> None:
    from bnlab.harness.errors import UserError

    for folder in folders:
        try:
            with FileLock(folder.with_name(f"{folder.name}.lock")).acquire(timeout=0):
                size = _size(folder)
                (folder / "status.json").unlink(missing_ok=True)  # first: what a kill leaves is no whole run
                shutil.rmtree(folder)
        except Timeout as error:
            raise UserError(f"{_id(folder)}: is being trained; it was not removed") from error
        print(f"removed {_id(folder)} ({size:.1f} MB); its rows stay in the tables until a sweep trains it again")


def _find(results: Path, run: str) -> Path:
    """The folder of the one network whose name begins so."""
    from bnlab.harness.errors import UserError

    folders = _list_folders(results)
    found = [folder for folder in folders if _id(folder) == run] or [f for f in folders if _id(f).startswith(run)]
    if len(found) != 1:
        which = f"{len(found)} networks, such as {_id(found[0])}" if found else "no network"
        raise UserError(f"{run}: names {which} in {results}/runs; python -m experiments.runs list shows them")
    return found[0]


def _list_folders(results: Path) -> list[Path]:
    """Of all networks, those too that were set aside as damaged."""
    return sorted(path.parent for path in results.glob("runs/*/seed_*/config.yaml"))


def _settings(folder: Path) -> dict[str, Any]:
    """What the network was trained with, by dotted names; the seed is in the name of the run."""
    found: dict[str, Any] = {}
    groups = ("data", "model", "norm", "optimizer")
    known = ("batch_size", "epochs", "steps", "order", "averaging", "freeze_at", "freeze_with")
    for key, value in (yaml.safe_load((folder / "config.yaml").read_text()) or {}).items():
        if key in groups:
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key in known:
            found[key] = value
    return found


def _status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    if ".damaged" in folder.name:
        return {"status": "set aside"}
    return json.loads(path.read_text()) if path.exists() else {"status": "unfinished"}  # type: ignore[no-any-return]


def _size(path: Path) -> float:
    """MB of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 1e6


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends it quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
