"""Statistics of a network as one value: read from buffers, saved, loaded into a model, compared."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnlab.common.files import digest
from bnlab.common.storage import load_tensors, save_tensors
from bnlab.model.batches import is_dense
from bnlab.model.borrow import OF_EVERY_MODULE, Loan, Reverted, list_switching
from bnlab.model.layers import (
    BatchNorm,
    batch_norm_layers,
    count_channels,
    get_batch_count,
    get_running_buffers,
    get_weight,
    match_names,
)
from bnlab.model.warn import warn
from bnlab.statistics.moments import Moments
from bnlab.statistics.provenance import Check, Cost

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "bnlab.Statistics/1"
_KIND = 8  # digits of a digest that say which types weights have
_DIGESTED = 1 << 16  # values of a parameter that are read for it


class Statistics(Mapping[str, Moments]):
    """Layer name (as in `model.named_modules()`) → `Moments`, with each layer's eps.

    Args:
        moments: the layers in order of depth.
        eps: each layer's own eps, by name.
        unseen: layers that were asked for, and that no data reached or that cannot be measured.
        weights: [C] by name, the size of each channel's weight (γ), as far as it is known; 1 for a layer without.

    Raises:
        TypeError: a value is no `Moments`.
        ValueError: there is no layer, one without eps, or one whose mean, var and weight are not of one length.

    Attributes:
        cost: what a measurement took, see `Cost`; None otherwise, and not saved.
        check: the outcome of an ordinary evaluation after it, see `Check`; None otherwise, and not saved.
        standard_errors: layer → (of the mean, of the variance), float64 [C], if a measurement was asked for them; None
            otherwise, and not saved.
        network: a digest of the weights under which they were measured; None where that is not known.

    `var` is always what `write_to` puts into the buffer, as is.

    >>> ones = torch.ones(3, dtype=torch.float64)
    >>> statistics = Statistics({"norm": Moments(64, mean=0 * ones, var=ones)}, eps={"norm": 1e-5})
    >>> statistics
    Statistics(1 layers; 3 channels)
    >>> statistics["norm"].var.tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        eps: Mapping[str, float],
        unseen: Iterable[str] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._moments = dict(moments)
        # Weights of other layers are ignored: `gap` selects some of the layers, and passes on the weights of all.
        self.weights: dict[str, Tensor] = {}
        for name, weight in (weights or {}).items():
            if name in self._moments:
                self.weights[name] = weight
        _require_layers(self._moments, eps, self.weights)
        self.eps = {name: float(eps[name]) for name in self._moments}
        self.unseen = tuple(unseen)
        self.cost: Cost | None = None
        self.check: Check | None = None
        self.standard_errors: dict[str, tuple[Tensor, Tensor]] | None = None
        self.network: str | None = None

    def __getitem__(self, layer: str) -> Moments:
        return self._moments[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        channels = sum(moments.mean.numel() for moments in self.values())
        parts = [f"{len(self)} layers", f"{channels} channels"]
        if self.cost is not None:
            parts.append(f"{self.cost.images:,} images")
        if self.unseen:
            parts.append("unseen: " + ", ".join(self.unseen))
        if self.check is not None:
            parts.append(str(self.check))
        return f"Statistics({'; '.join(parts)})"

    def write_to(self, model: nn.Module) -> None:
        """Copy mean and var as they are into the running buffers of `model`, in place; reading gives them back.

        Layers of the model that these statistics do not have keep theirs; `num_batches_tracked` stays. Names may
        differ by what wrappers add, `module.` and `_orig_mod.`.

        Warns:
            RuntimeWarning: they were measured under other weights; so do `using` and `Watch.exact`.

        Raises:
            TypeError: not a module.
            ValueError: a layer is missing in the model, has other channels, a value is not finite or beyond the type of
                the buffer, or a variance is negative; nothing is written then.
        """
        with torch.no_grad():
            for name, layer in self.find_layers(model, "write_to").items():
                moments = self[name]
                mean, var = get_running_buffers(layer)
                # Not through .data: a backward pass that has saved the old values raises.
                mean.copy_(moments.mean)
                var.copy_(moments.var)

    def find_layers(self, model: nn.Module, caller: str) -> dict[str, BatchNorm]:
        """Find the layer of `model` for each name here, and check that the values can be written into its buffers."""
        known = batch_norm_layers(model, caller=caller, takes_scripts=True)
        pairs = match_names(self, known)
        layers = {name: known[other] for name, other in pairs.items()}

        # All layers are checked before any is written, so that a mistake leaves the model as it was.
        for name, moments in self.items():
            if name not in layers:
                raise ValueError(f"{caller}: the model has no batch-norm layer {name!r}; were these another model's?")
            _require_writable(moments, layers[name], name, caller)
        # A copy in another type has its own values.
        of_model = digest_weights(model)
        if self.network is not None and self.network != of_model and self.network[:_KIND] == of_model[:_KIND]:
            warn(f"{caller}: these statistics were measured under other weights than the model has now; measure again")
        return layers

    def to_frame(self) -> pd.DataFrame:
        """Make a table of a row for each layer and channel: layer, depth (from 1), channel, count, mean, var, eps."""
        channels = {name: moments.mean.numel() for name, moments in self.items()}
        counts = {name: float(moments.count) for name, moments in self.items()}
        means = torch.cat([moments.mean for moments in self.values()])
        variances = torch.cat([moments.var for moments in self.values()])

        frame = make_channel_frame(channels).drop(columns="channels")
        return frame.assign(
            count=frame["layer"].map(counts),
            mean=means.numpy(),
            var=variances.numpy(),
            eps=frame["layer"].map(self.eps),
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `<layer>/mean`, `/var` and `/weight` in float64; counts and eps as metadata.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {}
        layers = []
        for name, moments in self.items():
            tensors[f"{name}/mean"] = moments.mean
            tensors[f"{name}/var"] = moments.var
            count = None if math.isnan(moments.count) else moments.count  # JSON has no NaN
            # This is a list, because a safetensors file does not keep the order of its tensors.
            layers.append([name, count, self.eps[name]])
        for name, weight in self.weights.items():
            tensors[f"{name}/weight"] = weight

        # A count may be a NumPy number, which JSON cannot write without `default`.
        metadata = {"layers": json.dumps(layers, default=float), "unseen": json.dumps(self.unseen)}
        if self.network is not None:
            metadata["network"] = self.network
        save_tensors(path, tensors, _FORMAT, metadata)

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file of statistics, or damaged.
        """
        tensors, metadata = load_tensors(path, _FORMAT)
        moments = {}
        eps = {}
        weights = {}
        for name, saved_count, layer_eps in json.loads(metadata["layers"]):
            count = math.nan if saved_count is None else saved_count
            moments[name] = Moments(count, tensors[f"{name}/mean"], tensors[f"{name}/var"])
            eps[name] = layer_eps
            if f"{name}/weight" in tensors:
                weights[name] = tensors[f"{name}/weight"]

        unseen = json.loads(metadata["unseen"])
        statistics = Statistics(moments, eps, unseen, weights)
        statistics.network = metadata.get("network")
        return statistics


def digest_weights(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> str:
    """Digest a network's first and last parameter, which almost any update changes; it begins with their types.

    Args:
        model: the network.
        state: a state of it, whose values are digested in place of those that it has.
    """
    # Modules with a `train` of their own, such as LoRA's, have other weights in each mode.
    switching = {part for module in list_switching(model) for part in module.modules()}
    plain = [(prefix, module) for prefix, module in model.named_modules() if module not in switching]
    named = [pair for prefix, module in plain for pair in module.named_parameters(prefix, recurse=False)]
    parameters = [parameter if state is None else state.get(name, parameter) for name, parameter in named]
    parameters = [parameter for parameter in parameters if is_dense(parameter) and not parameter.is_meta]
    ends = parameters[:1] + parameters[-1:]
    types = digest(*(str(parameter.dtype) for parameter in ends), digits=_KIND)
    # An embedding may have a thousand times as many values.
    read = [parameter.detach().resolve_conj().flatten()[:_DIGESTED].cpu().contiguous() for parameter in ends]
    return types + digest(*(values.view(torch.uint8).numpy().tobytes() for values in read), digits=32)


def _require_layers(moments: Mapping[str, Moments], eps: Mapping[str, float], weights: Mapping[str, Tensor]) -> None:
    if not moments:
        raise ValueError("Statistics: no layers; pass moments of at least one")
    for name, value in moments.items():
        if not isinstance(value, Moments):
            raise TypeError(f"Statistics: layer {name!r} has a {type(value).__name__}; pass Moments")
        are_tensors = isinstance(value.mean, Tensor) and isinstance(value.var, Tensor)
        if not are_tensors or value.mean.dim() != 1 or value.mean.shape != value.var.shape:
            raise ValueError(f"Statistics: mean and var of layer {name!r} are no tensors of one length [C]")
        if name not in eps:
            raise ValueError(f"Statistics: layer {name!r} has no eps; pass that of the layer")
        if name in weights and weights[name].shape != value.mean.shape:
            raise ValueError(f"Statistics: layer {name!r} has a weight of other channels than its mean")


def _require_writable(moments: Moments, layer: BatchNorm, name: str, caller: str) -> None:
    """Raise ValueError unless a layer's buffers can take these values: channels, finite, not negative, in range."""
    mean, var = get_running_buffers(layer)
    if len(moments.mean) != len(mean):
        raise ValueError(f"{caller}: layer {name!r} has {len(mean)} channels, these statistics {len(moments.mean)}")

    is_finite = moments.mean.isfinite().all() and moments.var.isfinite().all()
    if not (is_finite and (moments.var >= 0).all()):
        raise ValueError(f"{caller}: layer {name!r} has a NaN, infinite or negative value; nothing was written")

    for value, buffer in ((moments.mean, mean), (moments.var, var)):
        if value.abs().max() > torch.finfo(buffer.dtype).max:
            raise ValueError(
                f"{caller}: layer {name!r} has a value beyond {buffer.dtype}, its buffers' type; keep batch norm in "
                "float32 (nothing was written)"
            )


def make_channel_frame(channels: Mapping[str, int]) -> pd.DataFrame:
    """Make a table of a row for each channel: layer, depth (from 1), channels (of the layer), channel (from 0).

    Args:
        channels: the number of channels of each layer, by name.
    """
    # pandas is imported only where a table is made: most calls need none, and the import takes long.
    import pandas as pd

    rows = []
    for depth, (name, size) in enumerate(channels.items(), start=1):
        rows += [(name, depth, size, channel) for channel in range(size)]
    return pd.DataFrame(rows, columns=["layer", "depth", "channels", "channel"])


def write_buffers(layer: BatchNorm, moments: Moments) -> None:
    """Copy mean and variance as they are into a layer's running buffers, in place."""
    mean, var = get_running_buffers(layer)
    # .data: a backward pass still to come may have saved the buffers.
    mean.data.copy_(moments.mean)
    var.data.copy_(moments.var)


def running_statistics(model: nn.Module) -> Statistics:
    """Read what the running buffers of `model` hold now, as is; counts are NaN.

    Raises:
        TypeError: not a module.
        ValueError: it has no batch-norm layer with running statistics.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> output = model(torch.tensor([[1.0], [3.0]]))  # mean 2, of which a momentum of 0.1 takes a tenth
    >>> round(running_statistics(model)["0"].mean.item(), 4)
    0.2
    """
    layers = batch_norm_layers(model, caller="running_statistics")
    moments = {}
    eps = {}
    for name, layer in layers.items():
        # In this order, because MPS has no float64.
        mean, var = read_buffers(layer).cpu().double()
        moments[name] = Moments(math.nan, mean, var)
        eps[name] = layer.eps
    return Statistics(moments, eps, weights=read_weights(layers))


def read_weights(layers: Mapping[str, BatchNorm]) -> dict[str, Tensor]:
    """Read the size of each channel's weight, float64 [C] on the CPU; 1 for a layer without weights."""
    weights = {}
    for name, layer in layers.items():
        weight = get_weight(layer)
        if weight is None:
            weight = torch.ones(count_channels(layer))
        weights[name] = weight.detach().abs().cpu().double()
    return weights


def read_buffers(layer: BatchNorm) -> Tensor:
    """Copy a layer's running mean and variance: [2, C]."""
    layer.state_dict()  # for which self-tuned layers bring their buffers up to date
    return torch.stack(get_running_buffers(layer)).detach()


class Lending(Reverted):
    """A block in which a model has other statistics; then its running averages are as they were, whatever was written.

    Args:
        model: the model.
        statistics: of layers that it has.
        caller: the public call.

    Raises:
        ValueError: as `Statistics.write_to`.
    """

    def __init__(self, model: nn.Module, statistics: Statistics, caller: str) -> None:
        self._statistics = statistics
        self._layers = statistics.find_layers(model, caller)

    def note(self) -> None:
        """Note the running averages."""
        self._values: list[tuple[BatchNorm, list[Tensor]]] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for layer in self._layers.values():
            read_buffers(layer)  # self-tuned layers write what is pending, and may end their averages
            own = vars(layer)
            # They begin new averages once something else has written their buffers, as here.
            self._attributes.append((own, {name: own[name] for name in own.keys() - OF_EVERY_MODULE}))
            self._values.append((layer, [buffer.clone() for buffer in _list_averages(layer)]))

    def change(self) -> None:
        """Write the statistics."""
        for name, layer in self._layers.items():
            write_buffers(layer, self._statistics[name])

    def give_back(self) -> None:
        """Write what was there."""
        # Into what the layers have now: a model that is moved, or cast, gets other tensors.
        for layer, values in self._values:
            for buffer, value in zip(_list_averages(layer), values, strict=True):
                buffer.data.copy_(value)  # .data: a backward pass still to come may have saved the buffer
        for own, before in self._attributes:
            own.update(before)


def _list_averages(layer: BatchNorm) -> list[Tensor]:
    count = get_batch_count(layer)  # forwards in train mode count batches
    return [*get_running_buffers(layer), *([] if count is None else [count])]


def using(model: nn.Module, statistics: Statistics) -> contextlib.AbstractContextManager[nn.Module]:
    """Evaluate under `statistics`: the model is in eval mode with them inside the block, then as it was before.

    The random state is restored as well: what is drawn in the block is drawn again after it. What is written into the
    model's buffers in the block (by `load_state_dict`, say) is gone after it.

    Raises:
        TypeError, ValueError: as `Statistics.write_to`, before anything is changed.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0))
    >>> statistics = Statistics({"0": Moments(2, torch.tensor([2.0]), torch.tensor([4.0]))}, eps={"0": 0.0})
    >>> with using(model, statistics):
    ...     model(torch.tensor([[6.0]])).item()
    2.0
    >>> model[0].running_mean.item()
    0.0
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"using: statistics is a {type(statistics).__name__}; pass bnlab.Statistics")

    return _Using(model, statistics)


class _Using(Loan):
    def __init__(self, model: nn.Module, statistics: Statistics) -> None:
        self._layers = statistics.find_layers(model, "using")  # raises before anything is changed
        super().__init__(model, False, is_counted=True)
        self.lent = model
        self._statistics = statistics

    def change(self) -> None:
        super().change()
        for name, layer in self._layers.items():
            # Clones: the graphs of the block save these, and not the model's own tensors, which come back. A layer in
            # TorchScript would keep the clones.
            if not isinstance(layer, torch.jit.ScriptModule):
                mean, var = get_running_buffers(layer)
                layer.running_mean = mean.clone()
                layer.running_var = var.clone()
            write_buffers(layer, self._statistics[name])
