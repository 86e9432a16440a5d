"""`bnlab undo`: a file of weights with the running statistics from before a recalibration."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from bnlab.commands.loading import load_model
from bnlab.commands.recalibrate import require_new, save_state
from bnlab.model.layers import batch_norm_layers, match_names
from bnlab.statistics.network import Statistics, digest_weights, write_buffers


def run(arguments: argparse.Namespace) -> int:
    """Put the old statistics back and write the model; 0."""
    out = Path(arguments.out)
    undo_file = Path(arguments.undo_file)
    require_new(out)
    if not undo_file.is_file():
        raise ValueError(f"{undo_file}: no such file; name what bnlab recalibrate has written beside the weights")
    model = load_model(arguments.model, arguments.weights)
    old = Statistics.load(undo_file)
    if old.network != digest_weights(model):
        raise ValueError(f"{undo_file}: was written beside other weights than {arguments.weights}; nothing was written")
    put_back(model, old)
    save_state(model, out)
    print(f"Wrote {out}, with the old statistics of {len(old)} batch norms.")
    return 0


def put_back(model: nn.Module, old: Statistics) -> None:
    """Write what was there into a model, also what `Statistics.write_to` refuses: NaN was a reason to recalibrate."""
    layers = batch_norm_layers(model, caller="undo")
    for name, own in match_names(old, layers).items():
        write_buffers(layers[own], old[name])
