"""Load what the words of a command name: the caller's functions, and weights; and describe what goes wrong there."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnlab.commands.images import ImageFolder, open_folder
from bnlab.commands.packages import is_packaged, make_packaged, make_transform
from bnlab.common.checkpoints import read_state
from bnlab.doctor.scores import find_logits
from bnlab.model.batches import call, require_batches
from bnlab.model.layers import strip_wrappers

_OPTIONS = {
    "before=": "--before",
    "evaluate=": "--evaluate",
    "training_batches=": "--training",
    "expected=": "--expected",
    "metric=lambda output, batch: ": "--metric package.module:function of output and batch, such as ",
    "force=True": "--force",
}
"""Arguments of `diagnose`, as a diagnosis names them, and the options that give the same."""
_AVERAGED = "n_averaged"  # a buffer of torch's AveragedModel, beside the model that it averages


def load_arguments(arguments: argparse.Namespace, caller: str) -> dict[str, Any]:
    """Load what the words name: `model` and the other arguments that a function of bnlab is called with."""
    model = load_model(arguments.model, arguments.weights)
    given = {
        "model": model,
        "batches": _load_batches(arguments.batches, arguments, model, caller),
        "forward": find_optional(arguments.forward),
    }
    # Only commands that score a model have these arguments.
    if "evaluate" in arguments:
        given["training_batches"] = _load_batches(arguments.training, arguments, model, caller)
        given["metric"] = find_optional(arguments.metric)
        given["evaluate"] = find_optional(arguments.evaluate)
        # A metric of the user's own may say which output is meant.
        if is_packaged(arguments.model) and arguments.metric is None:
            given["batches"] = _drop_unknown_labels(model, given["forward"], given["batches"])
        _require_same_classes(arguments, given["batches"], given["training_batches"])
    return given


def load_model(name: str, weights: str | None) -> Any:
    """Call the function of this name, or make the package's model, and load a file into it."""
    has_weights = weights is not None
    model = make_packaged(name, has_weights) if is_packaged(name) else find_function(name)()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} returned a {type(model).__name__}; name a function that returns a torch.nn.Module")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a file into the model; ValueError if it cannot be read, or is of another model."""
    state = read_state(path, "--weights")
    try:
        own = model.state_dict()
        # Saved from within DataParallel, torch.compile or AveragedModel, names have further parts.
        if not any(name in state for name in own):
            state = {strip_wrappers(name): value for name, value in state.items() if name != _AVERAGED}
        # The state of a module also holds versions of its parts, which a plain dictionary and safetensors do not have,
        # and without which torchvision's MNASNet refuses to be loaded.
        if not isinstance(state, OrderedDict) and state.keys() == own.keys():
            own.update(state)
            state = own
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        # Torch lists every key that does not fit; the first few say enough.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--weights {path}: is not of this model ({reason})") from error


def _load_batches(name: str | None, arguments: argparse.Namespace, model: Any, caller: str) -> Any:
    """Call the function of this name, or take the images of the folder of this name; None without a name."""
    if name is None:
        return None
    folder = Path(name)
    if folder.is_dir():
        return open_folder(folder, make_transform(arguments.model, model, arguments), arguments.batch_size)
    if ":" not in name:
        raise ValueError(f"{name}: no such folder; name a folder of images, or write package.module:function")
    batches = find_function(name)()
    require_batches(batches, caller, name)
    return batches


def _drop_unknown_labels(model: nn.Module, forward: Any, folder: Any) -> Any:
    """Take no labels from subfolders if the model of a package has another number of outputs: which are meant?

    Of ten of ImageNet's classes, for example, the third need not be the third output.
    """
    if not isinstance(folder, ImageFolder) or not folder.classes:
        return folder
    first = next(iter(folder))
    with torch.no_grad():
        # As it is going to be called: a forward of the user's own may choose among the outputs.
        logits = find_logits(call(model, first) if forward is None else forward(model, first))
    if logits is None or logits.dim() != 2 or logits.shape[1] == len(folder.classes):
        return folder
    note = (
        f"The model has {logits.shape[1]:,} outputs, and the folder {len(folder.classes):,} subfolders: which output "
        "is meant by each is not known, so that they are not taken for classes. A function that returns batches of "
        "(images, labels) can say it."
    )
    return replace(folder, classes=(), note=note)


def _require_same_classes(arguments: argparse.Namespace, batches: Any, training: Any) -> None:
    """Raise ValueError if a class has another number in the folder of training images."""
    if not (isinstance(batches, ImageFolder) and isinstance(training, ImageFolder)):
        return
    if batches.classes and training.classes and [*batches.classes] != [*training.classes]:
        different = sorted({*batches.classes} ^ {*training.classes})
        raise ValueError(
            f"--training {arguments.training}: has other classes than {arguments.batches} "
            f"({', '.join(different[:3])}), so that their numbers would differ; give both the same subfolders"
        )


def find_function(name: str) -> Any:
    """Import the function of this name; the current folder is searched as well."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(f"{name}: write package.module:function")

    # Python does not search the current folder when it runs an installed script such as `bnlab`.
    sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Another module that is missing is one that the caller's file imports.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    if not hasattr(imported, function):
        where = getattr(imported, "__file__", None) or module
        raise ValueError(f"{name}: cannot be imported ({where} has no {function})")
    value = getattr(imported, function)
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
    return text


@contextlib.contextmanager
def report_warnings() -> Iterator[None]:
    """Print the block's warnings to stderr once it has succeeded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):  # each once
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def hint_at_forward(call: Mapping[str, Any]) -> Iterator[None]:
    """Add to a TypeError of the block that `--forward` says how a model is called."""
    try:
        yield
    except TypeError as error:
        if call["forward"] is None:
            error.add_note("if the model is called otherwise: --forward package.module:function of model and batch")
        raise
