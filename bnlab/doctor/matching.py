"""Match a model with a state dict whose names begin otherwise, that has more layers, or whose weights are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from bnlab.layers import join_names, strip_wrappers

_ORIGINAL = "_orig"  # what torch.nn.utils.prune adds to the name of a tensor, and to that of its mask
_MASK = "_mask"


def match_states(
    now: Mapping[str, Tensor], then: Mapping[str, Tensor], layers: Iterable[str], caller: str
) -> tuple[dict[str, Tensor], str]:
    """Match the plain state of a model with another plain state.

    Args:
        now: state of the model, as `simplify_state` returns it.
        then: the other one, simplified too.
        layers: plain names of the model's batch norms.
        caller: the public call, for the message.

    Returns:
        Tensors of the other state under the model's names, those of the same shape; and sentences on names that differ
        and on layers that are on one side alone, "" if there are none.

    Raises:
        ValueError: several parts of the other state may be this model.
    """
    prefix = _find_prefix(now, then, layers, caller)
    shared = _share(now, then, prefix)
    missing = _list_layers(name for name in now if name not in shared)
    taken = {prefix + name for name in shared}
    others = _list_layers(name for name in then if name not in taken)
    sentences = []
    if prefix:
        sentences.append(f"Names in before= begin with {prefix!r}.")
    if missing:
        sentences.append(f"Not in before=, or of another shape there: {join_names(missing)}.")
    if others:
        sentences.append(f"In before= alone, or of another shape there: {join_names(others)}.")
    return shared, " ".join(sentences)


def simplify_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take out of names what wrappers have added, and give pruned weights their mask and the name they had before."""
    plain = {strip_wrappers(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for mask in [name for name in plain if name.endswith(_MASK)]:
        name = mask.removesuffix(_MASK)
        if name + _ORIGINAL in plain:
            plain[name] = plain.pop(name + _ORIGINAL) * plain.pop(mask)
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
    prefixes = ["", *(name.removesuffix(means[0]) for name in then if name.endswith(f".{means[0]}"))]
    shared = {prefix: _share(now, then, prefix) for prefix in prefixes}
    counts = {prefix: len(tensors) for prefix, tensors in shared.items() if all(mean in tensors for mean in means)}
    if "" in counts or not counts:
        return ""

    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise ValueError(
            f"{caller}: before= has this model's layers under each of {join_names(best)}; pass a state dict of one"
        )
    return best[0]


def _share(now: Mapping[str, Tensor], then: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """List the tensors that both have, in the same shape, under a prefix in the other one."""
    others = {name: then[prefix + name] for name in now if prefix + name in then}
    return {name: other for name, other in others.items() if other.shape == now[name].shape}


def _list_layers(names: Iterable[str]) -> list[str]:
    """List the layers that have these tensors, each once; not counts of updates, which old checkpoints lack."""
    layers = [name.rpartition(".")[0] or name for name in names if not name.endswith("num_batches_tracked")]
    return list(dict.fromkeys(layers))
