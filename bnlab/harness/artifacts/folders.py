"""What lies in the folder of a trained network: its small files, read without anything of the network itself."""

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

from bnlab.files import reading, write_text

_PACKAGES = ("bnlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


def read_status(folder: Path) -> dict[str, Any] | None:
    """How the training of the run in a folder ended: status, step, train_seconds, final_loss; None before that.

    Raises:
        Unreadable: the file is damaged.
    """
    path = folder / "status.json"
    return _read(path, "status", "step", "train_seconds", "final_loss") if path.exists() else None


def read_environment(folder: Path) -> dict[str, Any]:
    """In what the run in a folder was trained, see `describe_environment`; Unreadable if the file is not there."""
    return _read(folder / "environment.json", "versions", "device", "threads")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder; Unreadable if the file is not there or damaged."""
    return _read(folder / "config.yaml", "data", "model", "optimizer", "batch_size", "epochs", "steps")


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """A file of YAML, which JSON is too; Unreadable if it has not all of these keys."""
    with reading(path):
        found = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {**{key: found[key] for key in keys}, **found}


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write a file that is there whole, or not at all."""
    write_text(path, json.dumps(found, indent=1))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write what `read_config` reads."""
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


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
    """The lock of the run in a folder, which need not exist; one that this process holds may be taken once more."""
    return FileLock(folder.with_name(f"{folder.name}.lock"), is_singleton=True)


def list_runs(results: str | Path) -> list[Path]:
    """The folders of all networks in a folder of results, finished or not."""
    return sorted(p.parent for p in Path(results).glob("runs/*/seed_*/config.yaml") if ".damaged-" not in p.parent.name)
