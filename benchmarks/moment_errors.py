"""Errors of moments against float64 moments of the stored values: python -m benchmarks.moment_errors [--cuda].

A table for each way to read: what the CPU does, and what an accelerator does, on the CPU or with --cuda on one. The
last table is of what torch's own batch norm averages in a training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks import LAYOUTS
from bnlab import Moments
from bnlab.model.reading import DeviceReader, Reader
from bnlab.statistics.moments import compare_moments

_MEANS = (0, 4, 8, 16, 100, 10_000)  # in standard deviations
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHAPE = (64, 64, 28, 28)
_BATCHES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true", help="read on an accelerator")
    device = "cuda" if parser.parse_args().cuda else "cpu"
    ways: dict[str, Callable[[Tensor], Moments]] = {}
    if device == "cpu":
        ways["Read as on the CPU"] = partial(_read, Reader())
    ways["Read as on an accelerator"] = partial(_read, DeviceReader())
    ways["Averaged by torch's batch norm"] = _train

    columns = [(dtype, layout) for dtype in _DTYPES for layout in LAYOUTS]
    names = [f"{str(dtype).removeprefix('torch.')}, {layout}" for dtype, layout in columns]
    for words, compute in ways.items():
        print(f"\n{words}, device {device}: errors of the mean in σ, and of the variance, relative.\n")
        print(f"| mean, in σ | {' | '.join(names)} |")
        print(f"|--:|{'--:|' * len(names)}")
        for mean in _MEANS:
            cells = [_measure_error(compute, mean, dtype, layout, device) for dtype, layout in columns]
            print(f"| {mean:,} | {' | '.join(cells)} |", flush=True)


def _measure_error(
    compute: Callable[[Tensor], Moments], mean: float, dtype: torch.dtype, layout: str, device: str
) -> str:
    """Compute moments, and describe the largest error of a channel."""
    generator = torch.Generator().manual_seed(0)
    values = mean + torch.randn(_SHAPE, generator=generator, dtype=torch.float64)
    x = values.to(dtype).to(device).contiguous(memory_format=LAYOUTS[layout])
    # Against the values as they are stored: that a dtype rounds them is no error of reading.
    of_mean, of_variance = compare_moments(_compute_in_float64(x), compute(x))
    return f"{of_mean:.0e}, {of_variance:.0e}"


def _read(reader: Reader, x: Tensor) -> Moments:
    """Read values in batches, as a walk does."""
    parts = list(x.split(_SHAPE[0] // _BATCHES))
    pooled = reader.pool([reader.measure(part) for part in parts])
    return Moments(pooled.count, pooled.mean.cpu(), pooled.var.cpu())


def _train(x: Tensor) -> Moments:
    """Let a batch norm average all values at once, as in a training with momentum 1."""
    layer = nn.BatchNorm2d(x.shape[1], momentum=1.0, device=x.device)
    layer(x)
    mean, unbiased = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    count = x.numel() // x.shape[1]
    return Moments(count, mean.cpu().double(), unbiased.cpu().double() * (count - 1) / count)


def _compute_in_float64(x: Tensor) -> Moments:
    channels = x.cpu().double().transpose(0, 1).flatten(1)
    mean = channels.mean(1)
    var = (channels - mean[:, None]).square().mean(1)
    return Moments(channels.shape[1], mean, var)


if __name__ == "__main__":
    main()
