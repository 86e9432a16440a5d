"""A trained network on disk: where it lies, what it consists of, and how its files are read.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  state.safetensors  status.json

`state.safetensors` is the point from which a killed training goes on; whatever was written after it is written again.
`status.json` comes last and says that the training has finished (or diverged).
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

from bnlab.files import digest, reading
from bnlab.harness import schema
from bnlab.harness.artifacts import data
from bnlab.harness.artifacts.data import Dataset, Split, load_dataset
from bnlab.harness.artifacts.folders import lock_of, read_status
from bnlab.harness.artifacts.models import build_model, load_weights
from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.settings import Config, as_list, freezing_step, list_steps, network_hash, total_steps
from bnlab.harness.artifacts.shifts import digest_of_shifted, list_predictions, shift_images
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.recording.trace import MomentTrace
from bnlab.storage import load_tensors, save_tensors

_CHECKPOINT = "bnlab.checkpoint/1"
_STEP = "[0-9]" * 7  # in names of files; copies that a synchronized drive makes have others


class Run:
    """One network: its configuration and its folder. What reads a file raises `Unreadable` if that cannot be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.id = f"{network_hash(config)}/seed_{config.seed}"
        self.folder = Path(config.results) / "runs" / self.id

    # What the configuration says

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.data, self.device)

    @cached_property
    def device(self) -> torch.device:
        name = self.config.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    @cached_property
    def batches(self) -> Batches:
        settings, seeds = self.config.data, Seeds.of(self.config.seed)
        size, order = self.config.batch_size, self.config.order
        return Batches(self.dataset.train, size, seeds, settings.shift, settings.flips, order)

    @cached_property
    def steps(self) -> int:
        """Updates that the whole training has."""
        return total_steps(self.config, data.check(self.config.data))

    @property
    def frozen_from(self) -> int | None:
        """The step from which on batch norm is in eval mode, with the statistics of that step; None: it never is."""
        return freezing_step(self.config, self.steps)

    @property
    def has_trace(self) -> bool:
        """Whether the network trains with statistics of its batches, which are recorded."""
        return self.config.norm.name in RECORDED

    @property
    def wanted(self) -> list[int]:
        """The steps to be measured: those of `evaluate_at`; of a run that diverged, those before that."""
        steps, status = list_steps(self.config.evaluate_at, self.steps), self.status
        end = status["step"] if status and status["status"] == "diverged" else self.steps + 1
        return [step for step in steps if step < end]

    @property
    def predicted(self) -> list[int]:
        """The steps of `wanted` at which the network's predictions are measured too: `accuracy_at`."""
        at, steps = self.config.accuracy_at, self.wanted
        if at in ("all", "final"):
            return steps if at == "all" else steps[-1:]
        return sorted({*steps} & {*list_steps(at, self.steps)})

    @property
    def predictions(self) -> list[tuple[str, str]]:
        """Split and shift of the images that are predicted: `evaluate_on` and `shifts`."""
        config = self.config
        return list_predictions(config.data, as_list(config.evaluate_on), as_list(config.shifts))

    def images_of(self, split: str, shift: str) -> Split:
        """What is predicted of a split under a shift."""
        return shift_images(self.dataset, self.config.data, split, shift)

    def digest_of(self, split: str, shift: str) -> str:
        """The digest of `images_of`."""
        return digest_of_shifted(self.dataset, self.config.data, split, shift)

    def new_model(self) -> nn.Module:
        """The network before training, on the device."""
        images = self.dataset.train.images
        model = build_model(
            self.config.model,
            self.config.norm,
            channels=images.shape[1],
            image_size=images.shape[2],
            classes=self.dataset.classes,
            seed=Seeds.of(self.config.seed).initialization,
            steps=self.steps,
        )
        return model.to(self.device)

    # What its folder has

    @property
    def lock(self) -> FileLock:
        """Held while the network is trained or measured; one for all processes of one machine."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return lock_of(self.folder)

    @property
    def finished(self) -> bool:
        """Whether training has come to its end, or diverged."""
        return (self.folder / "status.json").exists()

    @property
    def status(self) -> dict[str, Any] | None:
        """See `folders.read_status`."""
        return read_status(self.folder)

    def read_log(self) -> pd.DataFrame:
        """The columns step, loss and accuracy, a row for each update."""
        path = self.folder / "log.parquet"
        with reading(path):
            return schema.read_frame(path)[["step", "loss", "accuracy"]]

    @cached_property
    def training(self) -> str:
        """A digest of the losses of all updates, which tells this training from one with other numbers."""
        return digest(self.read_log()["loss"].to_numpy().tobytes(), digits=10)

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:07d}.safetensors"

    def list_checkpoints(self) -> list[int]:
        """The steps of which there are checkpoints."""
        return [int(path.stem[-7:]) for path in sorted(self.folder.glob(f"checkpoints/step_{_STEP}.safetensors"))]

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
        with reading(self.checkpoint(step)):
            load_weights(model, self.load_checkpoint(step))
        return model

    def list_trace_parts(self) -> dict[Path, int]:
        """The files of the trace in order, each with the step at which it ends."""
        found = sorted(self.folder.glob(f"trace/{_STEP}-{_STEP}.safetensors"))
        return {path: int(path.stem[-7:]) for path in found}

    @cached_property
    def trace(self) -> MomentTrace:
        """The batch moments of the whole training, of a network that has statistics of its batches (`has_trace`)."""
        last = self.status["step"] if self.status else self.steps
        with reading(self.folder / "trace"):
            trace = MomentTrace.join([MomentTrace.load(path) for path in self.list_trace_parts()])
            if trace.last_step == self.frozen_from:  # nothing is recorded after it
                trace.last_step = last
            if (trace.first_step, trace.last_step) != (0, last):
                raise ValueError(f"has {trace}, expected steps 0 to {last}")
        return trace

    def set_aside(self, reason: object) -> None:
        """Move the folder out of the way, so that the network is trained again; say so."""
        names = (self.folder.with_name(f"{self.folder.name}.damaged-{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        with contextlib.suppress(FileNotFoundError):  # it may have been removed meanwhile
            self.folder.rename(aside)
        print(f"{reason}\n  {self.id}: set aside as {aside.name}; the network is trained again", file=sys.stderr)
