"""Table `histograms`: what each layer's normalized activations look like under every estimator."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.evaluations import apply_rule
from bnlab.harness.measurements.frozen import in_batches
from bnlab.harness.measurements.gaps import flat_statistics, tabulate
from bnlab.harness.measurements.sources import Source, find_exact
from bnlab.layers import batch_norm_layers
from bnlab.statistics import using

NORMS = RECORDED
_IMAGES = 512  # of the training split
_EDGES = torch.linspace(-4, 4, 33, dtype=torch.float64)


def scope(run: Run, sources: list[Source]) -> dict[Source, list[int]]:
    """These sources and always `exact`, of each population, at all steps of `evaluate_at`."""
    return dict.fromkeys([*find_exact(run.config), *sources], run.wanted)


def histograms(run: Run, sources: list[Source], steps: list[int]) -> pd.DataFrame:
    """One row for each step, source, layer and bin, over all channels, positions and 512 training images."""
    layout, estimates = run.trace.layout, flat_statistics(run, sources, steps)
    counts = np.empty((len(steps), len(sources), len(layout.names), len(_EDGES) - 1))
    for k, step in enumerate(steps):
        model = run.model_at(step)
        for s, source in enumerate(sources):
            with using(model, layout.unflatten(estimates[s, k])):
                counts[k, s] = _count(model, run.dataset.train.images[:_IMAGES], source)
    edges = _EDGES.numpy()
    values = {"right": edges[1:], "share": counts / counts.sum(-1, keepdims=True)}
    return tabulate(run, sources, steps, values, layer=layout.names, left=edges[:-1].tolist())


@torch.no_grad()
def _count(model: nn.Module, images: Tensor, source: Source) -> np.ndarray:
    """Values in each bin by layer; the first and last bin have those beyond them too."""
    found: dict[str, Tensor] = {}
    low, high = float(_EDGES[0]), float(_EDGES[-1])
    affine: dict[Any, tuple[Tensor | None, Tensor | None]] = {}

    def hide_affine(layer: Any, args: object) -> None:
        affine[layer] = layer.weight, layer.bias
        layer.weight = layer.bias = None  # the layer gives its normalized input, whatever rule it follows

    def count(name: str) -> Any:
        def hook(layer: Any, args: object, normalized: Tensor) -> Tensor:
            layer.weight, layer.bias = weight, bias = affine.pop(layer)
            counts = torch.histc(normalized.clamp(low, high), len(_EDGES) - 1, low, high).double().cpu()
            found[name] = found.get(name, 0) + counts
            if weight is None or bias is None:
                return normalized
            shape = (1, -1, *[1] * (normalized.dim() - 2))
            return normalized * weight.view(shape) + bias.view(shape)

        return hook

    with contextlib.ExitStack() as stack:
        at_once = stack.enter_context(apply_rule(model, source))
        for name, layer in batch_norm_layers(model, caller="histograms").items():
            stack.callback(layer.register_forward_pre_hook(hide_affine).remove)
            stack.callback(layer.register_forward_hook(count(name)).remove)
        for index in in_batches(len(images), at_once):
            model(images[index])
    return torch.stack([*found.values()]).numpy()
