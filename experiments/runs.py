"""python -m experiments.runs list | show RUN | clean: the networks that have been trained."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from experiments.command import exit_code

_WRITING = 60.0  # seconds that a file may be in the making: younger ones may be another process's
USAGE = """usage: python -m experiments.runs list             every network, its settings and whether it is finished
       python -m experiments.runs show RUN         one of them: settings, environment, files
       python -m experiments.runs clean            remove what was set aside as damaged, and leftovers of kills
       (results=FOLDER looks elsewhere than in results/)"""


def main() -> int:
    """Exit 2 for a user's mistake."""
    return exit_code(_runs)


def _runs(arguments: list[str]) -> int:
    from bnlab.harness.errors import UserError

    words = [w for w in arguments if not w.startswith("results=")]
    results = next((w.removeprefix("results=") for w in arguments if w.startswith("results=")), "results")
    if not results:
        raise UserError("results=: must be a folder; results is the usual one")
    match words:
        case ["list"]:
            _list(results)
        case ["show", run]:
            _show(results, run)
        case ["clean"]:
            _clean(results)
        case [*_, "-h" | "--help"]:
            print(USAGE)
        case ["show"]:
            raise UserError("show: which? python -m experiments.runs list shows them")
        case _:
            raise UserError(f"cannot read {' '.join(words) or 'an empty command'}; --help lists the commands")
    return 0


def _list(results: str) -> None:
    from bnlab.harness.runs import all_runs

    folders = all_runs(results)
    if not folders:
        print(f"no networks in {results}/runs; train some: python -m experiments.sweep experiment=quickstart")
        return
    rows = [("run", "data", "model", "batch", "epochs", "status", "step", "seconds", "MB")]
    for folder in folders:
        config, status = _config(folder), _status(folder)
        length = f"{config['steps']} steps" if config["steps"] else str(config["epochs"])
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        seconds = f"{status['train_seconds']:.0f}" if "train_seconds" in status else ""
        network = (_id(folder), config["data"]["name"], config["model"]["name"], str(config["batch_size"]), length)
        rows.append((*network, status["status"], str(status.get("step", "")), seconds, f"{size:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    unfinished = sum(row[5] == "unfinished" for row in rows)
    if unfinished:
        print(f"{unfinished} unfinished: the command that began them continues them")


def _show(results: str, run: str) -> None:
    import yaml

    from bnlab.harness.errors import UserError
    from bnlab.harness.runs import all_runs

    found = [folder for folder in all_runs(results) if _id(folder).startswith(run)]
    if len(found) != 1:
        more = ", …" if len(found) > 4 else ""
        which = f"{len(found)} networks: {', '.join(map(_id, found[:4]))}{more}" if found else "no network"
        raise UserError(f"{run}: names {which} in {results}/runs; python -m experiments.runs list shows them")
    folder = found[0]
    described = folder / "environment.json"
    environment = json.loads(described.read_text()) if described.exists() else {}
    print(_id(folder))
    for key, value in {**_status(folder), "folder": folder, **environment}.items():
        print(f"  {key}: {_said(value)}")
    print("\nsettings of the job that began it")
    print(textwrap.indent(yaml.safe_dump(_config(folder), sort_keys=False, default_flow_style=None), "  "))
    print("files")
    files = [path for path in folder.rglob("*") if path.is_file()]
    for place in sorted({path.relative_to(folder).parts[0] for path in files}):
        sizes = [path.stat().st_size / 1e3 for path in files if path.relative_to(folder).parts[0] == place]
        count = f"({len(sizes)})" if (folder / place).is_dir() else ""
        print(f"{sum(sizes):10,.1f} kB  {place} {count}".rstrip())


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clean(results: str) -> None:
    folder = Path(results)
    damaged = sorted(folder.glob("runs/*/*.damaged-*"))
    # Only where the harness writes: `results` may be any folder.
    own = [path for place in ("runs", "*/parts", "*/tables", "*/failures") for path in folder.glob(f"{place}/**/*")]
    leftovers = [p for p in own if p.match(".*.part") and time.time() - p.stat().st_mtime > _WRITING]
    spoilt = [p for p in own if p.match("*.damaged") and p.is_file()]
    for path in damaged:
        shutil.rmtree(path)
    for path in (*leftovers, *spoilt):
        path.unlink(missing_ok=True)
    print(f"removed {len(damaged)} damaged networks and {len(leftovers) + len(spoilt)} leftover files in {results}")


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    from bnlab.harness.errors import UserError

    path = folder / "config.yaml"
    try:
        return dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged; remove the folder, the sweep trains the network again") from error


def _status(folder: Path) -> dict[str, Any]:
    from bnlab.harness.runs import read_status

    try:
        return read_status(folder) or {"status": "unfinished"}
    except ValueError:
        return {"status": "damaged"}


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends it quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
