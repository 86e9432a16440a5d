"""The command `bnlab`: how far are my model's running statistics from the exact ones?"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

import bnlab
from bnlab.memory import keep_freed_memory


def main() -> int:
    """Exit 2 for a user's mistake, with one line that says what to do."""
    parser = argparse.ArgumentParser(prog="bnlab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"bnlab {bnlab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    gap = commands.add_parser(
        "gap", help="per layer, the gap of the running statistics from exact population statistics"
    )
    gap.add_argument("model", help="package.module:function that returns the model")
    gap.add_argument("batches", help="package.module:function that returns an iterable of batches, e.g. a DataLoader")
    gap.add_argument("--max-images", type=int, help="stop after so many images")
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        model, batches = _made(arguments.model), _made(arguments.batches)
        exact = bnlab.population_statistics(model, batches, max_images=arguments.max_images, progress=True)
        running = bnlab.running_statistics(model)
        print(_table(exact, running))
        return 0
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _made(name: str) -> Any:
    """What the function of this name returns; the current folder is searched as well."""
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{name}: write package.module:function")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    return make()


def _table(exact: bnlab.Statistics, running: bnlab.Statistics) -> str:
    measured = bnlab.Statistics({name: running[name] for name in exact}, running.eps)
    frame = bnlab.gap(exact, measured)
    lines = [frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")]
    count = next(iter(exact.values())).count
    lines.append(
        "\nmean_gap: distance of the running mean in standard deviations; var_gap: |log ratio| of the variance"
    )
    lines.append(f"exact statistics of {count:,} values per channel in the first layer")
    if exact.unseen:
        lines.append(f"not reached by the data: {', '.join(exact.unseen)}")
    return "\n".join(lines)
