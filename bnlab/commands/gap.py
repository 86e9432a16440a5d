"""`bnlab gap`: per layer, how far the running statistics are from exact population statistics."""

from __future__ import annotations

import argparse
import sys

import bnlab
from bnlab.commands.loading import hint_at_forward, load_arguments, report_warnings


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 0."""
    with report_warnings():
        call = load_arguments(arguments, "gap")
        with hint_at_forward(call):
            exact = bnlab.population_statistics(**call, max_images=arguments.max_images, progress=sys.stderr.isatty())
        table = _format_table(exact, bnlab.running_statistics(call["model"]))
    print(table)
    return 0


def _format_table(exact: bnlab.Statistics, running: bnlab.Statistics) -> str:
    frame = bnlab.gap(exact, running)
    lines = [frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")]
    # Only the count of the first layer is shown: deeper layers may have fewer positions.
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
