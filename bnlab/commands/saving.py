"""Write the weights of a model into a new file, never over another."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bnlab.storage import save_tensors


def require_new(*paths: Path) -> None:
    """Raise ValueError if one of these files exists already, or is not called `.safetensors`."""
    for path in paths:
        if path.suffix != ".safetensors":
            raise ValueError(f"--out {path}: weights are written as safetensors; name a file such as new.safetensors")
        if path.exists():
            raise ValueError(f"--out {path}: this file exists already; name a new one")


def save_state(model: nn.Module, path: Path) -> None:
    """Write the model's state dict."""
    save_tensors(path, model.state_dict(), "pt", {})  # a format that other readers of safetensors know
