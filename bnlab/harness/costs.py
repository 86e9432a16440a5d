"""What networks that are there took to train on this machine, by which a plan needs no trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from bnlab.files import Unreadable, reading
from bnlab.harness.artifacts.runs import Run, describe_environment

_READ = 300  # of the newest networks, which takes half a second
_KIND = ("data", "model", "norm", "batch_size", "averaging")  # settings on which the time of an update depends
_MACHINE = ("device", "cores", "threads")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml, six times as fast, where there is one


class Cost(NamedTuple):
    """Of an update: seconds, and bytes of batch moments. Bytes of a checkpoint."""

    update: float
    moments: float
    checkpoint: float


def describe_kind(run: Run) -> str:
    """Describe what the time of an update depends on; networks of one description cost the same."""
    environment = describe_environment(run.device)
    environment["threads"] = run.config.threads or torch.get_num_threads()
    return _describe(asdict(run.config), environment)


def find_costs(results: Path) -> dict[str, Cost]:
    """Find the costs of each kind of network that has been trained, of the longest training that is there."""
    found: dict[str, tuple[int, Path]] = {}
    for folder in _list_newest(results):
        try:
            status = _read(folder / "status.json")
            kind = _describe(_read(folder / "config.yaml"), _read(folder / "environment.json"))
        except Unreadable:
            continue
        most, _ = found.get(kind, (0, folder))
        if status["status"] == "finished" and status["step"] > most:
            found[kind] = status["step"], folder
    return {kind: _find_cost(folder, steps) for kind, (steps, folder) in found.items()}


def _list_newest(results: Path) -> Iterable[Path]:
    """List the folders of the networks that were trained last."""
    paths = sorted(results.glob("runs/*/seed_*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in paths[:_READ]]


def _read(path: Path) -> Any:
    with reading(path):
        return yaml.load(path.read_text(), _LOADER)  # JSON is YAML


def _describe(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    chosen = {key: settings.get(key) for key in _KIND}
    chosen["data"] = {key: value for key, value in settings["data"].items() if key != "content"}  # takes no time
    machine = {key: environment.get(key) for key in _MACHINE}
    return json.dumps([chosen, machine], sort_keys=True, default=str)


def _find_cost(folder: Path, steps: int) -> Cost:
    seconds = _read(folder / "status.json")["train_seconds"]
    moments = sum(_list_sizes(folder / "trace"))
    return Cost(seconds / steps, moments / steps, max(_list_sizes(folder / "checkpoints"), default=0))


def _list_sizes(folder: Path) -> Iterator[int]:
    return (path.stat().st_size for path in folder.glob("*.safetensors"))
