"""`bnlab doctor`: why a model is worse in eval mode, what it costs, and what to do."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bnlab
from bnlab.commands.images import ImageFolder
from bnlab.commands.loading import hint_at_forward, load_arguments, name_options, report_warnings
from bnlab.commands.packages import is_packaged
from bnlab.doctor.report import Diagnosis

_WITH_BATCHES = ("forward", "metric", "evaluate", "training", "expected")
"""Arguments that say nothing without batches."""
_HEALTHY, _FOUND, _UNDECIDED = 0, 1, 3  # 2 is a wrong call


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; 0 if the model is healthy, 1 if something was found, 3 if these images cannot tell."""
    if arguments.demo:
        from bnlab.commands.demo import show_demo

        show_demo()
        return 0
    _require_arguments(arguments)
    # What the caller's code prints would stand before the JSON.
    printed = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with printed:
        diagnosis, origins = _diagnose(arguments)

    print(diagnosis.to_json() if arguments.json else name_options("\n".join([str(diagnosis), *origins])))
    if arguments.html is not None:
        diagnosis.to_html(arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    if diagnosis.is_healthy:
        return _HEALTHY
    return _UNDECIDED if diagnosis.verdict == "undecided" else _FOUND


def _require_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for arguments that contradict each other, or name nothing, before anything is measured."""
    if arguments.model is None:
        raise ValueError("name a model, package.module:function; or see what the doctor does: bnlab doctor --demo")
    if arguments.batches is None:
        for name in _WITH_BATCHES:
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is about batches, and none are given: name them too")
    if arguments.html is not None:
        path = Path(arguments.html)
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"--html {path}: is a folder, or lies in none; give the name of a file")


def _diagnose(arguments: argparse.Namespace) -> tuple[Diagnosis, list[str]]:
    """Load what the words name, and examine it; with what has to be known of where model and images come from."""
    with report_warnings():
        call = load_arguments(arguments, "doctor")
        with hint_at_forward(call):
            diagnosis = bnlab.diagnose(**call, before=arguments.before, expected=arguments.expected)
    return diagnosis, [*_describe_origins(arguments, call["model"], call["batches"])]


def _describe_origins(arguments: argparse.Namespace, model: Any, batches: Any) -> Iterator[str]:
    """Say what the reader must know of a model and of images that the user's own code has not made."""
    if is_packaged(arguments.model):
        if arguments.weights is None:
            yield f"{arguments.model} has its initial weights; --weights FILE loads trained ones."
        elif getattr(model, "transform_input", False):
            yield (
                f"{arguments.model} transforms its input, as torchvision's own weights want it; if yours were trained "
                "without that, name a function that makes the model."
            )
    if isinstance(batches, ImageFolder):
        yield from batches.describe()
