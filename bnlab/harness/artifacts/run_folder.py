"""The folder of a network on disk: its name, and whether it is trained, which waits for no torch.

    results/runs/<hash>/seed_<k>/
        config.yaml  environment.json  log.parquet  trace/<from>-<to>.safetensors
        checkpoints/step_<k>.safetensors  averages/<decay>/step_<k>.safetensors  resume.pt  status.json

`resume.pt` is the point from which a killed training goes on; whatever was written after it is written again.
`status.json` comes last and says that the training has finished (or diverged).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bnlab.common.files import reading
from bnlab.harness.artifacts.job_settings import Config, hash_settings, list_naming_settings


def name_decay(decay: float) -> str:
    """Name the decay of averaged weights, in files: in six digits, or in as many as tell it from all others."""
    short = f"{decay:g}"
    return short if float(short) == decay else repr(decay)


class RunFolder:
    """One network: its configuration and its folder. Methods that read a file raise `Unreadable` if they cannot.

    Attributes:
        settings: what names it, see `list_naming_settings`.
        id: its name, unless that is given.
        resume_path: the file from which a killed training goes on.
    """

    def __init__(self, config: Config, name: str = "") -> None:
        self.config = config
        self.settings = list_naming_settings(config)
        # A network on disk is opened under its name. `open_run` then compares that with the name that this
        # version of bnlab would give.
        self.id = name or f"{hash_settings(self.settings)}/seed_{config.seed}"
        self.folder = Path(config.results, "runs", self.id)
        self.resume_path = self.folder / "resume.pt"

    @property
    def lock(self) -> FileLock:
        """A lock for training or measuring the network; this process may take it again while it holds it."""
        # The file lies beside the folder, because the folder may be set aside or removed while the lock is held.
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"), is_singleton=True)

    @property
    def finished(self) -> bool:
        """True once training has come to its end, or diverged."""
        return (self.folder / "status.json").exists()

    def is_complete(self, checkpoints: Iterable[int] = ()) -> bool:
        """Return whether it has finished, with a checkpoint of each of these steps and of those that were kept."""
        return self.finished and {*checkpoints, *self.list_kept()} <= set(self.list_checkpoints())

    def list_kept(self) -> list[int]:
        """List the steps of which checkpoints were kept when it finished, also of files that are gone."""
        status = self.status
        return status["checkpoints"] if status else []

    @property
    def status(self) -> dict[str, Any] | None:
        """The end of training; None before that.

        Its keys are status, step, train_seconds, final_loss, checkpoints, and training, a digest of its losses.
        """
        return self._read("status.json") if self.finished else None

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and device with which the network was trained, see `describe_environment`."""
        return self._read("environment.json")

    def _read(self, name: str) -> dict[str, Any]:
        with reading(self.folder / name):
            return json.loads((self.folder / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:07d}.safetensors"

    def list_checkpoints(self) -> list[int]:
        """List the steps of which there are checkpoints."""
        paths = self.folder.glob("checkpoints/step_*.safetensors")
        return sorted(int(path.stem.removeprefix("step_")) for path in paths)

    def remove_checkpoints(self, after: int) -> None:
        """Remove the checkpoints of later steps, and the averages of the weights that were kept beside them."""
        for pattern in ("checkpoints/step_*.safetensors", "averages/*/step_*.safetensors"):
            for path in self.folder.glob(pattern):
                if int(path.stem.removeprefix("step_")) > after:
                    path.unlink()

    def locate_average(self, decay: float, step: int) -> Path:
        """Return where the average with this decay, of `weight_averages`, lies as it was after `step` updates."""
        return self.folder / "averages" / name_decay(decay) / f"step_{step:07d}.safetensors"
