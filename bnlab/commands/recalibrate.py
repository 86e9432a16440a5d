"""`bnlab recalibrate`: a new file of weights with new running statistics, if these gain anything, and an undo file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import bnlab
from bnlab.commands.images import ImageFolder
from bnlab.commands.loading import (
    add_model_arguments,
    collecting_warnings,
    find_optional,
    hinting_at_forward,
    load_batches,
    load_model,
)
from bnlab.commands.saving import require_new, save_state


def add_parser(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `bnlab`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "recalibrate",
        help="write weights with new running statistics, if these gain anything",
        description="Exit status: 0 written, 1 not written, with the reason, 2 bad input.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--evaluate",
        help="package.module:function of the model that returns a value for each image, higher is better; default the "
        "labels in the batches",
    )
    parser.add_argument("--training", help="batches as in training, named as the batches are: tell wrong input apart")
    parser.add_argument("--statistic", choices=("exact", "precise"), default="exact")
    parser.add_argument("--force", action="store_true", help="write in any case")
    parser.add_argument(
        "--out", required=True, help="NEW.safetensors, for the weights; NEW.undo.safetensors is written beside it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Recalibrate the model and write it; 1 where that gains nothing."""
    out = Path(arguments.out)
    undo = out.with_suffix(".undo.safetensors")
    require_new(out, undo)
    model = load_model(arguments.model, arguments.weights)
    batches = load_batches(arguments.batches, arguments, "recalibrate")
    training = load_batches(arguments.training, arguments, "recalibrate")
    forward = find_optional(arguments.forward)
    evaluate = find_optional(arguments.evaluate)

    with collecting_warnings(), hinting_at_forward(forward):
        recalibration = bnlab.recalibrate(
            model,
            batches,
            statistic=arguments.statistic,
            evaluate=evaluate,
            training_batches=training,
            forward=forward,
            max_images=arguments.max_images,
            force=arguments.force,
            progress=sys.stderr.isatty(),
        )
    print(recalibration)
    if isinstance(batches, ImageFolder) and batches.classes:
        print(batches.tell_classes())
    if not recalibration.written:
        return 1

    recalibration.save_undo(undo)
    save_state(model, out)
    print(f"Wrote {out}. To undo it: bnlab undo {arguments.model} {undo} --weights {out} --out OLD.safetensors")
    return 0
