"""The command `bnlab`: how far are my model's running statistics from the exact ones? And sweeps, from any folder."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import nn

import bnlab
from bnlab.memory import keep_freed_memory

_DESCRIPTION = (
    "Batch norm's running averages against exact statistics: of your own model (gap), and of small networks that are "
    "trained for it (sweep, report, runs). bnlab COMMAND --help says more."
)
_OF_SWEEPS = {
    "sweep": "train the networks that are missing, measure them, write tables",
    "report": "draw figures of a sweep, or the figures and verdicts of a question",
    "runs": "list, show, remove or export networks that have been trained",
}
"""Commands of the clone, with what they are for."""


def main() -> int:
    """Exit 2 for a user's mistake, with one line that says what to do."""
    if sys.argv[1:] and sys.argv[1] in _OF_SWEEPS:
        return _pass_on(sys.argv[1], sys.argv[2:])
    keep_freed_memory()
    try:
        # `max_images=100` too, as Python and the commands of the harness write it.
        words = [re.sub("^max_images=", "--max-images=", word) for word in sys.argv[1:]]
        arguments = _make_parser().parse_args(words)
        print(_measure_gap(arguments))
        return 0
    except Exception as error:  # the caller's model and batches may raise anything
        print(f"error: {_describe(error)}", file=sys.stderr)
        return 2


def _pass_on(command: str, words: list[str]) -> int:
    """Run a command of `experiments/`, which lies beside the package in a clone, in the current folder."""
    clone = Path(bnlab.__file__).resolve().parents[1]
    if not (clone / "experiments" / f"{command}.py").is_file():
        print(
            f"error: bnlab {command} needs bnlab's repository: clone it, then pip install -e '.[harness]' in it",
            file=sys.stderr,
        )
        return 2
    if importlib.util.find_spec("hydra") is None:
        print(f"error: bnlab {command} needs more packages: pip install -e '{clone}[harness]'", file=sys.stderr)
        return 2

    # The user's own modules are found in the current folder, by the processes of a launcher too.
    folders = [str(clone), os.getcwd()]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.argv = [f"bnlab {command}", *words]
    code: int = importlib.import_module(f"experiments.{command}").main()
    return code


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bnlab", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"bnlab {bnlab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in _OF_SWEEPS.items():
        commands.add_parser(name, help=purpose)
    gap = commands.add_parser(
        "gap", help="per layer, the gap of the running statistics from exact population statistics"
    )
    gap.add_argument("model", help="package.module:function that returns the model")
    gap.add_argument("batches", help="package.module:function that returns an iterable of batches, e.g. a DataLoader")
    gap.add_argument(
        "--forward",
        help="package.module:function of model and batch; default model(batch), or model(batch[0]) of a tuple",
    )
    gap.add_argument("--weights", help="a file with the model's weights: safetensors, or a state dict of torch's")
    gap.add_argument(
        "--max-images", type=int, help="or max_images=N: stop after the batch with which so many have been read"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line, where argparse prints its usage before it."""
        raise ValueError(f"{message}; {self.prog} --help says how to call it")


def _measure_gap(arguments: argparse.Namespace) -> str:
    """Make the table; what bnlab warns of is printed before it, a line each."""
    model = _call_by_name(arguments.model)
    batches = _call_by_name(arguments.batches)
    forward = None if arguments.forward is None else _find_function(arguments.forward)
    if arguments.weights is not None:
        _load_weights(model, Path(arguments.weights))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            exact = bnlab.population_statistics(
                model, batches, forward=forward, max_images=arguments.max_images, progress=sys.stderr.isatty()
            )
        except TypeError as error:
            if forward is None:
                error.add_note("if the model is called otherwise: --forward package.module:function of model and batch")
            raise
        table = _format_table(exact, bnlab.running_statistics(model))

    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return table


def _load_weights(model: Any, path: Path) -> None:
    """Load a file into the model; ValueError if it cannot be read, or is of another model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"--weights: the model is a {type(model).__name__}; name a function that returns a module")
    if not path.is_file():
        raise ValueError(f"--weights {path}: no such file")
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--weights {path}: is not of this model ({reason})") from error


def _read_state(path: Path) -> Any:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise what they like
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--weights {path}: cannot be read ({reason}); pass safetensors or a state dict") from error

    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # as trainers save it
        return state["state_dict"]
    return state


def _describe(error: Exception) -> str:
    """Write our own message as it is; of what the caller's code raised also the type, our notes, and the line."""
    trace = traceback.extract_tb(error.__traceback__)
    # LiveBytes stands between the caller's code and torch.
    frames = [frame for frame in trace if frame.name != "__torch_function__"]
    package = Path(__file__).parent
    ours = [number for number, frame in enumerate(frames) if package in Path(frame.filename).parents]
    foreign = frames[max(ours) + 1 :]
    if not foreign:
        return str(error)

    first_line = str(error).partition("\n")[0]
    lines = [f"{type(error).__name__}: {first_line}"]
    lines += getattr(error, "__notes__", [])
    callers = [frame for frame in foreign if "site-packages" not in frame.filename]
    if callers:
        last = callers[-1]
        lines.append(f"at {last.filename}:{last.lineno}: {last.line}")
    return "\n  ".join(lines)


def _call_by_name(name: str) -> Any:
    """Call the function of this name without arguments."""
    make = _find_function(name)
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise TypeError(f"{name} takes arguments ({error}); name a function without arguments") from error
    return make()


def _find_function(name: str) -> Any:
    """Import the function of this name; the current folder is searched as well."""
    module, colon, function = name.partition(":")
    parts = [*module.split("."), function]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(f"{name}: write package.module:function")

    sys.path.insert(0, os.getcwd())
    try:
        value = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    if not callable(value) or isinstance(value, nn.Module):  # a module is called with its input
        raise TypeError(f"{name} is a {type(value).__name__}; name a function without arguments")
    return value


def _format_table(exact: bnlab.Statistics, running: bnlab.Statistics) -> str:
    frame = bnlab.gap(exact, running)
    lines = [frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")]
    count = next(iter(exact.values())).count
    assert exact.cost is not None  # they were measured
    lines.append(
        "\nmean_gap: distance of the running mean in standard deviations; var_gap: |log ratio| of the variance; "
        "kl: both together, in nats; output_gap: how far the layer's output is off"
    )
    lines.append(f"exact statistics of {exact.cost.images:,} images, {count:,} values per channel in the first layer")
    if exact.unseen:
        lines.append(f"not reached by the data: {', '.join(exact.unseen)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
