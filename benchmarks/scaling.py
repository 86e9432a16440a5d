"""Cost of exact statistics by depth, images and memory limit, against one forward pass; the tables of `passes`."""

from __future__ import annotations

import functools
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.networks import build_resnet, draw_images, evaluate
from benchmarks.timing import Result, Timed, time_once
from bnlab import population_statistics
from bnlab.gaps.gap import gap
from bnlab.harness.artifacts.run import describe_environment
from bnlab.memory import LiveBytes, read_free_bytes

TABLES = Path(__file__).parents[1] / "results/reference/passes/tables"
ROUNDS = 5  # each with a network of its own
BATCH = 32
ORDERS = ("breadth", "layerwise")
_DEPTHS = [(depth, 256, order, 1.0) for depth in (8, 14, 20, 32, 56) for order in ORDERS]
_IMAGES = [(20, images, order, 1.0) for images in (512, 1024) for order in ORDERS]
_MEMORY = [(20, 1024, "breadth", 1 / share) for share in (2, 4, 8, 12)]


def measure_scaling(device: str) -> Iterator[Result]:
    _measure(*_DEPTHS[0], seed=0)  # the first call of a process takes longer
    rows = []
    for seed in range(ROUNDS):
        for case in (*_DEPTHS, *_IMAGES, *_MEMORY):
            rows.append(_measure(*case, seed))
    frame = pd.DataFrame(rows)
    _keep(frame)

    cases = frame.groupby(["depth", "images", "memory", "strategy"], sort=False)
    for row in cases.median(numeric_only=True).reset_index().to_dict("records"):
        side = row["strategy"]
        what = f"resnet-{row['depth']}, {row['images']:,} images, {row['memory']:.2g} of the memory"
        timed = Timed(what, {side: row["seconds"], "one forward": row["forward_seconds"]})
        yield timed.compare(side, "one forward", note=f"{row['layers']:.0f} layers, {row['passes']:.3g} passes")


def _measure(depth: int, images: int, order: str, memory: float, seed: int) -> dict[str, Any]:
    """Time, passes and memory of exact statistics, and those of one forward, of a network with these random weights."""
    model, batches = _build(depth, images, seed)
    # Counting bytes takes longer than measuring, so only the depth is counted whose memory is varied.
    whole = _count_bytes(images, order) if depth == 20 else math.nan
    # Forwards that wait may take half of what is free.
    free = int(2 * whole * memory) if memory < 1 else read_free_bytes(torch.device("cpu"))
    measured: list[Any] = []
    evaluate(model, batches)
    with patch("bnlab.memory.read_free_bytes", lambda device: free):
        seconds = time_once(lambda: measured.append(population_statistics(model, batches, strategy=order)))
    forward_seconds = time_once(lambda: evaluate(model, batches))

    (exact,) = measured
    # Both orders have to give the same statistics; the table says how far they are apart.
    other = population_statistics(model, batches) if order == "layerwise" else exact
    return {
        "run": f"resnet-{depth}-{seed}",
        "depth": depth,
        "seed": seed,
        "strategy": order,
        "images": images,
        "memory": memory,
        "layers": depth - 1,
        "seconds": seconds,
        "forward_seconds": forward_seconds,
        "passes": exact.cost.forwards / exact.cost.batches,
        "peak_bytes": exact.cost.peak_bytes if memory < 1 else whole,
        "difference": gap(exact, other)["mean_gap"].max(),
    }


def _build(depth: int, images: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    return build_resnet(depth, seed=seed), list(draw_images(images, 32, seed=seed).split(BATCH))


@functools.cache
def _count_bytes(images: int, order: str) -> int:
    """Count the most bytes alive at once in exact statistics of a ResNet-20, whatever its weights."""
    model, batches = _build(20, images, seed=0)
    with LiveBytes() as live:
        population_statistics(model, batches, strategy=order)
    return live.peak


def _keep(frame: pd.DataFrame) -> None:
    """Write the tables of the experiment `passes` among the reference results; reports draw its figures from them."""
    versions = describe_environment(torch.device("cpu"))["versions"]
    runs = frame[["run", "seed", "depth"]].drop_duplicates()
    runs = runs.rename(columns={"depth": "model.depth"})
    runs = runs.assign(
        data="random numbers",
        model="resnet",
        batch_size=BATCH,
        versions=json.dumps(versions),
        device=platform.machine(),
        threads=torch.get_num_threads(),
    )
    tables = {"runs": runs, "passes": frame.drop(columns=["seed", "depth"])}
    for name, table in tables.items():
        table.to_parquet(TABLES / f"{name}.parquet", index=False, compression="zstd")
