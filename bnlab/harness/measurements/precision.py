"""Table `precision`: how far exact statistics of a sample of the images are expected to be off, for one image."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

import bnlab
from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.frozen import EXACT, IMAGES_AT_ONCE, population
from bnlab.harness.measurements.sources import Source

NORMS = RECORDED


def scope(run: Run, sources: list[Source]) -> dict[None, list[int]]:
    """No estimator; all steps of `evaluate_at`."""
    return {None: run.wanted}


def precision(run: Run, sources: list[None], steps: list[int]) -> pd.DataFrame:
    """One row for each step and layer: standard errors of exact statistics times √N, for N training images.

    Of n images drawn without replacement the expected error is √((1 − n/N)/n) times that, images being independent and
    the layers before taken as they are under exact statistics.
    """
    rows = []
    for step in steps:
        batches = [images for images, _ in population(run, step, EXACT, IMAGES_AT_ONCE)]
        exact = bnlab.population_statistics(run.model_at(step), batches, standard_errors=True)
        images, epoch = sum(map(len, batches)), step / run.batches.per_epoch
        for depth, (name, moments) in enumerate(exact.items(), start=1):
            of_mean, of_var = (error * images**0.5 for error in (exact.standard_errors or {})[name])
            var = moments.var + exact.eps[name]
            errors = _rms(of_mean / var.sqrt()), _rms(of_var / var)
            rows.append((run.id, step, name, epoch, depth, len(var), images, moments.count, *errors))
    columns = ["run", "step", "layer", "epoch", "depth", "channels", "images", "values"]
    return pd.DataFrame(rows, columns=[*columns, "mean_error", "var_error"])


def _rms(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values) / len(values) ** 0.5)
