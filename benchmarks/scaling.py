"""Cost of exact statistics by depth, images and memory limit, against one forward pass; the tables of `passes`."""

from __future__ import annotations

import functools
import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.timing import THREADS, Result, evaluate
from bnlab import population_statistics
from bnlab.gaps import gap
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.outcome import find_outcome
from bnlab.lab.catalogue import find_experiment
from bnlab.memory import LiveBytes

REFERENCE = Path(__file__).parents[1] / "results/reference/passes"
ROUNDS = 5  # each with a network of its own
BATCH = 32
ORDERS = ("breadth", "layerwise")
_DEPTHS = [(depth, 256, order, 1.0) for depth in (8, 14, 20, 32, 56) for order in ORDERS]
_IMAGES = [(20, images, order, 1.0) for images in (512, 1024) for order in ORDERS]
_MEMORY = [(20, 1024, "breadth", 1 / share) for share in (2, 4, 8, 12)]


def results() -> list[Result]:
    _measure(*_DEPTHS[0], seed=0)  # the first call of a process takes longer
    rows = []
    for seed in range(ROUNDS):
        for case in (*_DEPTHS, *_IMAGES, *_MEMORY):
            rows.append(_measure(*case, seed))
    frame = pd.DataFrame(rows)
    _keep(frame)

    cases = frame.groupby(["depth", "images", "memory", "strategy"], sort=False)
    medians = cases.median(numeric_only=True)
    return [_describe(row) for row in medians.reset_index().to_dict("records")]


def _measure(depth: int, images: int, order: str, memory: float, seed: int) -> dict[str, Any]:
    """Time, passes and memory of exact statistics, and those of one forward, of a network with these random weights."""
    model, batches = _build(depth, images, seed)
    whole = _count_bytes(images, order) if depth == 20 else math.nan
    limit = int(whole * memory) if memory < 1 else None
    _time(lambda: evaluate(model, batches))
    found, seconds = _time(lambda: population_statistics(model, batches, strategy=order, memory=limit))
    _, forward_seconds = _time(lambda: evaluate(model, batches))
    other = population_statistics(model, batches) if order == "layerwise" else found
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
        "passes": found.cost.forwards / found.cost.batches,
        "peak_bytes": found.cost.peak_bytes if limit else whole,
        "difference": gap(found, other)["mean_gap"].max(),
    }


def _build(depth: int, images: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    """A ResNet of the CIFAR kind, and batches of random images."""
    model = build_model(Resnet(depth=depth), channels=3, image_size=32, classes=10, seed=seed).eval()
    data = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return model, list(data.contiguous(memory_format=torch.channels_last).split(BATCH))


@functools.cache
def _count_bytes(images: int, order: str) -> int:
    """The most bytes alive at once in exact statistics of a ResNet-20, whatever its weights."""
    model, batches = _build(20, images, seed=0)
    with LiveBytes() as live:
        population_statistics(model, batches, strategy=order)
    return live.peak


def _time(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def _describe(row: dict[Any, Any]) -> Result:
    what = f"resnet-{row['depth']}, {row['images']:,} images"
    memory = row["memory"]
    if memory < 1:
        parts = round(1 / memory)
        what = f"{what}, 1/{parts} of the memory"

    note = f"{row['layers']:.0f} layers, {row['passes']:.3g} passes"
    peak = row["peak_bytes"]
    if not math.isnan(peak):
        mebibytes = peak / 2**20
        note = f"{note}, {mebibytes:.0f} MiB"

    side = row["strategy"]
    seconds = row["seconds"]
    forward_seconds = row["forward_seconds"]
    return Result(what, side, seconds, "one forward", forward_seconds, None, note)


def _keep(frame: pd.DataFrame) -> None:
    """Tables and figures of the experiment `passes`, in place of those among the reference results."""
    passes = frame.drop(columns=["seed", "depth"])
    tables = {"runs": _describe_runs(frame), "passes": passes}
    shutil.rmtree(REFERENCE, ignore_errors=True)
    folder = REFERENCE / "tables"
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")

    matplotlib.use("Agg")
    outcome = find_outcome(find_experiment("passes"), tables)
    for name, figure in outcome.experiment.figures.items():
        drawing.write(name, figure, tables, REFERENCE / "figures", pdf=False)


def _describe_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the table `runs` of the networks that were measured."""
    versions = {name: version(name) for name in ("bnlab", "numpy", "pandas", "torch")}
    runs = frame[["run", "seed", "depth"]].drop_duplicates()
    runs = runs.rename(columns={"depth": "model.depth"})
    return runs.assign(
        data="random numbers",
        model="resnet",
        batch_size=BATCH,
        versions=json.dumps(versions),
        device=platform.machine(),
        threads=THREADS,
    )
