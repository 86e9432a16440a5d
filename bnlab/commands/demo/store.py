"""Trained networks in files: what a specimen is does not depend on the processor that it is shown on.

Trainings end elsewhere on every processor: in the last bits at once, and in points of accuracy after some hundred
updates. So the trainings stand in the code, and what they gave once is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bnlab.common.storage import load_tensors, save_tensors

_FORMAT = "bnlab-network-1"


@dataclass
class Networks:
    """Trained networks in a folder, by the names of their trainings.

    Attributes:
        folder: with a file for each network.
        trains: whether a network that is not there is trained and written; `make networks` does that.
    """

    folder: Path
    trains: bool = False

    def recall(
        self, name: str, model: nn.Module, train: Callable[[], Mapping[str, Tensor] | None]
    ) -> dict[str, Tensor]:
        """Give a network the state that a training once ended with.

        Args:
            name: of the training.
            model: as it is before the training; it is in eval mode afterwards.
            train: trains this model, and returns the state of an earlier network, or of one beside it, if that is kept;
                called by `make networks` alone.

        Returns:
            That state; empty if none was kept.

        Raises:
            FileNotFoundError: the folder has no network of this name.
        """
        path = self.folder / f"{name.replace(' ', '_')}.safetensors"
        if not path.exists():
            if not self.trains:
                raise FileNotFoundError(f"{path}: no such network; in a clone, `make networks` trains it")
            _write(path, model, train() or {})

        # Read back even right after the training, so that what is shown is always what the file holds.
        tensors, _ = load_tensors(path, _FORMAT)
        model.load_state_dict(_select(tensors, "after/"))
        model.eval()
        return _select(tensors, "before/")


def _write(path: Path, model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write a trained network, and the state beside it."""
    tensors = {f"after/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"before/{name}": value for name, value in before.items()}
    save_tensors(path, tensors, _FORMAT, {})


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors of one state, by their names in it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
