"""Match a model with a state dict whose names begin otherwise, that has more layers, or whose weights are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bnlab.layers import join_names, strip_wrappers

_ORIGINAL = "_orig"  # what torch.nn.utils.prune adds to the name of a tensor, and to that of its mask
_MASK = "_mask"


@dataclass(frozen=True)
class Match:
    """What a model and a state dict have in common.

    Attributes:
        tensors: of the state dict, under the model's names; those of the same shape.
        prefix: what names of the state dict have in front of the model's, such as "backbone."; "" if nothing.
        missing: layers of the model that the state dict does not have, or not of the same shape.
        others: layers of the state dict that the model does not have, or not of the same shape.
    """

    tensors: Mapping[str, Tensor]
    prefix: str
    missing: tuple[str, ...]
    others: tuple[str, ...]


def match_states(now: Mapping[str, Tensor], then: Mapping[str, Tensor], layers: Iterable[str], caller: str) -> Match:
    """Match the plain state of a model with another plain state.

    Args:
        now: state of the model, as `simplify_state` returns it.
        then: the other one, simplified too.
        layers: plain names of the model's batch norms.
        caller: the public call, for the message.

    Raises:
        ValueError: several parts of the other state may be this model.
    """
    prefix = _find_prefix(now, then, layers, caller)
    shared = {name: then[prefix + name] for name in now if _is_same_shape(name, now, prefix, then)}
    missing = [name for name in now if name not in shared]
    taken = {prefix + name for name in shared}
    others = [name for name in then if name not in taken]
    return Match(shared, prefix, _list_layers(missing), _list_layers(others))


def simplify_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take out of names what wrappers have added, and give pruned weights their mask and the name they had before."""
    plain = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            plain[strip_wrappers(name)] = value

    masks = [name for name in plain if name.endswith(_MASK)]
    for mask in masks:
        name = mask.removesuffix(_MASK)
        original = name + _ORIGINAL
        if original in plain:
            plain[name] = plain.pop(original) * plain.pop(mask)
    return plain


def simplify_name(name: str, state: Mapping[str, Tensor]) -> str:
    """Find the name that `simplify_state` gives a parameter."""
    plain = strip_wrappers(name)
    return plain if plain in state else plain.removesuffix(_ORIGINAL)


def name_tensor(layer: str, tensor: str) -> str:
    """Name a tensor of a layer as a state dict does; the model's own name is ""."""
    return f"{layer}.{tensor}" if layer else tensor


def _find_prefix(now: Mapping[str, Tensor], then: Mapping[str, Tensor], layers: Iterable[str], caller: str) -> str:
    """Find the prefix under which all batch norms of the model are; "" where there is none."""
    means = [name_tensor(layer, "running_mean") for layer in layers]
    ending = f".{means[0]}"
    prefixes = [name.removesuffix(means[0]) for name in then if name.endswith(ending)]
    complete = []
    for prefix in ("", *prefixes):
        if all(_is_same_shape(mean, now, prefix, then) for mean in means):
            complete.append(prefix)
    if "" in complete or not complete:
        return ""

    counts = {prefix: sum(_is_same_shape(name, now, prefix, then) for name in now) for prefix in complete}
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    if len(best) > 1:
        raise ValueError(
            f"{caller}: before= has this model's layers under each of {join_names(best)}; pass a state dict of one"
        )
    return best[0]


def _is_same_shape(name: str, now: Mapping[str, Tensor], prefix: str, then: Mapping[str, Tensor]) -> bool:
    other = then.get(prefix + name)
    return other is not None and other.shape == now[name].shape


def _list_layers(names: Iterable[str]) -> tuple[str, ...]:
    """List the layers that have these tensors, each once; not counts of updates, which old checkpoints lack."""
    layers = [name.rpartition(".")[0] or name for name in names if not name.endswith("num_batches_tracked")]
    return tuple(dict.fromkeys(layers))
