"""Statistics of a network as one value: read from buffers, saved, loaded into a model, compared."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnlab.borrowing import borrowed, set_buffers_aside
from bnlab.in_mode import in_mode
from bnlab.interrupts import end_interrupted_calls
from bnlab.layers import BatchNorm, batch_norm_layers, get_running_buffers, join_names, match_names
from bnlab.loans import check_not_lent
from bnlab.moments import Moments
from bnlab.storage import load_tensors, save_tensors

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "bnlab.Statistics/1"


class Statistics(Mapping[str, Moments]):
    """Layer name (as in `model.named_modules()`) → `Moments`, with each layer's eps.

    Args:
        moments: the layers in order of depth.
        eps: each layer's own eps, by name.
        unseen: layers that were asked for and that no data reached.

    Raises:
        TypeError: a value is no `Moments`.
        ValueError: there is no layer, one without eps, or one whose mean and var are not of one length.

    Attributes:
        cost, check, standard_errors: of a measurement, as `population_statistics` says; None otherwise, and not saved.

    `var` is always what `write_to` puts into the buffer, as is.
    """

    def __init__(self, moments: Mapping[str, Moments], eps: Mapping[str, float], unseen: Iterable[str] = ()) -> None:
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
        self.cost: Any = None
        self.check: Any = None
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
        if self.check is not None:
            parts += ["bypassed: " + ", ".join(self.check.bypassed)] if self.check.bypassed else []
            parts += ["depending on their batch: " + ", ".join(self.check.dependent)] if self.check.dependent else []
            others = self.check.lookalikes
            parts += ["not torch's batch norm: " + ", ".join(others)] if others else []
            if not self.check.held:
                parts.append(f"check failed at {self.check.leaking or self.check.layer}")
            elif self.check.compared:
                parts.append("check held")
        return f"Statistics({'; '.join(parts)})"

    def write_to(self, model: nn.Module) -> None:
        """Copy mean and var as they are into the running buffers of `model`, in place; reading gives them back.

        Layers of the model that these statistics do not have keep theirs; `num_batches_tracked` stays. Names may
        differ by what wrappers add, `module.` and `_orig_mod.`.

        Raises:
            ValueError: a layer is missing in the model, has other channels, a value is not finite or beyond the type of
                the buffer, a variance is negative, a buffer shares memory with one that gets other values, or another
                thread has borrowed a layer; nothing is written then.
        """
        layers = self._matching(model, "write_to")
        check_not_lent(layers.values())
        _check_writable(layers)
        self._check_memory(layers)
        self._copy_into(layers)

    def _check_memory(self, layers: dict[str, BatchNorm]) -> None:
        """ValueError if some values would be written over others."""
        values: dict[int, tuple[str, float]] = {}  # by address
        for name, layer in layers.items():
            for buffer, wanted in zip(get_running_buffers(layer), (self[name].mean, self[name].var), strict=True):
                step = buffer.stride(0) * buffer.element_size()
                for channel, value in enumerate(wanted.tolist()):
                    other, first = values.setdefault(buffer.data_ptr() + channel * step, (name, value))
                    if first != value:
                        raise ValueError(
                            f"write_to: the running buffers of layers {other!r} and {name!r} share memory and would "
                            "get other values; give each its own by .clone(), or use bnlab.using; nothing was written"
                        )

    def _copy_into(self, layers: dict[str, BatchNorm]) -> None:
        for name, layer in layers.items():
            write_buffers(layer, self[name])

    def _lend_to(self, layers: dict[str, BatchNorm]) -> None:
        """Let layers of a borrowed model have copies of their buffers with these values."""
        if idle := [name for name, layer in layers.items() if layer.running_mean is None]:
            raise ValueError(
                f"using: {join_names(idle)} have no running statistics in eval mode (eval is overridden), and are not "
                "evaluated under any"
            )
        for layer in layers.values():
            set_buffers_aside(layer)
        self._copy_into(layers)

    def _find_new(self, model: nn.Module, known: Collection[nn.Module]) -> dict[str, BatchNorm]:
        """The layers of these names that its own `eval` has put in the place of others."""
        norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        new = {name: layer for name, layer in norms.items() if layer not in known}
        return {name: new[own] for name, own in match_names(self, new).items()}

    def _matching(self, model: nn.Module, caller: str) -> dict[str, BatchNorm]:
        """For each name here the layer of `model`, after all that could be wrong has been checked."""
        found = batch_norm_layers(model, caller=caller)
        end_interrupted_calls(found.values())
        layers = {name: found[own] for name, own in match_names(self, found).items()}
        for name, moments in self.items():
            if name not in layers:
                raise ValueError(f"{caller}: the model has no batch-norm layer {name!r}; were these another model's?")
            expected = len(get_running_buffers(layers[name])[0])
            if moments.mean.numel() != expected:
                raise ValueError(f"{caller}: layer {name!r} has {expected} channels, found {moments.mean.numel()}")
            if not (moments.mean.isfinite().all() and moments.var.isfinite().all() and (moments.var >= 0).all()):
                raise ValueError(f"{caller}: layer {name!r} has a NaN, infinite or negative value; nothing was written")
            for value, buffer in zip((moments.mean, moments.var), get_running_buffers(layers[name]), strict=True):
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

    def save(self, path: str | Path, about: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: `<layer>/mean`, `<layer>/var` in float64; counts and eps as metadata.

        Args:
            path: of the file; what was there is replaced in one step.
            about: what they are of, `{"run": "a1"}` say, as more metadata; keys other than layers, unseen, format
                and sha256.

        Raises:
            ValueError: `about` has one of these keys.
            OSError: the file cannot be written.
        """
        tensors = {f"{name}/{key}": getattr(m, key).clone() for name, m in self.items() for key in ("mean", "var")}
        layers = [[name, None if math.isnan(m.count) else m.count, self.eps[name]] for name, m in self.items()]
        save_tensors(path, tensors, _FORMAT, {"layers": json.dumps(layers), "unseen": json.dumps(self.unseen)}, about)

    @staticmethod
    def load(path: str | Path, about: Mapping[str, str] | None = None) -> Statistics:
        """Read what `save` wrote.

        Args:
            path: of the file.
            about: what they must be of, if the file says so: it may be a copy of another one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file of statistics, damaged, or about another thing.
        """
        tensors, metadata = load_tensors(path, _FORMAT, about=about)
        layers = json.loads(metadata["layers"])
        moments = {
            name: Moments(math.nan if count is None else count, tensors[f"{name}/mean"], tensors[f"{name}/var"])
            for name, count, _ in layers
        }
        return Statistics(moments, {name: eps for name, _, eps in layers}, json.loads(metadata["unseen"]))


def _are_rows(mean: object, var: object) -> bool:
    tensors = isinstance(mean, Tensor) and isinstance(var, Tensor)
    return tensors and mean.dim() == 1 and mean.shape == var.shape  # type: ignore[attr-defined]


def _check_writable(layers: Mapping[str, BatchNorm]) -> None:
    """ValueError if torch would not let the running buffers be written here."""
    locked = [name for name, layer in layers.items() if any(b.is_inference() for b in get_running_buffers(layer))]
    if locked and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"write_to: the running buffers of {join_names(locked)} were made in inference mode and can be written "
            "in it only; call write_to in torch.inference_mode(), or make the model outside of it; nothing was written"
        )


@torch.no_grad()
def write_buffers(layer: BatchNorm, moments: Moments) -> None:
    """Copy mean and variance as they are into a layer's running buffers, in place."""
    mean, var = get_running_buffers(layer)
    mean.copy_(moments.mean)
    var.copy_(moments.var)


def running_statistics(model: nn.Module) -> Statistics:
    """What the running buffers of `model` hold now, as is; counts are NaN.

    Raises:
        TypeError: not a module.
        ValueError: it has no batch-norm layer with running statistics, or another thread has borrowed one.
    """
    layers = batch_norm_layers(model, caller="running_statistics")
    check_not_lent(layers.values())
    end_interrupted_calls(layers.values())
    moments = {}
    for name, layer in layers.items():
        mean, var = (buffer.detach().to("cpu", copy=True).double() for buffer in get_running_buffers(layer))
        moments[name] = Moments(math.nan, mean, var)
    return Statistics(moments, {name: layer.eps for name, layer in layers.items()})


@contextlib.contextmanager
def using(model: nn.Module, statistics: Statistics) -> Iterator[nn.Module]:
    """Evaluate under `statistics`: the model is in eval mode with them inside the block, then as it was before.

    The model's own buffers are set aside, not overwritten, so that nothing can be lost. What was traced or exported
    from the model before holds these, and knows nothing of the block; so does what its own `eval` has computed from
    them, if it is in eval mode already. What forwards in the block keep in deques, arrays or objects of other kinds
    stays there.

    Raises:
        TypeError, ValueError: as `Statistics.write_to`, before anything is changed.

    Warns:
        RuntimeWarning: something has written the layers' buffers in the block: a forward in train mode,
            `load_state_dict`, `write_to`.
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"using: statistics is a {type(statistics).__name__}; pass bnlab.Statistics")
    layers, known = statistics._matching(model, "using"), {*model.modules()}
    with borrowed(model):
        statistics._lend_to(layers)  # its own `eval` may compute something under them
        with in_mode(model, training=False):
            layers |= statistics._find_new(model, known)
            statistics._lend_to(layers)
            lent = {name: torch.stack(get_running_buffers(layer)) for name, layer in layers.items()}
            yield model
            written = [name for name, layer in layers.items() if not _holds(layer, lent[name])]
    if written:
        warnings.warn(
            f"using: something has written the running buffers of {join_names(written)} in the block (a forward in "
            "train mode, load_state_dict or write_to?): what was evaluated then was not under the statistics, and what "
            "was written is gone; do that outside of the block",
            RuntimeWarning,
            stacklevel=3,
        )


def _holds(layer: BatchNorm, values: Tensor) -> bool:
    """Whether these are a layer's running mean and variance, whatever their type is now."""
    pairs = zip((layer.running_mean, layer.running_var), values, strict=True)
    return all(
        own is not None and own.shape == value.shape and torch.equal(own.to(value), value) for own, value in pairs
    )


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
