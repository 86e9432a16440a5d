"""What an earlier checkpoint tells: which buffers, counts and weights have changed since."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bnlab.model.layers import BatchNorm, get_batch_count, join_names, strip_wrappers
from bnlab.model.warn import warn
from bnlab.statistics.network import read_buffers

_ORIGINAL = "_orig"  # what torch.nn.utils.prune adds to the name of a tensor, and to that of its mask
_INNER = ("state_dict", "model_state_dict", "model")  # what trainers call the weights in a checkpoint
_MASK = "_mask"


@dataclass(frozen=True)
class LayerChange:
    """What has happened to a layer's buffers since the earlier checkpoint.

    Attributes:
        buffers: [2, C], running mean and variance then.
        is_same: whether today's are equal to them, bit for bit.
        updates: by how much `num_batches_tracked` has grown; None where one side has none.
    """

    buffers: Tensor
    is_same: bool
    updates: int | None


@dataclass(frozen=True)
class Changes:
    """Changes since an earlier checkpoint.

    Attributes:
        layers: by name; layers that it does not have are not there.
        moved: earlier values of the parameters that differ, by name.
        distance: relative change of the parameters with two or more axes, ‖now − then‖ / ‖then‖.
        parameters: number of parameters that both have.
        added: names of parameters that the earlier checkpoint has not, as those of adapters.
        unmatched: sentences on layers that one of both lacks, and on names that differ; "" if nothing is special.
        resized: earlier tensors by plain name, if layers have other shapes now: those of all layers.
    """

    layers: Mapping[str, LayerChange]
    moved: Mapping[str, Tensor]
    distance: float
    parameters: int
    added: tuple[str, ...] = ()
    unmatched: str = ""
    resized: Mapping[str, Tensor] = field(default_factory=dict)


def read_state(source: Any, caller: str) -> Mapping[str, Any]:
    """Read a state dict: of a module, itself, or from a file (safetensors, or torch's with `weights_only=True`).

    Raises:
        TypeError: it is none of these.
        ValueError: the file cannot be read.
    """
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, (str, Path)):
        return read_state_file(Path(source), caller)
    if isinstance(source, Mapping):
        return _unwrap(source, caller)
    raise TypeError(f"{caller} is a {type(source).__name__}; pass a module, a state dict, or a file of one")


_OF_TORCH = (b"PK", b"\x80")  # with which zip archives and pickles begin


def _read_beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def read_state_file(path: Path, caller: str) -> Mapping[str, Any]:
    """Read a file of weights; nothing in it is run."""
    if not path.is_file():
        raise ValueError(f"{caller} {path}: no such file")
    begins = _read_beginning(path)
    is_safe = path.suffix == ".safetensors" or begins[8:10] == b'{"'
    if not is_safe and not begins.startswith(_OF_TORCH):
        shown = begins[:24].decode("utf-8", "backslashreplace").partition("\n")[0]
        raise ValueError(
            f"{caller} {path}: is no checkpoint (it begins with {shown!r}); pass safetensors or a state dict"
        )
    if begins.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ValueError(f"{caller} {path}: cannot be read (an archive without its end); copy or save it again")
    try:
        with warnings.catch_warnings():  # torch's, of other formats, would stand beside the error
            warnings.simplefilter("ignore")
            state = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise what they like
        if "weights_only" in str(error):  # torch advises to turn it off, which would run what the file says
            raise ValueError(
                f"{caller} {path}: holds Python objects, which can run code when they are loaded, and is not read; "
                "save model.state_dict() alone, or safetensors"
            ) from None
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{caller} {path}: cannot be read ({reason}); pass safetensors or a state dict") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{caller} {path}: holds a {type(state).__name__}; pass safetensors or a state dict")
    return _unwrap(state, f"{caller} {path}")


def _unwrap(state: Mapping[str, Any], caller: str) -> Mapping[str, Any]:
    """Return the state dict inside of what trainers save; warn where others lie beside it, such as averaged weights."""
    inner = next((key for key in _INNER if isinstance(state.get(key), Mapping)), None)
    if inner is None:
        return state
    names = _name_tensors(state[inner])
    # Trainers also save generators, and weights of classes. Averages may have further parts in their names.
    endings = tuple(f".{name}" for name in names)
    others = [
        key
        for key, value in state.items()
        if key != inner and any(name in names or name.endswith(endings) for name in _name_tensors(value))
    ]
    if others:
        warn(
            f"{caller}: holds weights as {inner!r} and as {', '.join(map(repr, others))}; those of {inner!r} are read. "
            "If it is others that you evaluate, save them to a file of their own."
        )
    return state[inner]


def _name_tensors(value: Any) -> set[str]:
    """Name the tensors that a mapping holds, without wrappers."""
    if not isinstance(value, Mapping):
        return set()
    return {strip_wrappers(str(name)) for name, each in value.items() if isinstance(each, Tensor)}


def compare_with(model: nn.Module, layers: Mapping[str, BatchNorm], before: Mapping[str, Any], caller: str) -> Changes:
    """Compare a model with an earlier state of it, or of a network that contains it; see `match_states`.

    Raises:
        ValueError: no layer's buffers are in that state, or several parts of it may be the model.
    """
    now = simplify_state(model.state_dict())
    plain = simplify_state(before)
    then, unmatched = match_states(now, plain, map(strip_wrappers, layers), caller)
    resized = _find_resized(now, plain, map(strip_wrappers, layers))
    compared = {name: _compare_buffers(strip_wrappers(name), layer, then) for name, layer in layers.items()}
    changes = {name: change for name, change in compared.items() if change is not None}
    # Once channels were removed no shape may agree; `resized` then holds what is left to compare.
    if not changes and not resized:
        raise ValueError(f"{caller}: before= has no running statistics of this model's layers; is it another model's?")

    # Parameters are reported under the model's names, and compared under those without wrappers and masks.
    names = {name: simplify_name(name, now) for name, _ in model.named_parameters()}
    pairs = {name: (now[other].detach(), then[other].detach()) for name, other in names.items() if other in then}
    added = tuple(name for name in names if name not in pairs)
    moved = {}
    square = 0.0
    square_then = 0.0
    for name, (value_now, value_then) in pairs.items():
        value = value_now.cpu()
        earlier = value_then.cpu()
        # A model of half precision holds what its checkpoint was rounded to.
        if not _are_equal(value, earlier.to(value.dtype)):
            moved[name] = earlier
        if value.dim() > 1:
            # Where both are NaN nothing has moved.
            square += float((value.double() - earlier.double()).square().nansum())
            square_then += float(earlier.double().square().nansum())
    distance = math.sqrt(square / square_then) if square_then else 0.0
    return Changes(changes, moved, distance, len(pairs), added, unmatched, resized)


def _find_resized(now: Mapping[str, Tensor], then: Mapping[str, Tensor], layers: Iterable[str]) -> Mapping[str, Tensor]:
    """Return the earlier state if channels were removed from a layer since: it has the same name, and fewer now."""
    for layer in layers:
        name = name_tensor(layer, "running_mean")
        if name in then and len(then[name]) > len(now[name]):
            return then
    return {}


def find_other_eps(layers: Mapping[str, BatchNorm], before: Any) -> dict[str, float]:
    """Find the eps of layers that is another one in an earlier module; a state dict does not hold it."""
    if not isinstance(before, nn.Module):
        return {}
    then = {
        strip_wrappers(name): module.eps for name, module in before.named_modules() if isinstance(module, BatchNorm)
    }
    pairs = {name: then.get(strip_wrappers(name), layer.eps) for name, layer in layers.items()}
    return {name: eps for name, eps in pairs.items() if eps != layers[name].eps}


def _compare_buffers(name: str, layer: BatchNorm, before: Mapping[str, Tensor]) -> LayerChange | None:
    mean = before.get(name_tensor(name, "running_mean"))
    var = before.get(name_tensor(name, "running_var"))
    if mean is None or var is None:
        return None

    now = read_buffers(layer).cpu()
    # In the type of the model's buffers, which a checkpoint of half precision was loaded into.
    then = torch.stack((mean.detach(), var.detach())).to(now)
    count = before.get(name_tensor(name, "num_batches_tracked"))
    count_now = get_batch_count(layer)
    updates = None if count is None or count_now is None else int(count_now) - int(count)
    return LayerChange(then, torch.equal(now, then), updates)


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
    prefix = _find_prefix(then, layers, caller)
    others = {name: then[prefix + name] for name in now if prefix + name in then}
    shared = {name: other for name, other in others.items() if other.shape == now[name].shape}
    # Tensors of unlike shapes cannot be compared, so that they are reported on both sides.
    missing = _list_layers(name for name in now if name not in shared)
    taken = {prefix + name for name in shared}
    alone = _list_layers(name for name in then if name not in taken)
    sentences = []
    if prefix:
        sentences.append(f"Names in before= begin with {prefix!r}.")
    if missing:
        sentences.append(f"Not in before=, or of another shape there: {join_names(missing)}.")
    if alone:
        sentences.append(f"In before= alone, or of another shape there: {join_names(alone)}.")
    return shared, " ".join(sentences)


def simplify_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take out of names what wrappers have added, and give pruned weights their mask and the name they had before."""
    plain = {strip_wrappers(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for mask in [name for name in plain if name.endswith(_MASK)]:
        name = mask.removesuffix(_MASK)
        # torch.nn.utils.prune keeps the unpruned weight and a mask; the layer uses their product.
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


def _find_prefix(then: Mapping[str, Tensor], layers: Iterable[str], caller: str) -> str:
    """Find the prefix under which all batch norms of the model are; "" where there is none."""
    means = [name_tensor(layer, "running_mean") for layer in layers]
    first = means[0]
    ending = [name for name in then if name == first or name.endswith(f".{first}")]
    prefixes = [name.removesuffix(first) for name in ending]
    complete = [prefix for prefix in prefixes if all(prefix + mean in then for mean in means)]
    # The model's names as they are come first, even if the state has the same layers under a prefix, too.
    if "" in complete or not complete:
        return ""
    if len(complete) > 1:
        raise ValueError(
            f"{caller}: before= has this model's layers under each of {join_names(complete)}; pass a state dict of one"
        )
    return complete[0]


def _list_layers(names: Iterable[str]) -> list[str]:
    """List the layers that have these tensors, each once; not counts of updates, which old checkpoints lack."""
    layers = [name.rpartition(".")[0] or name for name in names if not name.endswith("num_batches_tracked")]
    return list(dict.fromkeys(layers))


def _are_equal(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values; where both are NaN they are equal."""
    # The quick comparison first: it is enough wherever nothing is NaN.
    return torch.equal(tensor, other) or torch.allclose(tensor, other, rtol=0.0, atol=0.0, equal_nan=True)
