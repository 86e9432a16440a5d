"""`bnlab undo`: a file of weights with the running statistics from before a recalibration."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnlab.commands.loading import load_model
from bnlab.commands.recalibrate import require_new, save_state
from bnlab.doctor.backup import undo_from_file


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
