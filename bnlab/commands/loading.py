"""Load what the words of a command name: the caller's functions, and weights; and describe what goes wrong there."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bnlab.commands.images import add_image_arguments, find_images
from bnlab.commands.packages import is_packaged, make_packaged
from bnlab.doctor.evidence.history import read_state_file
from bnlab.model.batches import require_batches
from bnlab.model.layers import strip_wrappers

_OPTIONS = {
    "before=": "--before",
    "evaluate=": "--evaluate",
    "training_batches=": "--training",
    "expected=": "--expected",
    "labels=": "--labels",
    "force=True": "--force",
    ".findings, or --html": "--json, or --html",
}
"""Arguments of `diagnose`, as a diagnosis names them, and the options that give the same."""
_EXPLAIN = re.compile(r"bnlab\.doctor\.explain\('(\w+)'\)")


def add_model_arguments(parser: argparse.ArgumentParser, nargs: Literal["?"] | None = None) -> None:
    """Add what commands that measure a model on batches take; model and batches may be left out if `nargs` is "?"."""
    parser.add_argument(
        "model", nargs=nargs, help="package.module:function that returns the model; or torchvision:NAME, timm:NAME"
    )
    parser.add_argument(
        "batches",
        nargs=nargs,
        help="package.module:function that returns an iterable of batches, e.g. a DataLoader of (images, labels); or "
        "a folder of images",
    )
    parser.add_argument(
        "--forward",
        help="package.module:function of model and batch; default model(batch), or model(batch[0]) of a tuple",
    )
    parser.add_argument("--weights", help="a file with the model's weights: safetensors, or a state dict of torch's")
    parser.add_argument(
        "--max-images", type=int, help="or max_images=N: stop after the batch with which so many have been read"
    )
    add_image_arguments(parser)


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what commands that score a model take, too."""
    parser.add_argument(
        "--evaluate",
        help="package.module:function of the model that returns a value for each image, higher is better; default the "
        "labels in the batches",
    )
    parser.add_argument(
        "--labels",
        help="package.module:function of a batch that returns its labels; default what a dictionary or a named tuple "
        "calls labels, label, targets, target or y, the second part of a tuple, and of a longer one the part that the "
        "model predicts",
    )
    parser.add_argument("--training", help="batches as in training, named as the batches are: tell wrong input apart")


def load_arguments(arguments: argparse.Namespace, caller: str) -> dict[str, Any]:
    """Load what the words name: `model` and the other arguments that a function of bnlab is called with."""
    call = {
        "model": load_model(arguments.model, arguments.weights),
        "batches": load_batches(arguments.batches, arguments, caller),
        "forward": find_optional(arguments.forward),
        "max_images": arguments.max_images,
        "progress": sys.stderr.isatty(),
    }
    # Only commands that score a model have these arguments; see `add_score_arguments`.
    if "evaluate" in arguments:
        call["training_batches"] = load_batches(arguments.training, arguments, caller)
        call["evaluate"] = find_optional(arguments.evaluate)
        call["labels"] = find_optional(arguments.labels)
    return call


def load_model(name: str, weights: str | None) -> Any:
    """Call the function of this name, or make the package's model, and load a file into it."""
    model = make_packaged(name) if is_packaged(name) else find_function(name)()
    if weights is not None:
        _load_weights(model, Path(weights))
    return model


def _load_weights(model: Any, path: Path) -> None:
    """Load a file into the model; ValueError if it cannot be read, or is of another model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"--weights: the model is a {type(model).__name__}; name a function that returns a module")
    state = read_state_file(path, "--weights")
    try:
        # Saved from within DataParallel or torch.compile, names have further parts.
        if not any(name in state for name in model.state_dict()):
            state = {strip_wrappers(name): value for name, value in state.items()}
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        # Torch lists every key that does not fit; the first few say enough.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--weights {path}: is not of this model ({reason})") from error


def load_batches(name: str | None, arguments: argparse.Namespace, caller: str) -> Any:
    """Call the function of this name, or take the images of the folder of this name; None without a name."""
    if name is None:
        return None
    folder = Path(name)
    if folder.is_dir():
        return find_images(folder, arguments)
    if ":" not in name:
        raise ValueError(f"{name}: no such folder; name a folder of images, or write package.module:function")
    batches = find_function(name)()
    require_batches(batches, caller, name)
    return batches


def find_function(name: str) -> Any:
    """Import the function of this name; the current folder is searched as well."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(f"{name}: write package.module:function")

    # Python does not search the current folder when it runs an installed script such as `bnlab`.
    sys.path.insert(0, os.getcwd())
    try:
        value = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    if not callable(value) or isinstance(value, nn.Module):  # a module is called with its input
        raise TypeError(f"{name} is a {type(value).__name__}; name a function without arguments")
    return value


def find_optional(name: str | None) -> Any:
    """Import the function of this name; None without a name."""
    return None if name is None else find_function(name)


def name_options(text: str) -> str:
    """Name the command's options in the place of the arguments that give the same."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return _EXPLAIN.sub(r"bnlab explain \1", text)


@contextlib.contextmanager
def report_warnings(call: Mapping[str, Any]) -> Iterator[None]:
    """Print the block's warnings to stderr once it has succeeded; add a hint at `--forward` to a TypeError."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            yield
    except TypeError as error:
        if call["forward"] is None:
            error.add_note("if the model is called otherwise: --forward package.module:function of model and batch")
        raise
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
