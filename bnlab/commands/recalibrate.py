"""`bnlab recalibrate` and `bnlab undo`: files of weights with new running statistics, and with the old ones again."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import bnlab
from bnlab.commands.images import ImageFolder
from bnlab.commands.loading import (
    add_model_arguments,
    add_score_arguments,
    hint_at_forward,
    load_arguments,
    load_model,
    name_options,
    report_warnings,
)
from bnlab.common.storage import save_tensors
from bnlab.doctor.backup import undo_from_file


def add_parsers(commands: Any) -> None:
    """Add both commands to `commands`, the subparsers of `bnlab`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "recalibrate",
        help="write weights with new running statistics; with labels only if these gain",
        description="Exit status: 0 written, 1 not written, with the reason, 2 bad input.",
    )
    add_model_arguments(parser)
    add_score_arguments(parser)
    parser.add_argument("--statistic", choices=("exact", "precise"), default="exact")
    parser.add_argument("--force", action="store_true", help="write in any case")
    parser.add_argument(
        "--out", required=True, help="NEW.safetensors, for the weights; NEW.undo.safetensors is written beside it"
    )
    parser.set_defaults(run=run)

    undoing: argparse.ArgumentParser = commands.add_parser(
        "undo", help="write weights with the running statistics from before a recalibration"
    )
    undoing.add_argument("model", help="package.module:function that returns the model")
    undoing.add_argument("undo_file", help="what bnlab recalibrate has written beside the weights")
    undoing.add_argument("--weights", required=True, help="what bnlab recalibrate has written: NEW.safetensors")
    undoing.add_argument("--out", required=True, help="OLD.safetensors, for the weights with the old statistics")
    undoing.set_defaults(run=run_undo)


def run(arguments: argparse.Namespace) -> int:
    """Recalibrate the model and write it; 1 where that gains nothing."""
    out = Path(arguments.out)
    undo = out.with_suffix(".undo.safetensors")
    # The measurement may take long, so that a wrong name should be noticed before it.
    _require_new(out, undo)
    with report_warnings():
        call = load_arguments(arguments, "recalibrate")
        with hint_at_forward(call):
            recalibration = bnlab.recalibrate(**call, statistic=arguments.statistic, force=arguments.force)
    print(name_options(str(recalibration)))
    batches = call["batches"]
    if isinstance(batches, ImageFolder):
        print(*batches.describe(), sep="\n")
    if not recalibration.written:
        return 1

    # The undo file is written first, because new weights without it could not be undone.
    recalibration.save_undo(undo)
    try:
        _save_state(call["model"], out)
    except Exception:
        undo.unlink()  # without the weights it would stand in the way of the next attempt
        raise
    undoing = ["bnlab", "undo", arguments.model, str(undo), "--weights", str(out), "--out", "OLD.safetensors"]
    print(f"Wrote {out}. To undo it: {shlex.join(undoing)}")
    return 0


def run_undo(arguments: argparse.Namespace) -> int:
    """Put the old statistics back and write the model; 0."""
    out = Path(arguments.out)
    undo_file = Path(arguments.undo_file)
    _require_new(out)
    if not undo_file.is_file():
        raise ValueError(f"{undo_file}: no such file; name what bnlab recalibrate has written beside the weights")
    model = load_model(arguments.model, arguments.weights)
    layers = undo_from_file(model, undo_file)
    _save_state(model, out)
    print(f"Wrote {out}, with the old statistics of {len(layers)} batch-norm layers.")
    return 0


def _require_new(*paths: Path) -> None:
    """Raise ValueError if one of these files exists already, or is not called `.safetensors`."""
    for path in paths:
        if path.suffix != ".safetensors":
            raise ValueError(f"--out {path}: weights are written as safetensors; name a file such as new.safetensors")
        if path.exists():
            raise ValueError(f"--out {path}: this file exists already; name a new one")


def _save_state(model: nn.Module, path: Path) -> None:
    """Write the model's state dict; ValueError where it holds more than tensors."""
    state = model.state_dict()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"--out {path}: the model's state dict holds more than tensors ({others[0]}), as no safetensors file can; "
            "call bnlab.recalibrate in Python, and save it by torch.save"
        )
    save_tensors(path, state, "pt", {})  # a format that other readers of safetensors know
