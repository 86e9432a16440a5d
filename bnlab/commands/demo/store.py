"""Trained networks in files: what a specimen is does not depend on the processor that it is shown on.

Trainings end elsewhere on every processor: in the last bits at once, and in points of accuracy after some hundred
updates. So the trainings stand in the code, and what they gave once is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from bnlab.common.storage import load_tensors, save_tensors
from bnlab.recording.trace import MomentTrace

_FORMAT = "bnlab-network-1"


@dataclass(frozen=True)
class History:
    """What is known of a training beside the network that it ended with.

    Attributes:
        before: state of an earlier network, or of one beside it; empty if none was kept.
        trace: what was recorded; None if nothing was.
    """

    before: Mapping[str, Tensor] = field(default_factory=dict)
    trace: MomentTrace | None = None


@dataclass
class Networks:
    """Trained networks in a folder, by the names of their trainings.

    Attributes:
        folder: with a file for each network, and one for each trace.
        trains: whether a network that is not there is trained and written; `make networks` does that.
    """

    folder: Path
    trains: bool = False

    def recall(self, name: str, model: nn.Module, train: Callable[[], History | None]) -> History:
        """Give a network the state that a training once ended with.

        Args:
            name: of the training.
            model: as it is before the training; it is in eval mode afterwards.
            train: trains this model; called by `make networks` alone.

        Raises:
            FileNotFoundError: the folder has no network of this name.
        """
        path = self.folder / f"{name.replace(' ', '_')}.safetensors"
        beside = path.with_suffix(".trace.safetensors")
        if not path.exists():
            if not self.trains:
                raise FileNotFoundError(f"{path}: no such network; in a clone, `make networks` trains it")
            _write(path, beside, model, train() or History())

        # Read back even right after the training, so that what is shown is always what the file holds.
        tensors, _ = load_tensors(path, _FORMAT)
        model.load_state_dict(_select(tensors, "after/"))
        model.eval()
        trace = MomentTrace.load(beside) if beside.exists() else None
        return History(_select(tensors, "before/"), trace)


def _write(path: Path, beside: Path, model: nn.Module, history: History) -> None:
    """Write a trained network with its history; the trace beside it, if there is one."""
    tensors = {f"after/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"before/{name}": value for name, value in history.before.items()}
    save_tensors(path, tensors, _FORMAT, {})
    if history.trace is not None:
        history.trace.save(beside)


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors of one state, by their names in it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
