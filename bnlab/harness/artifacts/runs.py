"""A trained network on disk: where it lies, what it consists of, and how it comes to be.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  states/step_<k>.safetensors  state.safetensors  status.json

`state.safetensors` is the point from which a killed run goes on; whatever was written after it is written again.
`states/` keeps the state at each quarter of the training, from which checkpoints for later experiments are made.
`environment.json` has the environment in which training began and, as `later`, those in which it went on.
`status.json` comes last and says that the run is finished (or diverged).
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

from bnlab.files import OtherVersion, digest
from bnlab.harness import schema
from bnlab.harness.artifacts.data import Dataset, Split, load_dataset
from bnlab.harness.artifacts.folders import (
    describe_environment,
    lock_of,
    read_config,
    read_environment,
    read_status,
    write_config,
    write_environment,
    write_status,
)
from bnlab.harness.artifacts.models import build_model, load_weights
from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.settings import (
    Config,
    as_list,
    changed_settings,
    freezing_step,
    list_steps,
    network_hash,
    total_steps,
)
from bnlab.harness.artifacts.shifts import digest_of_shifted, list_predictions, shift_images
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.harness.errors import JobError
from bnlab.recording.trace import MomentTrace
from bnlab.storage import load_tensors, save_tensors

_CHECKPOINT = "bnlab.checkpoint/1"
_PART = re.compile(r"\d+-\d+")  # first and last step of a file of the trace


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
        return Batches(self.dataset.train, self.config.batch_size, seeds, data.shift, data.flips, self.config.order)

    @property
    def steps(self) -> int:
        """Updates that the whole training has."""
        return total_steps(self.config, len(self.dataset.train.labels))

    @property
    def frozen_from(self) -> int | None:
        """The step from which on batch norm is in eval mode, with the statistics of that step; None: it never is."""
        return freezing_step(self.config, self.steps)

    @property
    def wanted(self) -> list[int]:
        """The steps to be measured: those of `evaluate_at`; of a run that diverged, those before that."""
        steps, status = list_steps(self.config.evaluate_at, self.steps), self.status or {"status": "unfinished"}
        return [step for step in steps if status["status"] != "diverged" or step < status["step"]]

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

    def model_at(self, step: int) -> nn.Module:
        """The network after `step` updates, with `averaging` the averaged one; ValueError if the file is damaged."""
        model = self.new_model()
        load_weights(model, self.load_checkpoint(step))
        return model

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the weights and buffers of `Progress.measured` after `step` updates."""
        save_tensors(self.checkpoint(step), tensors, _CHECKPOINT, {})

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """What `save_checkpoint` wrote; ValueError if the file is damaged."""
        return load_tensors(self.checkpoint(step), _CHECKPOINT)[0]

    @property
    def losses(self) -> dict[int, float]:
        """The loss of each update that the log has; ValueError if it is damaged."""
        with contextlib.suppress(FileNotFoundError):
            log = self.read_log()
            return dict(zip(log["step"].tolist(), log["loss"].tolist(), strict=True))
        return {}

    def read_log(self) -> pd.DataFrame:
        """The columns step, loss and accuracy, a row for each update.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: it is damaged; OtherVersion: it has other columns.
        """
        path = self.folder / "log.parquet"
        log = schema.read_frame(path)
        if list(log) != ["step", "loss", "accuracy"]:
            raise OtherVersion(f"{path}: has the columns {', '.join(log.columns)}; expected step, loss, accuracy")
        return log

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:07d}.safetensors"

    def states(self, until: int) -> list[Path]:
        """The states that are kept up to a step, in order."""
        return self._files_of_steps("states", until)

    def checkpoints(self, until: int) -> list[Path]:
        """The checkpoints up to a step, in order."""
        return self._files_of_steps("checkpoints", until)

    def _files_of_steps(self, kind: str, until: int) -> list[Path]:
        found = {
            path: path.stem.removeprefix("step_") for path in sorted(self.folder.glob(f"{kind}/step_*.safetensors"))
        }
        # A copy that a synchronized drive has made beside it has another name.
        return [path for path, step in found.items() if step.isdecimal() and int(step) <= until]

    def state(self, step: int) -> Path:
        return self.folder / "states" / f"step_{step:07d}.safetensors"

    def trace_parts(self, until: int) -> list[Path]:
        """The files of the trace up to a step, in order."""
        found = [path for path in sorted(self.folder.glob("trace/*.safetensors")) if _PART.fullmatch(path.stem)]
        return [path for path in found if _last_step(path) <= until]  # others are copies, as of a synchronized drive

    @property
    def has_trace(self) -> bool:
        """Whether the network trains with statistics of its batches, which are recorded."""
        return self.config.norm.name in RECORDED

    @cached_property
    def trace(self) -> MomentTrace | None:
        """The batch moments of the whole run; None of a network without batch norm."""
        if not self.has_trace:
            return None
        return self.read_trace(self.steps)

    def read_trace(self, step: int) -> MomentTrace:
        """The batch moments up to a step; ValueError if files are damaged or missing."""
        trace = MomentTrace.join([MomentTrace.load(path) for path in self.trace_parts(step)])
        if trace.last_step == self.frozen_from:  # nothing is recorded after it
            trace.last_step = step
        return trace

    @property
    def status(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None while it is not finished.

        Raises:
            ValueError: it is damaged; OtherVersion: another version wrote it.
        """
        return read_status(self.folder)

    @property
    def finished(self) -> bool:
        """Training has come to its end (or diverged), and the status that says so is intact."""
        with contextlib.suppress(ValueError):
            return self.status is not None
        return False

    def write_status(self, status: str, step: int, seconds: float, loss: float) -> None:
        found = {"run": self.id, "status": status, "step": step, "train_seconds": seconds, "final_loss": loss}
        write_status(self.folder, found)

    def write_config(self) -> None:
        write_config(self.folder, asdict(self.config))

    def write_environment(self) -> None:
        """The environment in which training begins, with a digest of the images that it begins on."""
        images = {"training_images": self.dataset.train.digest}
        write_environment(self.folder, {"run": self.id, **describe_environment(self.device), **images})

    def add_environment(self, **about: Any) -> None:
        """Note today's environment as one in which training went on."""
        described = self.environment
        described["later"] = [*described.get("later", []), {**about, **describe_environment(self.device)}]
        write_environment(self.folder, described)

    @property
    def environment(self) -> dict[str, Any]:
        """What `environment.json` holds; ValueError if it is damaged, FileNotFoundError if it is missing."""
        return read_environment(self.folder)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Those in which the network was trained, in order, each with the `step` from which on."""
        described = self.environment
        later = described.pop("later", [])
        return [{"step": 0, **described}, *(entry for entry in later if "step" in entry)]

    @cached_property
    def training(self) -> str:
        """A digest of the losses of all updates, which tells this network from one trained in its place."""
        return digest(self.read_log()["loss"].to_numpy().tobytes(), digits=10)

    def check_settings(self) -> None:
        """Compare what the network in this folder was trained with; nothing is read of its weights.

        Raises:
            JobError: a setting that it depends on was another, or another version wrote it.
        """
        changed: list[str] = []
        with contextlib.suppress(FileNotFoundError, ValueError):  # there is none yet, or it is damaged
            changed = changed_settings(self.config, read_config(self.folder))
        if changed:
            raise JobError(
                f"{self.folder}: holds a network that was trained with other settings ({'; '.join(changed)}), because "
                "defaults have changed since; use another folder (results=), or delete that one to train it again"
            )
        try:
            _ = self.status
        except OtherVersion as error:
            raise _refuse_version(error) from error
        except ValueError:  # damaged
            pass

    def check_images(self) -> None:
        """JobError if the network in this folder was trained on other images than those that there are now."""
        if self.environment.get("training_images") not in (None, self.dataset.train.digest):
            raise JobError(
                f"{self.folder}: was trained on other images than {self.config.data.name} has now in data.root="
                f"{self.config.data.root}; set data.root to those, or use another folder (results=)"
            )

    def set_aside(self, reason: Exception) -> None:
        """Move what is damaged out of the way, so that it is made again; say so.

        Raises:
            JobError: it is not damaged, another version wrote it.
        """
        if isinstance(reason, OtherVersion):
            raise _refuse_version(reason) from reason
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.damaged-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        self.__dict__.pop("trace", None)
        self.__dict__.pop("training", None)
        print(f"{self.id}: {reason}\n  set aside as {aside.name}; the network is trained again", file=sys.stderr)

    def check_files(self, step: int, loss: float) -> None:
        """Read what was written up to `step`, whose update had this loss.

        Raises:
            ValueError, FileNotFoundError: names the first file that is damaged, missing or another run's.
        """
        if step == 0:
            return
        _ = self.environment
        path, log = self.folder / "log.parquet", self.read_log()
        if list(log["step"][:step]) != list(range(1, step + 1)):
            raise ValueError(f"{path}: does not have a row for each of {step} steps")
        if log["loss"][step - 1] != loss:
            raise ValueError(
                f"{path}: is another run's, with a loss of {log['loss'][step - 1]} at step {step}, not {loss}"
            )
        if self.has_trace:
            trace = self.read_trace(step)
            if (trace.first_step, trace.last_step) != (0, step):
                raise ValueError(f"{self.folder / 'trace'}: has {trace}, expected steps 0 to {step}")
        for wanted in self.wanted:
            if wanted <= step and self.checkpoint(wanted).exists():
                self.load_checkpoint(wanted)


def _last_step(part: Path) -> int:
    """The step at which a file of the trace ends."""
    return int(part.stem.partition("-")[2])


def _refuse_version(error: OtherVersion) -> JobError:
    return JobError(f"{error}; it is left as it is: use the version that wrote it, or another folder (results=)")
