"""A trained network on disk: where it lies, what it consists of, and how it comes to be.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  state.safetensors  status.json

`state.safetensors` is the point from which a killed run goes on; whatever was written after it is written again.
`status.json` comes last and says that the run is finished (or diverged).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from torch import nn

from bnlab.harness import tables
from bnlab.harness.config import Config, checkpoints, network_hash, total_steps
from bnlab.harness.data import Dataset, load_dataset
from bnlab.harness.models import build_model
from bnlab.harness.training import Batches, Seeds
from bnlab.storage import load_tensors, write_whole
from bnlab.trace import MomentTrace

_FORMAT = 1
CHECKPOINT = "bnlab.checkpoint/1"
_PACKAGES = ("bnlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


class Run:
    """One network: its configuration and its folder."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.id = f"{network_hash(config)}/seed_{config.seed}"
        self.folder = Path(config.results) / "runs" / self.id

    @property
    def lock(self) -> FileLock:
        """Held while the network is trained or its files are checked; shared by all processes of one machine."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return lock_of(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.data, self.device)

    @cached_property
    def device(self) -> torch.device:
        name = self.config.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    @cached_property
    def batches(self) -> Batches:
        data = self.config.data
        seeds = Seeds.of(self.config.seed)
        return Batches(self.dataset.train, self.config.batch_size, seeds, data.shift, data.flip)

    @property
    def steps(self) -> int:
        """Updates that the whole training has."""
        return total_steps(self.config, len(self.dataset.train.labels))

    @property
    def wanted(self) -> list[int]:
        """The steps to be measured: those of `evaluate_at`, before the last if the run diverged there."""
        steps, status = checkpoints(self.config, self.steps), self.status or {"status": "unfinished"}
        return [step for step in steps if status["status"] != "diverged" or step < status["step"]]

    def new_model(self) -> nn.Module:
        """The network before training, on the device."""
        images = self.dataset.train.images
        model = build_model(
            self.config.model,
            channels=images.shape[1],
            image_size=images.shape[2],
            classes=self.dataset.classes,
            seed=Seeds.of(self.config.seed).initialization,
        )
        return model.to(self.device)

    def model_at(self, step: int) -> nn.Module:
        """The network after `step` updates; ValueError if the file is damaged."""
        model = self.new_model()
        model.load_state_dict(load_tensors(self.checkpoint(step), CHECKPOINT)[0])
        return model

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:07d}.safetensors"

    def trace_parts(self, until: int) -> list[Path]:
        """The files of the trace up to a step, in order."""
        found = sorted(self.folder.glob("trace/[0-9]*-[0-9]*.safetensors"))
        return [path for path in found if int(path.stem.partition("-")[2]) <= until]

    @cached_property
    def trace(self) -> MomentTrace:
        """The batch moments of the whole run."""
        return MomentTrace.join([MomentTrace.load(path) for path in self.trace_parts(self.steps)])

    @property
    def status(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None while it is not finished. ValueError if damaged or foreign."""
        return read_status(self.folder)

    @property
    def finished(self) -> bool:
        """Training has come to its end (or diverged), and the status that says so is intact."""
        with contextlib.suppress(ValueError):
            return self.status is not None
        return False

    def write_status(self, status: str, step: int, seconds: float, loss: float) -> None:
        found = {
            "format": _FORMAT,
            "status": status,
            "step": step,
            "train_seconds": seconds,
            "final_loss": loss,
        }
        write_text(self.folder / "status.json", json.dumps({**found, "sha256": _checksum(found)}, indent=1))

    def describe(self) -> None:
        """Write the configuration and the environment beside the network."""
        write_text(self.folder / "config.yaml", yaml.safe_dump(asdict(self.config), sort_keys=False))
        write_text(self.folder / "environment.json", json.dumps(environment(self.device), indent=1))

    def set_aside(self, reason: object) -> None:
        """Move what is damaged out of the way, so that it is made anew; say so."""
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.damaged-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        self.__dict__.pop("trace", None)
        print(f"{self.id}: {reason}\n  set aside as {aside.name}; the network is trained again", file=sys.stderr)

    def check_files(self, step: int) -> None:
        """Read what was written up to `step`; ValueError or FileNotFoundError names the first file that is damaged."""
        if step == 0:
            return
        _read_json(self.folder / "environment.json")
        path = self.folder / "log.parquet"
        log = tables.read_frame(path)
        if list(log) != ["step", "loss", "accuracy"] or list(log["step"][:step]) != list(range(1, step + 1)):
            raise ValueError(f"{path}: does not have a row for each of {step} steps")
        if MomentTrace.join([MomentTrace.load(path) for path in self.trace_parts(step)]).last_step != step:
            raise ValueError(f"{self.folder / 'trace'}: does not reach step {step}")
        for wanted in self.wanted:
            path = self.checkpoint(wanted)
            if path.exists():
                load_tensors(path, CHECKPOINT)


def read_status(folder: Path) -> dict[str, Any] | None:
    """`Run.status` of the run in a folder."""
    path = folder / "status.json"
    if not path.exists():
        return None
    found = _read_json(path)
    if found.get("format") != _FORMAT:
        raise ValueError(f"{path}: written by another version (format {found.get('format')})")
    if found.pop("sha256", None) != _checksum(found):
        raise ValueError(f"{path}: damaged, its contents do not match their checksum")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged (found a {type(found).__name__})")
    return found


def _checksum(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text))


def environment(device: torch.device) -> dict[str, Any]:
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


def all_runs(results: str | Path) -> list[Path]:
    """The folders of all networks below `results`, finished or not."""
    return sorted(p.parent for p in Path(results).glob("runs/*/seed_*/config.yaml") if ".damaged-" not in p.parent.name)
