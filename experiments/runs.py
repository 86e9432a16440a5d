"""python -m experiments.runs list | show RUN | rm RUN... | clean: the networks that have been trained."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

from experiments.command import run_command

_WRITING = 60.0  # seconds that a file may be in the making: younger ones may be another process's
_DAMAGED = "config.yaml is damaged: the command that trained it writes it again"
USAGE = """usage: python -m experiments.runs list          every network: in what it differs, its state, its disk space
       python -m experiments.runs show RUN      one of them: settings, environment, files
       python -m experiments.runs rm RUN...     remove these networks; RUN is the beginning of a name
       python -m experiments.runs clean         remove what was set aside as damaged, and leftovers of kills
       (results=FOLDER looks elsewhere than in results/)"""


def main() -> int:
    """Exit 2 for a user's mistake."""
    return run_command(_dispatch, USAGE)


def _dispatch(words: list[str]) -> int:
    from bnlab.harness.errors import UserError
    from experiments.compose import find_results_folder

    results = find_results_folder([word for word in words if "=" in word])
    commands = [word for word in words if "=" not in word]
    match commands:
        case ["list"]:
            _list(results)
        case ["show", run]:
            _show(results, run)
        case ["rm", run, *more]:
            _remove(results, [run, *more])
        case ["clean"]:
            _clean(results)
        case ["show" | "rm" as command]:
            raise UserError(f"{command}: which? python -m experiments.runs list shows them")
        case _:
            found = f"cannot read {' '.join(commands)};" if commands else "which command?"
            raise UserError(f"{found} there are list, show, rm and clean, see --help")
    return 0


def _list(results: str) -> None:
    from bnlab.harness.artifacts.folders import list_runs

    folders = list_runs(results)
    if not folders:
        print(f"no networks in {results}/runs; train some: python -m experiments.sweep experiment=quickstart")
        return
    settings = [_settings(folder) for folder in folders]
    readable = [found for found in settings if found]
    keys = list(dict.fromkeys(key for found in readable for key in found))
    differing = [key for key in keys if len({str(found.get(key)) for found in readable}) > 1]
    statuses, sizes = [_status(folder) for folder in folders], [_megabytes(folder) for folder in folders]
    rows = [("run", *differing, "status", "step", "seconds", "MB")]
    for folder, found, status, size in zip(folders, settings, statuses, sizes, strict=True):
        seconds = f"{status['train_seconds']:.0f}" if "train_seconds" in status else ""
        values = ["" if found.get(key) is None else str(found[key]) for key in differing]
        state = status["status"] if found else f"{status['status']}, {_DAMAGED}"
        rows.append((_id(folder), *values, state, str(status.get("step", "")), seconds, f"{size:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    count = f"{len(folders)} network{'s' * (len(folders) > 1)}"
    print(f"{count}, {sum(sizes):,.1f} MB; settings in which all agree are left out (see show)")
    unfinished = sum(status["status"] == "unfinished" for status in statuses)
    if unfinished:
        print(f"{unfinished} unfinished: the command that began them continues them")


def _settings(folder: Path) -> dict[str, Any]:
    """What changes the training, by dotted names; the seed is in the name of the run."""
    from bnlab.harness.artifacts.settings import Config

    config, usual = _config(folder), Config()
    if config is None:
        return {}
    found: dict[str, Any] = {}
    for key in ("data", "model", "optimizer"):
        found |= {f"{key}.{name}": value for name, value in config.get(key, {}).items()}
    found |= {f"norm.{name}": value for name, value in _norm(config).items()}
    # Of image folders the root tells which, and a digest which files it had; other data are the same in each.
    if config["data"]["name"] == "image_folder":
        found["training_images"] = _environment(folder).get("training_images")
    for key in ("data.download", "data.test_fonts", *["data.root"] * (config["data"]["name"] != "image_folder")):
        found.pop(key, None)
    length = "epochs" if config["steps"] is None else "steps"  # instead of which the other is not read
    freezing = () if config.get("freeze_at") is None else ("freeze_at", "freeze_with")
    keys = ("batch_size", length, "order", "averaging", *freezing)
    return found | {key: config.get(key, getattr(usual, key)) for key in keys}  # earlier networks do not say all


def _norm(config: dict[str, Any]) -> dict[str, Any]:
    """What the norm reads; earlier networks do not say."""
    from bnlab.harness.artifacts.norms import NormConfig, training_settings

    known = {key: value for key, value in config.get("norm", {}).items() if key in vars(NormConfig())}
    return training_settings(NormConfig(**known))


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _find(results: str, run: str) -> Path:
    """The folder of the one network whose name begins so."""
    from bnlab.harness.artifacts.folders import list_runs
    from bnlab.harness.errors import UserError

    folders = list_runs(results)
    is_whole = re.search(r"/seed_\d", run)  # seed 1 is not the beginning of seed 10
    found = [folder for folder in folders if run and (_id(folder) == run if is_whole else _id(folder).startswith(run))]
    if len(found) != 1:
        more = ", …" if len(found) > 4 else ""
        which = f"{len(found)} networks: {', '.join(map(_id, found[:4]))}{more}" if found else "no network"
        raise UserError(f"{run}: names {which} in {results}/runs; python -m experiments.runs list shows them")
    return found[0]


def _remove(results: str, runs: list[str]) -> None:
    from filelock import Timeout

    from bnlab.harness.artifacts.folders import lock_of
    from bnlab.harness.errors import UserError

    folders = list(dict.fromkeys(_find(results, run) for run in runs))
    with contextlib.ExitStack() as locks:
        for folder in folders:
            try:
                locks.enter_context(lock_of(folder).acquire(timeout=0))
            except Timeout as error:
                raise UserError(f"{_id(folder)}: is being trained; nothing was removed") from error
        for folder in folders:
            size = _megabytes(folder)
            # In one step: what a kill leaves is no network any more, and `clean` removes it.
            gone = folder.with_name(f".removed-{folder.name}-{uuid.uuid4().hex[:8]}")
            folder.rename(gone)
            shutil.rmtree(gone)
            print(f"removed {_id(folder)} ({size:.1f} MB); its rows stay in the tables until a sweep trains it again")


def _show(results: str, run: str) -> None:
    import yaml

    folder = _find(results, run)
    print(_id(folder))
    for key, value in {**_status(folder), "folder": folder, **_environment(folder)}.items():
        print(f"  {key}: {_describe(value)}")
    print("\nsettings of the job that began it")
    config = _config(folder)
    written = _DAMAGED if config is None else yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    print(textwrap.indent(written, "  "))
    print("files")
    files = [path for path in folder.rglob("*") if path.is_file()]
    for place in sorted({path.relative_to(folder).parts[0] for path in files}):
        sizes = [path.stat().st_size / 1e3 for path in files if path.relative_to(folder).parts[0] == place]
        count = f"({len(sizes)})" if (folder / place).is_dir() else ""
        print(f"{sum(sizes):10,.1f} kB  {place} {count}".rstrip())


def _describe(value: object) -> str:
    if isinstance(value, list):
        return f"in {len(value)} other environments, see environment.json"
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clean(results: str) -> None:
    folder = Path(results)
    damaged = sorted([*folder.glob("runs/*/*.damaged-*"), *folder.glob("runs/*/.removed-*")])
    # Only where the harness writes: `results` may be any folder.
    own = [path for place in ("runs", "*/parts", "*/tables", "*/failures") for path in folder.glob(f"{place}/**/*")]
    leftovers = [p for p in own if p.match(".*.part") and time.time() - p.stat().st_mtime > _WRITING]
    unreadable = [p for p in own if p.match("*.damaged") and p.is_file()]
    for path in damaged:
        shutil.rmtree(path)
    for path in (*leftovers, *unreadable):
        path.unlink(missing_ok=True)
    print(f"removed {len(damaged)} damaged networks and {len(leftovers) + len(unreadable)} leftover files in {results}")


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _config(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if the file is damaged."""
    from bnlab.harness.artifacts.folders import read_config

    try:
        return read_config(folder)
    except ValueError:
        return None


def _environment(folder: Path) -> dict[str, Any]:
    from bnlab.harness.artifacts.folders import read_environment

    try:
        return read_environment(folder)
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"environment.json": "damaged"}


def _status(folder: Path) -> dict[str, Any]:
    from bnlab.files import OtherVersion
    from bnlab.harness.artifacts.folders import read_status

    try:
        return read_status(folder) or {"status": "unfinished"}
    except OtherVersion:
        return {"status": "of another version"}
    except ValueError:
        return {"status": "damaged"}


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends it quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
