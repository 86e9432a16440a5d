"""A network: its folder, see `run_folder`, and what its files and settings are with torch."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.common.files import digest, reading
from bnlab.common.storage import load_tensors, save_tensors
from bnlab.harness import schema
from bnlab.harness.artifacts.corruptions import digest_of_shifted, shift_images
from bnlab.harness.artifacts.dataset import Dataset, Split, load_dataset
from bnlab.harness.artifacts.job_settings import as_list, list_steps
from bnlab.harness.artifacts.network import build_model
from bnlab.harness.artifacts.objectives import Objective
from bnlab.harness.artifacts.run_folder import RunFolder
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.harness.errors import JobError, UserError
from bnlab.model.borrow import measured
from bnlab.model.layers import batch_norm_layers
from bnlab.recording.trace import MomentTrace

_SOME_IMAGES = 64  # by which it is found out which layers an evaluation calls
_CHECKPOINT = "bnlab.checkpoint/1"
_PACKAGES = ("bnlab", "torch", "torchvision", "numpy", "pandas", "hydra-core")


class Run(RunFolder):
    """One network. Methods that read a file raise `Unreadable` if they cannot."""

    @cached_property
    def dataset(self) -> Dataset:
        """Its images; UserError if it was trained on others."""
        dataset = load_dataset(self.config.data, self.device)
        if self.finished:
            self.require_images(dataset)
        return dataset

    def require_images(self, dataset: Dataset) -> None:
        """Raise UserError unless these are the images on which the network's training was begun."""
        known = self.environment.get("images", dataset.trained_on)
        if known != dataset.trained_on:
            raise UserError(
                f"data={self.config.data.name}: has other training images than those that {self.id} was trained on; "
                "give it those, or sweep these into another results=FOLDER"
            )

    @property
    def has_trace(self) -> bool:
        """True if statistics of its batches are recorded."""
        return self.config.norm.uses_batch

    @cached_property
    def device(self) -> torch.device:
        name = self.config.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    @cached_property
    def batches(self) -> Batches:
        config = self.config
        return Batches(
            self.dataset.train,
            config.batch_size,
            Seeds.of(config.seed),
            shift=config.data.shift,
            flip=config.data.flips,
            order=config.order,
            last_batch=config.last_batch,
            augmented=self.dataset.augmented,
        )

    @cached_property
    def objective(self) -> Objective:
        """Loss and metric of its predictions; the loss of its training may smooth labels."""
        return self.config.task.build()

    @property
    def metric(self) -> str:
        """The column of the task's metric: `accuracy` of classification, else `metric`."""
        return "metric" if self.config.task.is_own else "accuracy"

    @cached_property
    def steps(self) -> int:
        """Updates that the whole training has."""
        return self.config.count_steps()

    @cached_property
    def frozen_from(self) -> int | None:
        """The step from which on batch norm is in eval mode, with the statistics of that step; None: it never is."""
        return self.config.compute_freezing_step()

    @property
    def measured_steps(self) -> list[int]:
        """The steps to be measured: those of `evaluate_at`; of a run that diverged, those before that."""
        steps = list_steps(self.config.evaluate_at, self.steps)
        status = self.status
        if status and status["status"] == "diverged":
            # At the step of divergence the weights may be NaN or infinite already.
            return [step for step in steps if step < status["step"]]
        return steps

    @property
    def predicted_steps(self) -> list[int]:
        """The steps of `measured_steps` at which the network's predictions are measured too: `accuracy_at`."""
        if self.config.accuracy_at == "final":
            return self.measured_steps[-1:]
        if self.config.accuracy_at == "all":
            return self.measured_steps
        chosen = list_steps(self.config.accuracy_at, self.steps)
        return [step for step in self.measured_steps if step in chosen]

    def limit_at(self, step: int) -> int | None:
        """Return how many images of a split are measured at a step; None: all, as always at the last step."""
        return None if step == self.steps else self.config.population_images

    @property
    def predicted_images(self) -> list[tuple[str, str]]:
        """Split and shift of the images that are predicted, `evaluate_on` and `shifts`, each once."""
        splits = as_list(self.config.evaluate_on)
        pairs = itertools.product(splits, as_list(self.config.shifts))
        return list(dict.fromkeys(pairs))

    def images_of(self, split: str, shift: str) -> Split:
        """Return the images of a split that are predicted under a shift."""
        return shift_images(self.dataset, self.config.data, split, shift)

    def digest_of(self, split: str, shift: str) -> str:
        """Digest `images_of`."""
        return digest_of_shifted(self.dataset, self.config.data, split, shift)

    def new_model(self) -> nn.Module:
        """Build the network before training, on the device."""
        _, channels, size, _ = self.dataset.train.images.shape
        model = build_model(
            self.config.model,
            self.config.norm,
            channels=channels,
            image_size=size,
            classes=self.dataset.classes,
            seed=Seeds.of(self.config.seed).initialization,
            steps=self.steps,
        )
        return model.to(self.device)

    @property
    def unseen(self) -> list[str]:
        """List the batch norms that an evaluation does not call, as those of an auxiliary head: they have no rows."""
        _, unseen = self._calls
        return unseen

    @property
    def order_of_calls(self) -> list[str] | None:
        """List the batch norms that an evaluation calls, in its order; None if that is the order of the modules."""
        called, _ = self._calls
        return called

    @cached_property
    def _calls(self) -> tuple[list[str] | None, list[str]]:
        """List the batch norms that an evaluation calls, see `order_of_calls`, and those that it does not."""
        is_own = self.config.model.is_own or self.config.norm.is_own
        if not is_own or not self.has_trace:  # bnlab's own networks call all of theirs, in order
            return None, []
        model = self.new_model()
        layers = batch_norm_layers(model, caller="sweep")
        names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
        called: dict[str, None] = {}

        def note_call(layer: nn.Module, args: Any) -> None:
            called[names[layer]] = None

        for layer in layers.values():
            layer.register_forward_pre_hook(note_call)
        with measured(model):
            model(self.dataset.train.images[:_SOME_IMAGES].clone())  # a forward may write into its input
        unseen = [name for name in layers if name not in called]
        listed = [name for name in layers if name in called]
        return None if [*called] == listed else [*called], unseen

    def read_step(self) -> int:
        """Read the step from which a killed training goes on; 0 if none was begun, or it has finished."""
        if self.finished or not self.resume_path.exists():
            return 0
        with reading(self.resume_path):
            return int(self.load_state()["step"])

    def load_state(self) -> dict[str, Any]:
        """Read all from which a killed training goes on; it may be of a user's own, so that only data are unpickled."""
        saved: dict[str, Any] = torch.load(self.resume_path, map_location="cpu", weights_only=True)
        return saved

    def read_log(self) -> pd.DataFrame:
        """Read the columns step, loss and `metric`, a row for each update."""
        return schema.read_frame(self.folder / "log.parquet")

    @cached_property
    def losses_digest(self) -> str:
        """A digest of the losses of all updates, by which a training is known from one with other numbers."""
        return digest_losses(self.read_log())

    def save_checkpoint(self, step: int, model: nn.Module) -> None:
        """Write the weights and buffers after `step` updates."""
        save_tensors(self.checkpoint(step), model.state_dict(), _CHECKPOINT, {})

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """Read the weights and buffers after `step` updates; JobError for a step of which none were kept."""
        # Steps whose checkpoint was kept and is gone count too: then it is a file that is missing.
        kept = {*self.list_kept(), *self.list_checkpoints()}
        if step not in kept:
            raise JobError(f"{self.id}: has no step {step}; there are {', '.join(map(str, sorted(kept)))}")
        path = self.checkpoint(step)
        with reading(path):
            tensors, _ = load_tensors(path, _CHECKPOINT)
        return tensors

    def model_at(self, step: int) -> nn.Module:
        """Load the network after `step` updates, with `averaging` the averaged one."""
        model = self.new_model()
        model.load_state_dict(self.load_checkpoint(step))
        return model

    def save_average(self, decay: float, step: int, model: nn.Module) -> None:
        """Write averaged weights and buffers."""
        save_tensors(self.locate_average(decay, step), model.state_dict(), _CHECKPOINT, {})

    def average_at(self, decay: float, step: int) -> nn.Module:
        """Load the network with averaged weights and buffers."""
        path = self.locate_average(decay, step)
        with reading(path):
            tensors, _ = load_tensors(path, _CHECKPOINT)
        model = self.new_model()
        model.load_state_dict(tensors)
        return model

    @cached_property
    def trace(self) -> MomentTrace:
        """The batch moments of the whole training, of the layers that an evaluation calls.

        Only networks with statistics of their batches have them (`has_trace`).
        """
        with reading(self.folder / "trace"):
            parts = [MomentTrace.load(path) for path in sorted(self.folder.glob("trace/*.safetensors"))]
            trace = MomentTrace.join(parts)
        for name in self.unseen:
            del trace.layers[name]
        if self.order_of_calls is not None:
            # Tables number layers by depth, and means leave out the first one. A network of somebody's own may have
            # been given its head before its body.
            trace.layers = {name: trace.layers[name] for name in self.order_of_calls}
        # Nothing is recorded after freezing, and running averages stay as they are. The trace is said to last
        # until the end, so that they can be replayed at all later steps too.
        if trace.last_step == self.frozen_from and self.status:
            trace.last_step = self.status["step"]
        return trace


def digest_losses(log: pd.DataFrame) -> str:
    """Digest the losses of all updates of a training."""
    return digest(log["loss"].to_numpy().tobytes(), digits=10)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe versions, device and threads, without anything that names the machine.

    `vector_instructions` are those that torch uses on the CPU, `commit` that of the clone that is run; None of a wheel.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # bnlab may run from its folder, without having been installed
            versions[package] = "unknown"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "commit": find_commit(Path(bnlab.__file__).resolve().parents[1]),
    }


def find_commit(root: Path) -> str | None:
    """Find the commit of a clone, with `-dirty` if its files were changed; None for another folder, or without git."""
    if not (root / ".git").exists():  # as of a wheel, which may lie in an environment inside of another repository
        return None
    # Workers ask at once, and must not lock the index that its owner works with.
    # No tag is used, so that the commit is named by its hash.
    words = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(words, cwd=root, capture_output=True, encoding="utf-8")
    except OSError:  # git is not installed
        return None
    return asked.stdout.strip() or None
