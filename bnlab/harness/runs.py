"""A trained network on disk: where it lies, what it consists of, and how it comes to be.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  state.safetensors  status.json

`state.safetensors` is the point from which a killed run goes on; whatever was written after it is written again.
`status.json` comes last and says that the run is finished (or diverged).
"""

from __future__ import annotations

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
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"))

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
        """The steps to be measured: those of `evaluate_at`, as far as the run came."""
        reached = self.status["step"] if self.status else self.steps
        return [step for step in checkpoints(self.config, self.steps) if step <= reached]

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
        found = [(tuple(map(int, p.stem.split("-"))), p) for p in self.folder.glob("trace/*-*.safetensors")]
        return [path for (_, last), path in sorted(found) if last <= until]

    @cached_property
    def trace(self) -> MomentTrace:
        """The batch moments of the whole run."""
        return MomentTrace.join([MomentTrace.load(path) for path in self.trace_parts(self.steps)])

    @property
    def status(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None while it is not finished. ValueError if damaged or foreign."""
        path = self.folder / "status.json"
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        if found.get("format") != _FORMAT:
            raise ValueError(f"{path}: written by another version (format {found.get('format')})")
        return found

    def write_status(self, status: str, step: int, seconds: float, loss: float) -> None:
        found = {
            "format": _FORMAT,
            "status": status,
            "step": step,
            "train_seconds": seconds,
            "final_loss": loss,
        }
        write_text(self.folder / "status.json", json.dumps(found, indent=1))

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

    def check_files(self) -> None:
        """Read every file that measurements will need; ValueError names the first that is damaged."""
        if self.status is None:
            return
        tables.read_frame(self.folder / "log.parquet")
        if self.trace.last_step != self.status["step"]:
            raise ValueError(f"{self.folder / 'trace'}: ends at step {self.trace.last_step}, the run did not")
        for step in self.wanted:
            path = self.checkpoint(step)
            if path.exists():
                load_tensors(path, CHECKPOINT)


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


def all_runs(results: str | Path) -> list[Path]:
    """The folders of all networks below `results`, finished or not."""
    return sorted(p.parent for p in Path(results).glob("runs/*/seed_*/config.yaml") if ".damaged-" not in p.parent.name)
