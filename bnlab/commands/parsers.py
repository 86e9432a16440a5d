"""How the commands on a model are called. Nothing here loads torch: whoever asks for help need not wait for it."""

from __future__ import annotations

import argparse
from typing import Any, Literal

_ABOUT_DOCTOR = (
    "Why a model is worse in eval mode, what it costs, and what to do. Without batches in milliseconds, from what the "
    "model holds; with batches also a verdict, by their labels, --metric or --evaluate, else by how predictions differ "
    "from those under exact statistics. Exit status: 0 healthy, or nothing but notes; 1 something was found; 2 a wrong "
    "call; 3 undecided."
)


def add_parsers(commands: Any) -> None:
    """Add the commands to `commands`, the subparsers of `bnlab`. The module of a command's name runs it."""
    _add_doctor(commands)
    _add_explain(commands)
    _add_gap(commands)
    _add_recalibrate(commands)
    _add_undo(commands)


def _add_doctor(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="what is wrong with a model's batch norms, what it costs, what to do", description=_ABOUT_DOCTOR
    )
    _add_model_arguments(parser, nargs="?")
    _add_score_arguments(parser)
    parser.add_argument("--before", help="an earlier checkpoint, or the network that this one is a copy or average of")
    parser.add_argument("--expected", type=float, help="the score that the model should reach; accuracy 0.9, not 90")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else on stdout")
    parser.add_argument("--html", help="write a page to this file")
    parser.add_argument("--demo", action="store_true", help="spoil a small trained network in five ways, and ask")


def _add_explain(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain", help="what a code of the doctor's means, how it is looked for, and what to do"
    )
    parser.add_argument("code", nargs="?", help="such as BN102; all codes are listed without one")


def _add_gap(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "gap", help="per layer, the gap of the running statistics from exact population statistics"
    )
    _add_model_arguments(parser)
    parser.add_argument(
        "--max-images", type=int, help="or max_images=N: stop after the batch with which so many have been read"
    )


def _add_recalibrate(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "recalibrate",
        help="write weights with new running statistics, if the doctor finds the averages at fault",
        description="Exit status: 0 written, 1 not written, with the reason, 2 bad input.",
    )
    _add_model_arguments(parser)
    _add_score_arguments(parser)
    parser.add_argument("--force", action="store_true", help="write in any case")
    parser.add_argument(
        "--out", required=True, help="NEW.safetensors, for the weights; NEW.undo.safetensors is written beside it"
    )


def _add_undo(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "undo", help="write weights with the running statistics from before a recalibration"
    )
    parser.add_argument("model", help="package.module:function that returns the model")
    parser.add_argument("undo_file", help="what bnlab recalibrate has written beside the weights")
    parser.add_argument("--weights", required=True, help="what bnlab recalibrate has written: NEW.safetensors")
    parser.add_argument("--out", required=True, help="OLD.safetensors, for the weights with the old statistics")


def _add_model_arguments(parser: argparse.ArgumentParser, nargs: Literal["?"] | None = None) -> None:
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
    add_image_arguments(parser)


def _add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what commands that score a model take, too."""
    parser.add_argument(
        "--metric",
        help="package.module:function of output and batch that returns a value for each image, higher is better; "
        "default by labels, the second part of a tuple, or what a dictionary calls labels",
    )
    parser.add_argument(
        "--evaluate",
        help="package.module:function of the model that returns such values, where whole models are scored",
    )
    parser.add_argument("--training", help="batches as in training, named as the batches are: tell wrong input apart")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how a folder of images becomes batches."""
    group = parser.add_argument_group(
        "a folder of images",
        "Images are read by torchvision, which has to be installed. They are resized, cropped to a square about their "
        "center, and normalized as the package does it for the model's own weights; for models by function as "
        "torchvision does it for ResNet-18: 224 pixels of 256, mean 0.485,0.456,0.406 and std 0.229,0.224,0.225. "
        "Two subfolders or more are classes 0, 1, ... in alphabetical order, and each has to have images; the model "
        "must number them in this way. Other folders have no labels. Images are in random order, the same each time.",
    )
    group.add_argument("--size", type=int, help="resize the shorter side to so many pixels, and crop a square of them")
    group.add_argument("--mean", type=numbers, metavar="R,G,B", help="subtracted from values between 0 and 1")
    group.add_argument("--std", type=numbers, metavar="R,G,B", help="what the values are divided by then")
    group.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="images in a batch at most, best as in training; batches are as equal as possible; default 64",
    )


# argparse names this function where a text cannot be read: "invalid numbers value".
def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    return tuple(map(float, text.split(",")))
