"""State dicts: of a module, of a mapping, or from a file, in which nothing is run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

_INNER = ("state_dict", "model_state_dict", "model")  # what trainers call the weights in a checkpoint


def read_state(source: Any, caller: str) -> Mapping[str, Any]:
    """Read a state dict: of a module, itself, or from a file (safetensors, or torch's with `weights_only=True`).

    Args:
        source: a module, a state dict, a checkpoint that holds one, or the path of a file.
        caller: the call or the option, for the message.

    Raises:
        TypeError: it is none of these.
        ValueError: the file cannot be read.
    """
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, (str, Path)):
        path = Path(source)
        source = _load(path, caller)
        caller = f"{caller} {path}"
    if not isinstance(source, Mapping):
        raise TypeError(f"{caller} is a {type(source).__name__}; pass a module, a state dict, or a file of one")
    inner = next((key for key in _INNER if isinstance(source.get(key), Mapping)), None)
    return source if inner is None else source[inner]


def _load(path: Path, caller: str) -> Any:
    if not path.is_file():
        raise ValueError(f"{caller} {path}: no such file")
    try:
        with warnings.catch_warnings():  # torch's, of other formats, would stand beside the error
            warnings.simplefilter("ignore")
            return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise what they like
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if "weights_only" in str(error):  # torch advises to turn it off, which would run what the file says
            reason = "it holds more than tensors, which can run code when it is loaded, or is no file of weights"
        raise ValueError(
            f"{caller} {path}: cannot be read ({reason}); pass safetensors, or a file of model.state_dict()"
        ) from None
