"""What lies in the folder of a trained network: its own files, read without anything of the network itself."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from bnlab.files import OtherVersion, digest, write_whole

_FORMAT = 1  # of status.json
_PACKAGES = ("bnlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


def read_status(folder: Path) -> dict[str, Any] | None:
    """`Run.status` of the run in a folder."""
    path = folder / "status.json"
    if not path.exists():
        return None
    found = _read_json(path)
    if found.get("format") != _FORMAT:
        raise OtherVersion(f"{path}: expected format {_FORMAT}, found {found.get('format')}")
    if found.pop("sha256", None) != _digest_of(found):
        raise ValueError(f"{path}: damaged, its contents do not match their checksum")
    _require_own(path, found)
    return found


def write_status(folder: Path, said: dict[str, Any]) -> None:
    """Write what `read_status` reads, with a checksum."""
    found = {"format": _FORMAT, **said}
    _write_json(folder / "status.json", {**found, "sha256": _digest_of(found)})


def _require_own(path: Path, found: dict[str, Any]) -> None:
    """ValueError if a file in a run's folder says that it is of another run; earlier ones do not say."""
    expected = f"{path.parent.parent.name}/{path.parent.name}"
    if found.get("run", expected) != expected:
        raise ValueError(f"{path}: is of run {found['run']}, expected {expected}")


def read_environment(folder: Path) -> dict[str, Any]:
    """`Run.environment` of the run in a folder."""
    path = folder / "environment.json"
    found = _read_json(path)
    for key, kind in (("versions", dict), ("device", str), ("threads", int)):
        if not isinstance(found.get(key), kind):
            raise ValueError(f"{path}: damaged (found no {key})")
    if not isinstance(found.get("later", []), list):
        raise ValueError(f"{path}: damaged (later is no list)")
    _require_own(path, found)
    return found


def write_environment(folder: Path, described: dict[str, Any]) -> None:
    """Write what `read_environment` reads."""
    _write_json(folder / "environment.json", described)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder; ValueError if it is damaged, FileNotFoundError if it is missing."""
    path = folder / "config.yaml"
    try:
        found = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict) or not {"batch_size", "epochs", "steps"} <= found.keys():
        raise ValueError(f"{path}: damaged (found a {type(found).__name__} without settings)")
    for key in ("data", "model", "optimizer"):
        if not isinstance(found.get(key), dict) or "name" not in found[key]:
            raise ValueError(f"{path}: damaged (found no name of the {key})")
    if f"seed_{found.get('seed')}" != folder.name:
        raise ValueError(f"{path}: is of seed {found.get('seed')}, expected that of {folder.name}")
    return found


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write what `read_config` reads."""
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged (found a {type(found).__name__})")
    return found


def _digest_of(found: dict[str, Any]) -> str:
    return digest(json.dumps(found, sort_keys=True))


def _write_json(path: Path, found: dict[str, Any]) -> None:
    write_text(path, json.dumps(found, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole, or not at all."""
    write_whole(path, lambda beside: beside.write_text(text))


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, without anything that names the machine."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def lock_of(folder: Path) -> FileLock:
    """The lock of the run in a folder, which need not exist."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def list_runs(results: str | Path) -> list[Path]:
    """The folders of all networks in a folder of results, finished or not."""
    return sorted(p.parent for p in Path(results).glob("runs/*/seed_*/config.yaml") if ".damaged-" not in p.parent.name)
