"""bnlab runs list | show RUN | rm RUN... | rm name=NAME | export RUN FILE: the networks that have been trained."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from bnlab.common.files import Unreadable, reading
from bnlab.harness.errors import UserError, find_network
from bnlab.harness.lab.command import print_table, run_command, write_command
from bnlab.harness.lab.removing import measure_size, remove_network
from bnlab.harness.source_code import CODE, SOURCE, digest_whole
from bnlab.harness.trained_with import flatten_settings

USAGE = """usage: bnlab runs list          every network: in what it differs, its state, its disk space
       bnlab runs show RUN      one of them, or all seeds of its settings: settings, environment, files
       bnlab runs rm RUN... [--yes]
                                remove these networks; their rows stay in the tables of sweeps. Where one word stands
                                for several seeds they are listed, and removed with --yes
       bnlab runs rm name=NAME [SETTING=VALUE ...] [--yes] [--networks]
                                take the networks with these settings out of the tables of a sweep, as
                                batch_size=32 or seed=0,1; with momentum= or estimator= only their rows of these:
                                list them; with --yes do it. The networks stay, unless --networks removes them too
       bnlab runs export RUN FILE.safetensors [step=K] [statistics=exact]
                                weights and buffers as safetensors, with torch's keys
RUN is a name as HASH/seed_0, or a beginning that no other has; show and rm take HASH for all of its seeds.
results=FOLDER looks elsewhere than in results/."""
_OPTIONS = ("--yes", "--networks")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml, six times as fast, where there is one


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
    # name= belongs to rm alone. Beside other words it stays among the settings, which are refused below.
    name = settings.pop("name", "") if names == ["rm"] else ""
    # rm name=NAME takes all options and settings.
    if not name:
        verb = names[0] if names else ""
        _require_fitting(verb, options, settings)
    match names:
        case ["list"]:
            _list(results)
        case ["show", run]:
            for folder in _find_seeds(results, run):
                _show(folder)
        case ["export", run, file]:
            _export(_find(results, run), Path(file), settings, results)
        case ["rm"] if name:
            from bnlab.harness.lab.forgetting import forget  # with pandas

            forget(name, settings, results, is_sure="--yes" in options, with_networks="--networks" in options)
        case ["rm", run, *more]:
            _remove([run, *more], results, is_sure="--yes" in options)
        case ["show" | "export" | "rm"]:
            command = write_command("runs", "list", results)
            raise UserError(f"{names[0]}: name a network; {command} shows them")
        case _:
            raise UserError(
                f"cannot read {' '.join(names)!r}; there are list, show RUN, rm RUN..., rm name=NAME and export RUN "
                "FILE, see --help"
            )
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


def _require_fitting(verb: str, options: list[str], settings: dict[str, str]) -> None:
    """Raise UserError for options and settings that do not go with a command other than rm name=NAME."""
    for option in options:
        # A word after rm may stand for several seeds, which --yes removes.
        if verb != "rm" or option != "--yes":
            raise UserError(f"{option}: goes with rm name=NAME; see --help")
    if settings and verb != "export":
        raise UserError(f"{next(iter(settings))}: settings stand beside rm name=NAME, or export; see --help")


def _remove(runs: list[str], results: Path, is_sure: bool) -> None:
    """Remove networks; where a word stands for several seeds, only list them unless `is_sure`."""
    folders: list[Path] = []
    for run in runs:
        folders += _find_seeds(results, run)
    if len(folders) > len(runs) and not is_sure:
        for folder in folders:
            print(_id(folder))
        where = [] if results == Path("results") else [f"results={results}"]
        command = shlex.join(["bnlab", "runs", "rm", *runs, *where, "--yes"])
        print(f"to remove these {len(folders)} networks: {command}")
        return
    for folder in folders:
        remove_network(folder, keeps_rows=True)


def _list(results: Path) -> None:
    """Print a line for each network; one with a damaged file is named on stderr and left out."""
    import pandas as pd

    folders = _list_folders(results)
    if not folders:
        command = write_command("sweep", "experiment=quickstart", results)
        print(f"no networks in {results}/runs; train some: {command}")
        return
    rows = []
    for folder in folders:
        try:
            rows.append(_read_status(folder) | _read_settings(folder))
        except Unreadable as error:
            print(f"{_id(folder)} is left out: {error}", file=sys.stderr)
    if not rows:
        return

    table = pd.DataFrame(rows)
    ends = ["status", "step", "seconds", "MB"]
    settings = table.columns.drop(["run", *ends])
    differing = [key for key in settings if table[key].map(str).nunique() > 1]  # null counts too
    megabytes = table["MB"].sum()
    table["MB"] = table["MB"].round(1)  # after the sum: many networks take less
    print_table(table[["run", *differing, *ends]])
    networks = "1 network" if len(table) == 1 else f"{len(table):,} networks"
    print(f"{networks}, {megabytes:,.1f} MB; settings in which all agree are left out (see show)")


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read what the network was trained with, called as in the table `runs`; the seed is in the name of the run."""
    path = folder / "config.yaml"
    with reading(path):
        config = dict(yaml.load(path.read_text(encoding="utf-8"), _LOADER))
    settings = flatten_settings(config)

    # Two networks may differ in nothing but the code of the user's own, which is none of the settings that are kept.
    environment = folder / "environment.json"
    if environment.exists():
        with reading(environment):
            codes = json.loads(environment.read_text(encoding="utf-8")).get(CODE, {})
        for key, code in codes.items():
            settings[f"{key}.{SOURCE}"] = digest_whole(code)
    return settings


def _read_status(folder: Path) -> dict[str, Any]:
    """Read state, time and disk space of a network; of an unfinished one those from which it goes on."""
    path = folder / "status.json"
    saved = folder / "state.safetensors"
    state: dict[str, Any] = {"status": "unfinished", "step": 0, "train_seconds": 0}
    if path.exists():
        with reading(path):
            state = json.loads(path.read_text(encoding="utf-8"))
    elif saved.exists():
        # For numpy, so that a list of networks does not wait for torch.
        with reading(saved), safe_open(saved, framework="np") as file:
            metadata = file.metadata()
            state |= {"step": int(metadata["step"]), "train_seconds": float(metadata["seconds"])}

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
