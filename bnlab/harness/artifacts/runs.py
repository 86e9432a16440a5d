"""A trained network on disk: where it lies, what it consists of, and how its files are read.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  state.safetensors  requested.json  status.json

`state.safetensors` is the point from which a killed training goes on; whatever was written after it is written again.
`status.json` comes last and says that the training has finished (or diverged).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

from bnlab.files import digest, reading, write_text
from bnlab.harness import schema
from bnlab.harness.artifacts.data import Dataset, Split, load_dataset
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.settings import Config, as_list, freezing_step, list_steps, network_hash, total_steps
from bnlab.harness.artifacts.shifts import digest_of_shifted, list_predictions, shift_images
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.recording.trace import MomentTrace
from bnlab.storage import load_tensors, save_tensors

_CHECKPOINT = "bnlab.checkpoint/1"
_REQUESTED = "requested.json"
_PACKAGES = ("bnlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


class Run:
    """One network: its configuration and its folder. What reads a file raises `Unreadable` if that cannot be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.id = f"{network_hash(config)}/seed_{config.seed}"
        self.folder = Path(config.results) / "runs" / self.id

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.data, self.device)

    @cached_property
    def device(self) -> torch.device:
        name = self.config.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    @cached_property
    def batches(self) -> Batches:
        config = self.config
        return Batches(
            self.dataset.train,
            config.batch_size,
            Seeds.of(config.seed),
            config.data.shift,
            config.data.flips,
            config.order,
            self.dataset.augmented,
        )

    @cached_property
    def steps(self) -> int:
        """Updates that the whole training has."""
        return total_steps(self.config, self.config.data.count_training())

    @property
    def frozen_from(self) -> int | None:
        """The step from which on batch norm is in eval mode, with the statistics of that step; None: it never is."""
        return freezing_step(self.config, self.steps)

    @property
    def has_trace(self) -> bool:
        """Whether the network trains with statistics of its batches, which are recorded."""
        return self.config.norm.uses_batch

    @property
    def wanted(self) -> list[int]:
        """The steps to be measured: those of `evaluate_at`; of a run that diverged, those before that."""
        steps, status = list_steps(self.config.evaluate_at, self.steps), self.status
        end = status["step"] if status and status["status"] == "diverged" else self.steps + 1
        return [step for step in steps if step < end]

    @property
    def predicted(self) -> list[int]:
        """The steps of `wanted` at which the network's predictions are measured too: `accuracy_at`."""
        if (at := self.config.accuracy_at) == "final":
            return self.wanted[-1:]
        return self.wanted if at == "all" else sorted({*self.wanted} & {*list_steps(at, self.steps)})

    def limit_at(self, step: int) -> int | None:
        """How many images of a split are measured at a step, `population_images`; None: all, as at the last step."""
        return None if step == self.steps else self.config.population_images

    @property
    def predictions(self) -> list[tuple[str, str]]:
        """Split and shift of the images that are predicted: `evaluate_on` and `shifts`."""
        return list_predictions(self.config.data, as_list(self.config.evaluate_on), as_list(self.config.shifts))

    def images_of(self, split: str, shift: str) -> Split:
        """What is predicted of a split under a shift."""
        return shift_images(self.dataset, self.config.data, split, shift)

    def digest_of(self, split: str, shift: str) -> str:
        """The digest of `images_of`."""
        return digest_of_shifted(self.dataset, self.config.data, split, shift)

    def new_model(self) -> nn.Module:
        """The network before training, on the device."""
        config, (_, channels, size, _) = self.config, self.dataset.train.images.shape
        seed = Seeds.of(config.seed).initialization
        of_data = {"channels": channels, "image_size": size, "classes": self.dataset.classes}
        return build_model(config.model, config.norm, **of_data, seed=seed, steps=self.steps).to(self.device)

    @property
    def lock(self) -> FileLock:
        """Held while the network is trained or measured; this process may take it again while it holds it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"), is_singleton=True)

    @property
    def finished(self) -> bool:
        """Whether training has come to its end, or diverged."""
        return (self.folder / "status.json").exists()

    def is_complete(self, checkpoints: Iterable[int]) -> bool:
        """Whether it has finished, with a checkpoint of each of these steps."""
        return self.finished and {*checkpoints} <= {*self.list_checkpoints()}

    @property
    def status(self) -> dict[str, Any] | None:
        """How training ended: status, step, train_seconds, final_loss; None before that."""
        return self._read("status.json") if self.finished else None

    @property
    def environment(self) -> dict[str, Any]:
        """In what the network was trained, see `describe_environment`."""
        return self._read("environment.json")

    def _read(self, name: str) -> dict[str, Any]:
        with reading(self.folder / name):
            return json.loads((self.folder / name).read_text())  # type: ignore[no-any-return]

    def read_log(self) -> pd.DataFrame:
        """The columns step, loss and accuracy, a row for each update."""
        return schema.read_frame(self.folder / "log.parquet")

    @cached_property
    def training(self) -> str:
        """A digest of the losses of all updates, which tells this training from one with other numbers."""
        return digest(self.read_log()["loss"].to_numpy().tobytes(), digits=10)

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:07d}.safetensors"

    def list_checkpoints(self) -> list[int]:
        """The steps of which there are checkpoints."""
        return [int(path.stem[-7:]) for path in sorted(self.folder.glob("checkpoints/step_*.safetensors"))]

    @property
    def requested(self) -> list[int]:
        """The steps whose checkpoints a sweep has requested beside those of the job that trains the network."""
        has_any = (self.folder / _REQUESTED).exists()
        return list(self._read(_REQUESTED)["checkpoints"]) if has_any else []

    def request(self, checkpoints: Iterable[int]) -> None:
        """Let whoever trains the network keep checkpoints of these steps too."""
        write_text(self.folder / _REQUESTED, json.dumps({"checkpoints": sorted(checkpoints)}))

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the weights and buffers of `Progress.measured` after `step` updates."""
        save_tensors(self.checkpoint(step), tensors, _CHECKPOINT, {})

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """What `save_checkpoint` wrote."""
        with reading(self.checkpoint(step)):
            return load_tensors(self.checkpoint(step), _CHECKPOINT)[0]

    def model_at(self, step: int) -> nn.Module:
        """The network after `step` updates, with `averaging` the averaged one."""
        model = self.new_model()
        model.load_state_dict(self.load_checkpoint(step))
        return model

    def list_trace_parts(self) -> list[Path]:
        """The files of the trace in order; their names end with the step up to which they are."""
        return sorted(self.folder.glob("trace/*.safetensors"))

    @cached_property
    def trace(self) -> MomentTrace:
        """The batch moments of the whole training, of a network that has statistics of its batches (`has_trace`)."""
        with reading(self.folder / "trace"):
            trace = MomentTrace.join([MomentTrace.load(path) for path in self.list_trace_parts()])
        if trace.last_step == self.frozen_from and self.status:  # nothing is recorded after it
            trace.last_step = self.status["step"]
        return trace


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, without anything that names the machine."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
