"""Batch-norm layers of a model: their names and buffers, and what they normalize."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all of torch's batch norms

from bnlab.model.batches import is_dense, require_values
from bnlab.model.warn import warn

# Norms of other classes are typed as torch's too; `get_weight` and its neighbours read what they may lack.
BatchNorm = _BatchNorm
# These normalize the input that they are given, and do nothing with buffers and momentum but average it.
TORCH_FORWARDS = (BatchNorm.forward, nn.SyncBatchNorm.forward)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_WRAPPERS = frozenset({"module", "_orig_mod"})  # what (Distributed)DataParallel and torch.compile put into names


class AveragesByItself(BatchNorm):
    """Batch norm that averages in another way than its momentum says, and shows the moments that it has averaged.

    Attributes:
        latest: mean and unbiased variance [C] of the latest batch; None if it was not averaged.
    """

    latest: tuple[Tensor, Tensor] | None


def require_module(model: object, caller: str) -> None:
    """Raise TypeError unless it is a module; `caller` is the public call that checks."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected a torch.nn.Module, found {type(model).__name__}")


def require_watchable(model: nn.Module, caller: str, takes_scripts: bool = False) -> None:
    """Raise TypeError unless it is a module, and ValueError if a part of it cannot be measured.

    There are no hooks in TorchScript and exported graphs, and of what FSDP has sharded no process has all weights. What
    `torch.jit.script` has made is taken with `takes_scripts`: its layers say their eps, which those of a trace do not.
    """
    require_module(model, caller)
    for name, module in model.named_modules():
        part = repr(name) if name else "the model"
        is_scripted = isinstance(module, torch.jit.ScriptModule) and (module is model or _has_running_averages(module))
        if is_scripted and not (takes_scripts and _says_eps(module)):
            raise ValueError(
                f"{caller}: {part} is TorchScript, whose layers cannot be watched; "
                "pass the model before torch.jit.script or trace"
            )
        if isinstance(module, GraphModule) and "train" in vars(module):  # by which torch.export refuses modes
            raise ValueError(
                f"{caller}: {part} was exported by torch.export, whose layers cannot be seen; pass the model itself"
            )
        if _is_sharded(module):
            raise ValueError(
                f"{caller}: {part} is sharded by FSDP, so that no process holds its weights; load its full state dict "
                "into a model without FSDP, and pass that"
            )


def _has_running_averages(module: nn.Module) -> bool:
    """Return whether a part has running averages; one without, such as a scripted activation, need not be watched."""
    return any(name.endswith(("running_mean", "running_var")) for name, _ in module.named_buffers())


def _says_eps(module: nn.Module) -> bool:
    """Return whether all parts that have running averages of their own have an eps as well."""
    norms = [part for part in module.modules() if "running_mean" in dict(part.named_buffers(recurse=False))]
    return all(is_batch_norm(norm) for norm in norms)


def _is_sharded(module: nn.Module) -> bool:
    # Of a module that nobody has imported there are no instances, and the import takes seconds.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule))


def batch_norm_layers(
    model: nn.Module, layers: Sequence[str] | None = None, *, caller: str, takes_scripts: bool = False
) -> dict[str, BatchNorm]:
    """Find the batch-norm layers with running statistics, by their name in `model.named_modules()`, in that order.

    Norms of other classes than torch's count, see `is_batch_norm`.

    Args:
        model: the model that is searched.
        layers: names to restrict to; None takes all.
        caller: the public call that searches, for the message.
        takes_scripts: whether layers in TorchScript are taken, on which there are no hooks.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no such layer, or one that cannot be watched or has no values.
    """
    require_watchable(model, caller, takes_scripts)
    known: dict[str, BatchNorm] = {}
    skipped: Counter[str] = Counter()
    # A layer with several names comes once, under the first of them.
    for name, module in model.named_modules():
        if is_batch_norm(module):
            require_values(get_running_buffers(module)[0], f"layer {name!r}", caller)
            known[name] = module
        elif isinstance(module, BatchNorm):
            skipped[f"{type(module).__name__} without running statistics"] += 1
        elif isinstance(module, _INSTANCE_NORMS) or _keeps_statistics(module):
            skipped[type(module).__name__] += 1

    if not known:
        message = f"{caller}: no BatchNorm layer with running statistics in {type(model).__name__}"
        if skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
            message += (
                f" ({kinds} skipped; only norms with running_mean and running_var of one length, and eps, are read)"
            )
        raise ValueError(message)

    if layers is None:
        return known
    return _select(known, layers, caller)


# Buffers in which norms of other libraries keep running statistics, such as stored_mean or moving_var.
_STATISTIC_NAME = re.compile(
    r"(running|moving|stored|ema).*(mean|avg|var|std)|(mean|avg|var|std).*(running|moving|ema)"
)


def warn_of_others(model: nn.Module, caller: str) -> None:
    """Warn of norms that are not measured: of other classes, without statistics, and in plain lists."""
    others = list_others(model)
    without = [
        name for name, module in model.named_modules() if isinstance(module, BatchNorm) and module.running_mean is None
    ]
    parts = []
    if others:
        parts.append(
            f"{join_names(others)} keep running statistics and are no batch norm of torch's, nor another norm with "
            "running_mean and running_var of one length, and eps"
        )
    if without:
        parts.append(f"{join_names(without)} are batch norms without running statistics")
    hidden = _find_hidden(model)
    if hidden:
        parts.append(
            f"{join_names(hidden)} hold batch norms in a plain list or dictionary, which belong in a ModuleList or "
            "ModuleDict"
        )
    if parts:
        warn(f"{caller}: {'; '.join(parts)}; they are not measured")


def list_others(model: nn.Module) -> list[str]:
    """List the modules that keep running statistics and are not measured; not constant ones, no instance norms."""
    return [name for name, module in model.named_modules() if _is_other(module) and not _is_constant(module)]


def list_instance_norms(model: nn.Module) -> list[str]:
    """List the instance norms that keep running statistics, which eval mode normalizes with, too."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _INSTANCE_NORMS) and module.running_mean is not None
    ]


def list_constant(model: nn.Module) -> list[str]:
    """List the norms of other classes whose statistics are constants, as torchvision's FrozenBatchNorm2d."""
    return [name for name, module in model.named_modules() if _is_other(module) and _is_constant(module)]


def _find_hidden(model: nn.Module) -> list[str]:
    """List plain lists, tuples and dictionaries that hold batch norms, which are no part of the model."""
    known = set(model.modules())
    hidden = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            # The submodules in `_modules` are part of the model already.
            if attribute != "_modules" and any(layer not in known for layer in _list_held(value)):
                hidden.append(f"{name}.{attribute}".lstrip("."))
    return hidden


def _list_held(value: Any) -> Iterator[BatchNorm]:
    """List the batch norms in a list, a tuple or a dictionary, and in what lies in it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return
    for part in value:
        if isinstance(part, nn.Module):
            yield from (layer for layer in part.modules() if isinstance(layer, BatchNorm))
        else:
            yield from _list_held(part)


def is_batch_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Return whether a module is a batch norm that keeps running statistics.

    That is torch's, or any other with `running_mean` and `running_var` of one length and `eps`, as InPlaceABN's is.
    Instance norms are none, nor norms whose statistics are constants.
    """
    if isinstance(module, BatchNorm):
        return module.running_mean is not None and module.running_var is not None
    if isinstance(module, _INSTANCE_NORMS) or _is_constant(module):
        return False

    buffers = dict(module.named_buffers(recurse=False))
    mean = buffers.get("running_mean")
    var = buffers.get("running_var")
    if mean is None or var is None or not isinstance(getattr(module, "eps", None), (float, int)):
        return False
    return mean.is_floating_point() and mean.dim() == 1 and mean.shape == var.shape


def _is_other(module: nn.Module) -> bool:
    is_known = isinstance(module, (BatchNorm, *_INSTANCE_NORMS)) or is_batch_norm(module)
    return not is_known and _keeps_statistics(module)


def _is_constant(module: nn.Module) -> bool:
    # The name has to do, because these classes belong to packages that need not be installed (torchvision, timm).
    return "Frozen" in type(module).__name__


def _keeps_statistics(module: nn.Module) -> bool:
    return any(_STATISTIC_NAME.search(name) for name, _ in module.named_buffers(recurse=False))


def _select(known: dict[str, BatchNorm], layers: Sequence[str], caller: str) -> dict[str, BatchNorm]:
    # A text is iterable, too, and each of its letters would be taken for a name.
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"{caller}: layers={layers!r}; pass a list of layer names")

    wanted = list(layers)
    if not wanted:
        raise ValueError(f"{caller}: layers is empty; name at least one, or pass None for all")
    for name in wanted:
        if not isinstance(name, str) or name not in known:
            raise ValueError(
                f"{caller}: layers has {name!r}, which is no BatchNorm layer with running statistics; "
                f"there are {join_names(known)}"
            )
    # The result has the model's order, whatever order the caller has named them in.
    return {name: layer for name, layer in known.items() if name in wanted}


def join_names(names: Iterable[str]) -> str:
    """Write the first six names, and how many there are beside them."""
    quoted = [repr(name) for name in names]
    text = ", ".join(quoted[:6])
    if len(quoted) > 6:
        text += f" and {len(quoted) - 6} more"
    return text


def strip_wrappers(name: str) -> str:
    """Remove from a layer's name what wrappers of models have put into it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts)


def match_names(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Find for each of `names` the one of `others` that is the same layer, as far as there is one.

    The same name is, if all are found by it; otherwise one that differs by wrappers only (`module.`, `_orig_mod.`).
    Names that are the same without their wrappers have no pair then.
    """
    wanted = list(names)
    known = list(others)
    # Exact names come first, because a model may have a part that is really called `module`. Where only some are found,
    # one of the models is wrapped, and such a part would be taken for another one.
    if {*wanted} <= {*known}:
        return {name: name for name in wanted}

    by_plain = _group_by_plain_name(known)
    pairs = {}
    for plain, same in _group_by_plain_name(wanted).items():
        found = by_plain.get(plain, [])
        if len(same) == len(found) == 1:
            pairs[same[0]] = found[0]
    return {name: pairs[name] for name in wanted if name in pairs}


def _group_by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(strip_wrappers(name), []).append(name)
    return groups


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel or DistributedDataParallel, on one device and without synchronization."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def get_running_buffers(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer that `batch_norm_layers` has returned."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None
    return mean, var


def count_channels(layer: BatchNorm) -> int:
    """Count the channels of a layer that `batch_norm_layers` has returned."""
    return len(get_running_buffers(layer)[0])


def get_weight(layer: BatchNorm) -> Tensor | None:
    """Return a layer's weight (γ) [C]; None without, or if a norm of another class has one of another shape."""
    return _get_parameter(layer, "weight")


def get_bias(layer: BatchNorm) -> Tensor | None:
    """Return a layer's bias (β) [C]; None without, or if a norm of another class has one of another shape."""
    return _get_parameter(layer, "bias")


def _get_parameter(layer: BatchNorm, name: str) -> Tensor | None:
    parameter = getattr(layer, name, None)
    is_of_channels = isinstance(parameter, Tensor) and parameter.shape == (count_channels(layer),)
    return parameter if is_of_channels else None


def get_momentum(layer: BatchNorm) -> float | None:
    """Return a layer's momentum; None where it averages all batches alike, or has none."""
    return getattr(layer, "momentum", None)


def get_batch_count(layer: BatchNorm) -> Tensor | None:
    """Return a layer's `num_batches_tracked`; None where it does not count its batches."""
    return getattr(layer, "num_batches_tracked", None)


def find_replaced_forward(layer: BatchNorm) -> Callable[..., Any] | None:
    """Find the forward that somebody has set on this very layer, in the place of its class's; None without.

    What `record` sets in its block has an attribute `replaced`: what was set there before. A copy that was made in the
    block has its class's forward there, which replaces nothing.
    """
    forward = vars(layer).get("forward")
    forward = getattr(forward, "replaced", forward)
    is_own = getattr(forward, "__self__", None) is layer and getattr(forward, "__func__", None) is type(layer).forward
    return None if is_own else forward


def get_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the input of a layer's call, from the arguments that its hooks get; None if there are none."""
    if args:
        return args[0]
    # In a call by keyword, as `norm(input=x)`, the first argument is the input, whatever a class calls it.
    return next(iter(kwargs.values()), None)


def require_input(name: str, layer: BatchNorm, x: Any, caller: str) -> None:
    """Raise ValueError unless `x` is [N, C, ...] of floating-point type with the layer's channels, and not empty."""
    channels = count_channels(layer)
    expected = f"{caller}: layer {name!r} expects {channels} channels"
    if not isinstance(x, Tensor):
        raise ValueError(f"{expected}, its input has type {type(x).__name__}")
    if not is_dense(x):
        kind = "nested" if x.is_nested else "sparse, or inside of vmap or grad of torch.func"
        raise ValueError(f"{caller}: the input of layer {name!r} is {kind}, where its values cannot be read")
    if x.dim() < 2 or x.shape[1] != channels:
        found = f"{expected}, its input has shape {tuple(x.shape)}"
        if overrides_forward(layer) and x.dim() >= 2 and channels > x.shape[1]:
            found += (
                "; if it keeps statistics of parts of a batch side by side, as some ghost batch norms do, none of them "
                "are those of its input: leave it out of layers="
            )
        raise ValueError(found)
    if not x.is_floating_point():
        raise ValueError(f"{caller}: the input of layer {name!r} is {x.dtype}; convert it to a floating-point type")


# -- what a layer normalizes -----------------------------------------------------------------------------------------


def select_input(
    name: str, layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], caller: str
) -> Tensor | None:
    """Select what a layer without a forward of its own normalizes in one call, [N, C, ...]; None if it gets no rows.

    Raises:
        ValueError: it is given something else than values of its channels.
    """
    x = get_input(args, kwargs)
    if isinstance(x, (list, tuple)):
        raise ValueError(
            f"{caller}: layer {name!r} ({type(layer).__name__}) is given a {type(x).__name__}: not covered"
        )
    if isinstance(x, Tensor) and x.numel() == 0:
        return None
    require_input(name, layer, x, caller)
    return x  # type: ignore[no-any-return]


def has_own_forward(layer: BatchNorm) -> bool:
    """Return whether a layer may normalize something else than its input, as its forward is not torch's or bnlab's."""
    if find_replaced_forward(layer) is not None:
        return True
    return overrides_forward(layer)


def overrides_forward(layer: BatchNorm) -> bool:
    """Return whether a layer's class has a forward that is neither torch's nor bnlab's."""
    kind = type(layer)
    return kind.forward not in TORCH_FORWARDS and not kind.__module__.startswith("bnlab.")
