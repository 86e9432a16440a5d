"""Table `evaluations`: how the network predicts under every estimator's statistics."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.data import Split
from bnlab.harness.measurements.frozen import EXACT, IMAGES_AT_ONCE, frozen_statistics, in_batches, population_split
from bnlab.harness.measurements.gaps import flat_statistics, keys
from bnlab.harness.measurements.sources import Setting
from bnlab.harness.runs import Run
from bnlab.inference import applied
from bnlab.statistics import using

ECE_BINS = 15


class Prediction(NamedTuple):
    """Logits [N, classes] in float64 and what they score."""

    logits: Tensor
    loss: float
    accuracy: float
    ece: float


def scope(run: Run, settings: list[Setting]) -> tuple[list[Setting], list[int]]:
    """These settings and always `exact`; the final step, or all of `evaluate_at`."""
    steps = run.wanted if run.config.accuracy_at == "all" else run.wanted[-1:]
    return list(dict.fromkeys([EXACT, *settings])), steps


def evaluations(run: Run, settings: list[Setting], steps: list[int]) -> pd.DataFrame:
    """One row for each step and setting, on the test split."""
    estimates, layout = flat_statistics(run, settings, steps), run.trace.layout
    data, test = run.config.data, run.dataset.test
    index = np.indices((len(steps), len(settings))).reshape(2, -1)
    frame = keys(run, settings, steps, index[1], index[0])
    frame["split"] = "test"
    frame["shift"] = f"fonts:{data.test_fonts}" if data.name == "glyphs" and data.test_fonts != data.fonts else "none"
    frame["images"] = len(test.labels)
    frame["stat_images"] = [stat_images(run, settings[s], steps[k]) for k, s in index.T]
    rows = []
    for k, step in enumerate(steps):
        model = run.model_at(step)
        with using(model, frozen_statistics(run, step, EXACT)):
            exact = predict(model, test)
        for s, setting in enumerate(settings):
            with using(model, layout.unflatten(estimates[s, k])):
                found = exact if setting == EXACT else predict(model, test, setting)
            rows.append((*found[1:], *_differences(exact.logits, found.logits)))
    frame[["loss", "accuracy", "ece", "disagreement", "logit_gap"]] = np.array(rows)
    return frame


@torch.no_grad()
def predict(model: nn.Module, split: Split, setting: Setting = EXACT) -> Prediction:
    """The model under the statistics that it holds, on a whole split; by the setting's rule if it has one."""
    rule = setting.rule
    slices = in_batches(len(split.labels), IMAGES_AT_ONCE if rule is None else setting.images or IMAGES_AT_ONCE)
    with applied(model, rule) if rule else contextlib.nullcontext():
        logits = torch.cat([model(split.images[index]) for index in slices]).double()
    hit = logits.argmax(1) == split.labels
    loss = F.cross_entropy(logits, split.labels).item()
    return Prediction(logits, loss, hit.double().mean().item(), ece(logits.softmax(1).amax(1), hit))


def ece(confidence: Tensor, hit: Tensor) -> float:
    """Expected calibration error over equal bins of confidence (Guo et al. 2017): a fraction, 0 is calibrated."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    excess = torch.zeros(ECE_BINS, dtype=confidence.dtype, device=confidence.device)
    excess.index_add_(0, bins, confidence - hit.to(confidence.dtype))
    return excess.abs().sum().item() / len(confidence)


def _differences(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """`disagreement` and `logit_gap` (rms difference over the exact logits' rms)."""
    disagreement = (exact.argmax(1) != found.argmax(1)).double().mean().item()
    return disagreement, ((found - exact).square().mean() / exact.square().mean()).sqrt().item()


def stat_images(run: Run, setting: Setting, step: int) -> int:
    """Images that the statistics are of; a running estimator's are all that it was shown, whatever it has forgotten."""
    if setting.rule is not None:
        return setting.images or 0
    if setting.running is None:
        size = len(population_split(run, setting).labels)
        return min(setting.images or size, size)
    epochs, rest = divmod(step, run.batches.per_epoch)
    per_epoch = min(run.batches.per_epoch * run.config.batch_size, len(run.dataset.train.labels))
    return epochs * per_epoch + rest * run.config.batch_size
