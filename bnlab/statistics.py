"""Statistics of a network as one value: read from buffers, saved, loaded into a model, compared."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnlab.borrow import borrowed
from bnlab.layers import BatchNorm, batch_norm_layers, get_running_buffers, match_names
from bnlab.moments import Moments
from bnlab.storage import load_tensors, save_tensors

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "bnlab.Statistics/1"


@dataclass
class Cost:
    """What a measurement took, on this rank.

    Attributes:
        images, batches: of the data; images are the rows of each batch's first tensor.
        forwards: how often a batch's forward was begun at its input, but for a few images to profile and to check;
            more than `batches` where memory was short, or there were several passes.
        input_bytes: of the batches, which are held.
        peak_bytes: the most that forwards needed at once, as the profile of one tells.
        passes: over all layers; more than one only where layers are called several times.
    """

    images: int
    batches: int
    forwards: int
    input_bytes: int
    peak_bytes: int = 0
    passes: int = 1


@dataclass(frozen=True)
class Check:
    """An ordinary evaluation under the result, of two batches and of one of another shape.

    Attributes:
        held: whether all layers were given what the statistics were measured on.
        layer: the first that was not.
        off: by how much at most, in σ and relative variance.
    """

    held: bool
    layer: str | None
    off: float

    def __str__(self) -> str:
        return "check held" if self.held else f"check failed at {self.layer}, measured layer by layer"


class Statistics(Mapping[str, Moments]):
    """Layer name (as in `model.named_modules()`) → `Moments`, with each layer's eps.

    Args:
        moments: the layers in order of depth.
        eps: each layer's own eps, by name.
        unseen: layers that were asked for and that no data reached.
        weights: [C] by name, the size of each channel's weight (γ), as far as it is known; 1 for a layer without.

    Raises:
        TypeError: a value is no `Moments`.
        ValueError: there is no layer, one without eps, or one whose mean, var and weight are not of one length.

    Attributes:
        cost, check, standard_errors: of a measurement, as `population_statistics` says; None otherwise, and not saved.

    `var` is always what `write_to` puts into the buffer, as is.
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        eps: Mapping[str, float],
        unseen: Iterable[str] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._moments = dict(moments)
        if not self._moments:
            raise ValueError("Statistics: no layers; pass moments of at least one")
        for name, value in self._moments.items():
            if not isinstance(value, Moments):
                raise TypeError(f"Statistics: layer {name!r} has a {type(value).__name__}; pass Moments")
            if not _are_rows(value.mean, value.var):
                raise ValueError(f"Statistics: mean and var of layer {name!r} are no tensors of one length [C]")
            if name not in eps:
                raise ValueError(f"Statistics: layer {name!r} has no eps; pass that of the layer")
        self.eps = {name: float(eps[name]) for name in self._moments}
        self.unseen = tuple(unseen)
        self.weights = {name: weight for name, weight in (weights or {}).items() if name in self._moments}
        for name, weight in self.weights.items():
            if weight.shape != self._moments[name].mean.shape:
                raise ValueError(f"Statistics: layer {name!r} has a weight of other channels than its mean")
        self.cost: Cost | None = None
        self.check: Check | None = None
        self.standard_errors: dict[str, tuple[Tensor, Tensor]] | None = None

    def __getitem__(self, layer: str) -> Moments:
        return self._moments[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        parts = [f"{len(self)} layers", f"{sum(m.mean.numel() for m in self.values())} channels"]
        parts += [f"{self.cost.images:,} images"] if self.cost is not None else []
        parts += ["unseen: " + ", ".join(self.unseen)] if self.unseen else []
        parts += [str(self.check)] if self.check is not None else []
        return f"Statistics({'; '.join(parts)})"

    def write_to(self, model: nn.Module) -> None:
        """Copy mean and var as they are into the running buffers of `model`, in place; reading gives them back.

        Layers of the model that these statistics do not have keep theirs; `num_batches_tracked` stays. Names may
        differ by what wrappers add, `module.` and `_orig_mod.`.

        Raises:
            TypeError: not a module.
            ValueError: a layer is missing in the model, has other channels, a value is not finite or beyond the type of
                the buffer, or a variance is negative; nothing is written then.
        """
        with torch.no_grad():
            for name, layer in self.find_layers(model, "write_to").items():
                for buffer, value in zip(get_running_buffers(layer), (self[name].mean, self[name].var), strict=True):
                    buffer.copy_(value)  # a backward pass that has saved the old value raises

    def find_layers(self, model: nn.Module, caller: str) -> dict[str, BatchNorm]:
        """For each name here the layer of `model`, after all that could be wrong has been checked."""
        known = batch_norm_layers(model, caller=caller)
        layers = {name: known[own] for name, own in match_names(self, known).items()}
        for name, moments in self.items():
            if name not in layers:
                raise ValueError(f"{caller}: the model has no batch-norm layer {name!r}; were these another model's?")
            buffers = get_running_buffers(layers[name])
            if len(moments.mean) != len(buffers[0]):
                raise ValueError(
                    f"{caller}: layer {name!r} has {len(buffers[0])} channels, these statistics {len(moments.mean)}"
                )
            if not (moments.mean.isfinite().all() and moments.var.isfinite().all() and (moments.var >= 0).all()):
                raise ValueError(f"{caller}: layer {name!r} has a NaN, infinite or negative value; nothing was written")
            for value, buffer in zip((moments.mean, moments.var), buffers, strict=True):
                if value.abs().max() > torch.finfo(buffer.dtype).max:
                    raise ValueError(
                        f"{caller}: layer {name!r} has a value beyond {buffer.dtype}, its buffers' type; nothing was "
                        "written"
                    )
        return layers

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer and channel: layer, depth (from 1), channel, count, mean, var, eps."""
        layout = Layout.of(self)
        frame = layout.channel_frame().drop(columns="channels")
        counts = {name: float(moments.count) for name, moments in self.items()}
        mean, var = layout.flatten(self).numpy()
        return frame.assign(count=frame["layer"].map(counts), mean=mean, var=var, eps=layout.channel_eps.numpy())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `<layer>/mean`, `/var` and `/weight` in float64; counts and eps as metadata.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {f"{name}/{key}": getattr(m, key).clone() for name, m in self.items() for key in ("mean", "var")}
        tensors |= {f"{name}/weight": weight.clone() for name, weight in self.weights.items()}
        layers = [[name, None if math.isnan(m.count) else m.count, self.eps[name]] for name, m in self.items()]
        save_tensors(path, tensors, _FORMAT, {"layers": json.dumps(layers), "unseen": json.dumps(self.unseen)})

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file of statistics, or damaged.
        """
        tensors, metadata = load_tensors(path, _FORMAT)
        layers = json.loads(metadata["layers"])
        moments = {
            name: Moments(math.nan if count is None else count, tensors[f"{name}/mean"], tensors[f"{name}/var"])
            for name, count, _ in layers
        }
        weights = {name: tensors[f"{name}/weight"] for name in moments if f"{name}/weight" in tensors}
        return Statistics(moments, {name: eps for name, _, eps in layers}, json.loads(metadata["unseen"]), weights)


def _are_rows(mean: object, var: object) -> bool:
    tensors = isinstance(mean, Tensor) and isinstance(var, Tensor)
    return tensors and mean.dim() == 1 and mean.shape == var.shape  # type: ignore[attr-defined]


def write_buffers(layer: BatchNorm, moments: Moments) -> None:
    """Copy mean and variance as they are into a layer's running buffers, in place."""
    for buffer, value in zip(get_running_buffers(layer), (moments.mean, moments.var), strict=True):
        buffer.data.copy_(value)  # .data: a backward pass still to come may have saved the buffer


def running_statistics(model: nn.Module) -> Statistics:
    """What the running buffers of `model` hold now, as is; counts are NaN.

    Raises:
        TypeError: not a module.
        ValueError: it has no batch-norm layer with running statistics.
    """
    layers = batch_norm_layers(model, caller="running_statistics")
    moments = {name: Moments(math.nan, *read_buffers(layer).cpu().double()) for name, layer in layers.items()}
    eps = {name: layer.eps for name, layer in layers.items()}
    return Statistics(moments, eps, weights=read_weights(layers))


def read_weights(layers: Mapping[str, BatchNorm]) -> dict[str, Tensor]:
    """The size of each channel's weight, float64 [C] on the CPU; 1 for a layer without weights."""
    weights = {}
    for name, layer in layers.items():
        weight = torch.ones(layer.num_features) if layer.weight is None else layer.weight.detach()
        weights[name] = weight.abs().cpu().double()
    return weights


def read_buffers(layer: BatchNorm) -> Tensor:
    """[2, C], a copy of a layer's running mean and variance."""
    state = layer.state_dict()  # for which self-tuned layers bring them up to date
    return torch.stack((state["running_mean"], state["running_var"])).detach()


@contextlib.contextmanager
def using(model: nn.Module, statistics: Statistics) -> Iterator[nn.Module]:
    """Evaluate under `statistics`: the model is in eval mode with them inside the block, then as it was before.

    So is the random state: what is drawn in the block is drawn again after it. What is written into the model's
    buffers in the block (by `load_state_dict`, say) is gone after it.

    Raises:
        TypeError, ValueError: as `Statistics.write_to`, before anything is changed.
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"using: statistics is a {type(statistics).__name__}; pass bnlab.Statistics")
    layers = statistics.find_layers(model, "using")
    with borrowed(model):
        for name, layer in layers.items():  # graphs of the block save other tensors than the model's, which come back
            layer.running_mean, layer.running_var = (buffer.clone() for buffer in get_running_buffers(layer))
            write_buffers(layer, statistics[name])
        yield model


@dataclass(frozen=True)
class Layout:
    """Which channels of a flat axis [all channels] belong to which layer: the border of arrays and `Statistics`."""

    names: tuple[str, ...]
    channels: tuple[int, ...]
    eps: tuple[float, ...]

    @staticmethod
    def of(statistics: Statistics) -> Layout:
        sizes = tuple(m.mean.numel() for m in statistics.values())
        return Layout(tuple(statistics), sizes, tuple(statistics.eps.values()))

    def channel_frame(self) -> pd.DataFrame:
        """A row for each channel: layer, depth (from 1), channels (of the layer), channel (from 0)."""
        import pandas as pd

        rows = [
            (name, depth, channels, channel)
            for depth, (name, channels) in enumerate(zip(self.names, self.channels, strict=True), start=1)
            for channel in range(channels)
        ]
        return pd.DataFrame(rows, columns=["layer", "depth", "channels", "channel"])

    @cached_property
    def channel_eps(self) -> Tensor:
        """float64 [all channels]"""
        eps = torch.tensor(self.eps, dtype=torch.float64, device="cpu")
        return eps.repeat_interleave(torch.tensor(self.channels, device="cpu"))

    def layer_means(self, values: Tensor) -> Tensor:
        """[..., all channels] → [..., layers], the mean over each layer's channels."""
        # Not a product with a matrix of weights: a NaN in one layer would reach all of them.
        return torch.stack([part.mean(-1) for part in values.split(self.channels, dim=-1)], dim=-1)

    def flatten(self, statistics: Statistics) -> Tensor:
        """float64 [2, all channels]: mean and var, in this layout's order."""
        return torch.cat([torch.stack((statistics[n].mean, statistics[n].var)) for n in self.names], dim=1)

    def unflatten(self, values: Tensor) -> Statistics:
        """The inverse of `flatten`, with NaN counts."""
        parts = zip(self.names, values.split(self.channels, dim=1), strict=True)
        moments = {name: Moments(math.nan, part[0].clone(), part[1].clone()) for name, part in parts}
        return Statistics(moments, dict(zip(self.names, self.eps, strict=True)))
