"""The command `bnlab`: how far are my model's running statistics from the exact ones?"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

import bnlab
from bnlab.memory import keep_freed_memory


def main() -> int:
    """Exit 2 for a user's mistake, with one line that says what to do."""
    parser = _Parser(prog="bnlab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"bnlab {bnlab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    gap = commands.add_parser(
        "gap", help="per layer, the gap of the running statistics from exact population statistics"
    )
    gap.add_argument("model", help="package.module:function that returns the model")
    gap.add_argument("batches", help="package.module:function that returns an iterable of batches, e.g. a DataLoader")
    gap.add_argument(
        "--max-images", type=int, help="or max_images=N: stop after the batch with which so many have been read"
    )
    keep_freed_memory()
    try:
        # `max_images=100` too, as Python and the commands of the harness have it.
        arguments = parser.parse_args([re.sub("^max_images=", "--max-images=", word) for word in sys.argv[1:]])
        print(_measure_gap(arguments.model, arguments.batches, arguments.max_images))
        return 0
    except Exception as error:  # the caller's model and batches may raise anything
        print(f"error: {_describe(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints its usage before it."""
        raise ValueError(f"{message}; {self.prog} --help says how to call it")


def _measure_gap(model_name: str, batches_name: str, max_images: int | None) -> str:
    """The table; what bnlab warns of is printed before it, a line each."""
    model, batches = _call_by_name(model_name), _call_by_name(batches_name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        exact = bnlab.population_statistics(model, batches, max_images=max_images, progress=sys.stderr.isatty())
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return _format_table(exact, bnlab.running_statistics(model))


def _describe(error: Exception) -> str:
    """Our own message as it is; of what the caller's code raised also the type, what we know of it, and the line."""
    # LiveBytes stands between the caller's code and torch.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "__torch_function__"]
    last = max(i for i, frame in enumerate(frames) if Path(__file__).parent in Path(frame.filename).parents)
    foreign = frames[last + 1 :]
    if not foreign:
        return str(error)
    lines = [f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", *getattr(error, "__notes__", ())]
    own = [frame for frame in foreign if "site-packages" not in frame.filename]
    return "\n  ".join([*lines, *(f"at {f.filename}:{f.lineno}: {f.line}" for f in own[-1:])])


def _call_by_name(name: str) -> Any:
    """What the function of this name returns; the current folder is searched as well."""
    module, colon, function = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ValueError(f"{name}: write package.module:function")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    if not callable(make) or isinstance(make, nn.Module):  # a module is called with its input
        raise TypeError(f"{name} is a {type(make).__name__}; name a function without arguments")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise TypeError(f"{name} takes arguments ({error}); name a function without arguments") from error
    return make()


def _format_table(exact: bnlab.Statistics, running: bnlab.Statistics) -> str:
    frame = bnlab.gap(exact, running)
    lines = [frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")]
    count = next(iter(exact.values())).count
    assert exact.cost is not None  # they were measured
    lines.append(
        "\nmean_gap: distance of the running mean in standard deviations; var_gap: |log ratio| of the variance; "
        "kl: both together, in nats"
    )
    lines.append(f"exact statistics of {exact.cost.images:,} images, {count:,} values per channel in the first layer")
    if exact.unseen:
        lines.append(f"not reached by the data: {', '.join(exact.unseen)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
