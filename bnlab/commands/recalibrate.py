"""`bnlab recalibrate`: a file of weights with new running statistics, and one that `bnlab undo` reads."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from torch import Tensor, nn

import bnlab
from bnlab.commands.images import ImageFolder
from bnlab.commands.loading import (
    hint_at_forward,
    load_arguments,
    name_options,
    report_warnings,
)
from bnlab.common.storage import save_tensors


def run(arguments: argparse.Namespace) -> int:
    """Recalibrate the model and write it; 1 where the averages are not at fault."""
    out = Path(arguments.out)
    undo = out.with_suffix(".undo.safetensors")
    # The measurement may take long, so that a wrong name should be noticed before it.
    require_new(out, undo)
    with report_warnings():
        call = load_arguments(arguments, "recalibrate")
        with hint_at_forward(call):
            repair = bnlab.recalibrate(**call, force=arguments.force)
    print(name_options(str(repair)))
    batches = call["batches"]
    if isinstance(batches, ImageFolder):
        print(*batches.describe(), sep="\n")
    if not repair.written:
        return 1

    # The undo file is written first, because new weights without it could not be undone.
    repair.save_undo(undo)
    try:
        save_state(call["model"], out)
    except Exception:
        undo.unlink()  # without the weights it would stand in the way of the next attempt
        raise
    undoing = ["bnlab", "undo", arguments.model, str(undo), "--weights", str(out), "--out", "OLD.safetensors"]
    print(f"Wrote {out}. To undo it: {shlex.join(undoing)}")
    return 0


def require_new(*paths: Path) -> None:
    """Raise ValueError if one of these files exists already, or is not called `.safetensors`."""
    for path in paths:
        if path.suffix != ".safetensors":
            raise ValueError(f"--out {path}: weights are written as safetensors; name a file such as new.safetensors")
        if path.exists():
            raise ValueError(f"--out {path}: this file exists already; name a new one")


def save_state(model: nn.Module, path: Path) -> None:
    """Write the model's state dict; ValueError where it holds more than tensors."""
    state = model.state_dict()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"--out {path}: the model's state dict holds more than tensors ({others[0]}), as no safetensors file can; "
            "call bnlab.recalibrate in Python, and save it by torch.save"
        )
    save_tensors(path, state, "pt", {})  # a format that other readers of safetensors know
