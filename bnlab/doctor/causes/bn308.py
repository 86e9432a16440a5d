"""BN308: channels were removed that were not zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation

from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.history import name_tensor
from bnlab.doctor.undo import Apply, Undo
from bnlab.doctor.words import count_things
from bnlab.model.layers import get_bias, get_weight, strip_wrappers

_QUANTILES = 201  # of a normal distribution, over which an activation is averaged
# What these put out in a channel depends on the other channels too, and cannot be computed for it alone.
_ACROSS_CHANNELS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.MultiheadAttention)
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


class ChannelsRemoved(Cause):
    """A network from which channels were removed that were not 0: the next layer misses what they added.

    A channel of a small weight γ carries a constant, act(β), which the next convolution multiplies and adds to each of
    its outputs. With the network of before= the channels that are left are found by their values, the columns of the
    next weights that were removed with them are multiplied by the average of what they carried, and that is added
    again. Averages do not fit from the layer after the removed channels on, which is not where anything was done.

    It looks at plain convolutions and linear layers after a batch norm. Weights that were trained on since match none.
    """

    code = "BN308"
    title = "removed channels were not zero"
    meaning = "The removed channels added a constant to the next layer, which its averages, or its bias, rely on."
    remedy = (
        "Add that constant to the next layer's bias: its removed columns times act(β) of the removed channels. New "
        "averages do the same where a batch norm follows."
    )
    kind = "network"
    needs = ("data", "before")

    def propose(self, case: Case) -> Iterator[Undo]:
        if case.history is None or not case.history.resized:
            return
        removals = list(_list_removals(case, case.history.resized))
        if not removals:
            return
        channels = sum(removal.channels for removal in removals)
        places = ", ".join(removal.place for removal in removals[:3])
        if len(removals) > 3:
            places += f" and {len(removals) - 3} more"
        reported = f"{count_things(channels, 'channel')} removed in front of {places}, their constants added again"
        layers = tuple(removal.layer for removal in removals)
        yield Undo(reported, layers, 0, _add_constants(removals))


@dataclass(frozen=True)
class _Removal:
    """Channels that were removed between a batch norm and the next weights.

    Attributes:
        layer: the batch norm's name.
        place: the name of the module that had weights for them.
        module: that module.
        channels: how many were removed.
        columns: its weights for them, of the outputs that are left: [C, removed, ...]; of a linear layer summed over
            positions.
        carried: what they carried on average [removed].
    """

    layer: str
    place: str
    module: nn.Module
    channels: int
    columns: Tensor
    carried: Tensor


def _add_constants(removals: Sequence[_Removal]) -> Apply:
    """Undo by adding to the output of modules what channels that were removed in front of them carried."""

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for removal in removals:
            handle = removal.module.register_forward_hook(partial(_add, removal))
            stack.callback(handle.remove)

    return apply


def _add(removal: _Removal, module: Any, args: Any, output: Tensor) -> Tensor:
    columns = removal.columns.to(output)
    carried = removal.carried.to(output)
    convolve = _CONVOLUTIONS.get(type(module))
    if convolve is None:
        return output + columns @ carried
    # Padding is 0, so that at the borders less is added.
    sides = args[0].shape[2:]
    ones = [1] * len(sides)
    maps = carried.view(1, -1, *ones).expand(1, -1, *sides)
    return output + convolve(maps, columns, None, module.stride, module.padding, module.dilation)


def _list_removals(case: Case, earlier_state: Mapping[str, Tensor]) -> Iterator[_Removal]:
    """List what was removed after each batch norm that has fewer channels than before."""
    modules = _list_modules(case)
    names = list(modules)
    kept_by_layer = {name: _find_kept_channels(case, name, earlier_state) for name in case.layers}
    for name, kept_channels in kept_by_layer.items():
        if kept_channels is None:
            continue
        # The order in which the model lists its modules stands for that in which data passes them.
        later = names[names.index(name) + 1 :]
        place = next((other for other in later if _reads_channels(modules[other])), None)
        if place is None or not _is_plain(modules[place]):
            continue
        between = [modules[other] for other in later[: later.index(place)]]
        if not all(_acts_on_each_channel_alike(module) for module in between):
            continue

        # Outputs of that module may have been removed too. The next batch norm shows which of them are left.
        follower = next((other for other in later[later.index(place) :] if other in case.layers), None)
        kept_outputs = None if follower is None else kept_by_layer[follower]
        removed = _find_removed_weights(earlier_state, name, place, kept_channels, kept_outputs)
        # Without a next batch norm, outputs that were removed cannot be found, and their numbers differ.
        if removed is None or len(removed.columns) != len(modules[place].weight):  # type: ignore[arg-type]
            continue
        carried = _average_activation(earlier_state, name, between)[removed.is_removed]
        channels = int(removed.is_removed.sum())
        yield _Removal(name, place, modules[place], channels, removed.columns, carried)


def _list_modules(case: Case) -> dict[str, nn.Module]:
    """List leaves, and batch norms, which may have an activation inside, by name."""
    modules = {}
    for name, module in case.model.named_modules():
        is_leaf = not any(module.children())
        if is_leaf or name in case.layers:
            modules[name] = module
    return modules


def _reads_channels(module: nn.Module) -> bool:
    """Return whether a module has weights for the channels of its input."""
    # The weight of a PReLU is a slope: it is an activation.
    return hasattr(module, "weight") and not isinstance(module, nn.PReLU)


def _acts_on_each_channel_alike(module: nn.Module) -> bool:
    """Return whether what a module puts out in a channel follows from that channel alone, alike in all of them."""
    # A slope for each channel was cut with the channels, and is not known for those that are gone.
    has_slopes = isinstance(module, nn.PReLU) and module.weight.numel() > 1
    return not has_slopes and not isinstance(module, _ACROSS_CHANNELS)


def _is_plain(module: Any) -> bool:
    """Return whether a module is linear in all channels of its input, and pads with 0."""
    if isinstance(module, nn.Linear):
        return True
    return type(module) in _CONVOLUTIONS and module.groups == 1 and module.padding_mode == "zeros"


def _find_kept_channels(case: Case, name: str, earlier_state: Mapping[str, Tensor]) -> Tensor | None:
    """Find which channels of a batch norm are left, by its weights and biases; None where not all are found."""
    plain = strip_wrappers(name)
    weight = earlier_state.get(name_tensor(plain, "weight"))
    bias = earlier_state.get(name_tensor(plain, "bias"))
    weight_now = get_weight(case.layers[name])
    bias_now = get_bias(case.layers[name])
    if weight is None or bias is None or weight_now is None or bias_now is None:
        return None
    now = torch.stack((weight_now.detach(), bias_now.detach())).cpu()
    before = torch.stack((weight, bias)).cpu()
    # Bit for bit: removing channels copies the values of those that stay.
    is_same = (now[:, :, None] == before[:, None]).all(0)
    if not bool((is_same.sum(1) == 1).all()):  # also where two channels were alike
        return None
    return is_same.int().argmax(1)


class _RemovedWeights(NamedTuple):
    """The weights of a module for channels of its input that were removed.

    Attributes:
        is_removed: whether each channel was removed [C before].
        columns: the weights, of the outputs that are left [outputs, removed, ...].
    """

    is_removed: Tensor
    columns: Tensor


def _find_removed_weights(
    earlier_state: Mapping[str, Tensor], name: str, place: str, kept_channels: Tensor, kept_outputs: Tensor | None
) -> _RemovedWeights | None:
    """Find the weights that were removed; None where the earlier state has no such weights, or all channels are left.

    Args:
        earlier_state: tensors of the earlier network.
        name: of the batch norm.
        place: name of the module that had weights for its channels.
        kept_channels: numbers of the batch norm's channels that are left.
        kept_outputs: numbers of the module's outputs that are left; None for all.
    """
    weights = earlier_state.get(name_tensor(strip_wrappers(place), "weight"))
    channels = len(earlier_state[name_tensor(strip_wrappers(name), "weight")])
    if weights is None or weights.shape[1] % channels or len(kept_channels) == channels:
        return None
    weights = weights.cpu().double()
    if weights.dim() == 2:  # after nn.Flatten a channel has several columns
        weights = weights.unflatten(1, (channels, -1)).sum(2)

    is_removed = torch.ones(channels, dtype=torch.bool, device="cpu")
    is_removed[kept_channels] = False
    columns = weights[:, is_removed]
    if kept_outputs is not None:
        columns = columns[kept_outputs]
    return _RemovedWeights(is_removed, columns)


def _average_activation(earlier_state: Mapping[str, Tensor], name: str, between: Sequence[nn.Module]) -> Tensor:
    """Average what channels carry after the activation, if what is normalized is normally distributed: [C].

    Without an activation among the modules between them, as where it is a function, that is ReLU.
    """
    weight = earlier_state[name_tensor(strip_wrappers(name), "weight")].cpu().double()
    bias = earlier_state[name_tensor(strip_wrappers(name), "bias")].cpu().double()
    normal = NormalDist()
    levels = [normal.inv_cdf((number + 0.5) / _QUANTILES) for number in range(_QUANTILES)]
    # In steps of equal probability, so that their plain mean is the mean over the distribution.
    quantiles = torch.tensor(levels, device="cpu").double()
    values = bias + weight * quantiles[:, None]
    activations = [module for module in between if hasattr(activation, type(module).__name__)]
    for module in activations or [nn.ReLU()]:
        # The caller's module is left as it is, and may work in place.
        values = copy.deepcopy(module).cpu().double()(values.clone())
    return values.detach().mean(0)
