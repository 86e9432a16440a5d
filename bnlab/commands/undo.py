"""`bnlab undo`: weights with the running statistics that they had before `bnlab recalibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnlab.commands.loading import load_model
from bnlab.commands.saving import require_new, save_state
from bnlab.doctor.undo import undo_from_file


def add_parser(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `bnlab`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "undo", help="write weights with the running statistics from before a recalibration"
    )
    parser.add_argument("model", help="package.module:function that returns the model")
    parser.add_argument("undo_file", help="what bnlab recalibrate has written beside the weights")
    parser.add_argument("--weights", required=True, help="what bnlab recalibrate has written: NEW.safetensors")
    parser.add_argument("--out", required=True, help="OLD.safetensors, for the weights with the old statistics")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Put the old statistics back and write the model; 0."""
    out = Path(arguments.out)
    undo_file = Path(arguments.undo_file)
    require_new(out)
    if not undo_file.is_file():
        raise ValueError(f"{undo_file}: no such file; name what bnlab recalibrate has written beside the weights")
    model = load_model(arguments.model, arguments.weights)
    layers = undo_from_file(model, undo_file)
    save_state(model, out)
    print(f"Wrote {out}, with the old statistics of {len(layers)} batch-norm layers.")
    return 0
