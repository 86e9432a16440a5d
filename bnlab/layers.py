"""The batch-norm layers of a model: their names, inputs and buffers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

BatchNorm = _BatchNorm  # BatchNorm1d/2d/3d, SyncBatchNorm, the lazy ones once built, and subclasses (timm's)
# They normalize the input that they are given, and do nothing else with buffers and momentum than to average it.
TORCH_FORWARDS = (BatchNorm.forward, nn.SyncBatchNorm.forward)
# What modules of other libraries, and people's own, call their running statistics.
_AVERAGED = {"running", "moving", "mov", "ema", "pop", "population", "stored", "avg", "average"}
_MOMENTS = {"mean", "mu", "var", "variance", "std", "sigma"}


def has_own_forward(layer: BatchNorm) -> bool:
    """Whether code that is not torch's computes its output."""
    return type(layer).forward not in TORCH_FORWARDS or "forward" in vars(layer)


def check_module(model: nn.Module, caller: str) -> None:
    """TypeError unless it is a module; `caller` is the public call on whose behalf this is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected a torch.nn.Module, found {type(model).__name__}")


def batch_norm_layers(model: nn.Module, layers: Sequence[str] | None = None, *, caller: str) -> dict[str, BatchNorm]:
    """The batch-norm layers with running statistics, by their name in `model.named_modules()`, in that order.

    Args:
        layers: names to restrict to; None takes all.
        caller: the public call on whose behalf this is, for the message.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no such layer, a name in `layers` is not one, a lazy layer has not been built, a layer is
            on the meta device, or a part of the model with batch norm is scripted (hooks do not run there).
    """
    check_module(model, caller)
    found: dict[str, BatchNorm] = {}
    skipped: Counter[str] = Counter()
    for name, module in model.named_modules():
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(f"{caller}: layer {name!r} is lazy and not built yet; run one forward pass first")
        if isinstance(module, torch.jit.ScriptModule) and _cannot_be_watched(module):
            raise ValueError(
                f"{caller}: {repr(name) if name else 'the model'} is TorchScript, whose layers cannot be watched; "
                "pass the model before torch.jit.script or trace"
            )
        if isinstance(module, _InstanceNorm):
            skipped[type(module).__name__] += 1
        elif isinstance(module, BatchNorm):
            if module.running_mean is None:
                skipped[f"{type(module).__name__} without running statistics"] += 1
            elif module.running_mean.is_meta:
                raise ValueError(
                    f"{caller}: layer {name!r} is on the meta device, which holds no values; "
                    "use model.to_empty and load its weights first"
                )
            else:
                found[name] = module
    if not found:
        for lookalike in find_lookalikes(model).values():
            skipped[f"{lookalike.kind}, no subclass of torch's batch norm,"] += 1
        note = ", ".join(f"{n} {kind}" for kind, n in skipped.items())
        raise ValueError(
            f"{caller}: no BatchNorm layer with running statistics in {type(model).__name__}"
            + (f" ({note} skipped)" if note else "")
        )
    return found if layers is None else _select(found, layers, caller)


class Lookalike(NamedTuple):
    """A module that keeps running statistics and is no batch or instance norm of torch's: it can be named, no more.

    Attributes:
        kept: its statistics.
        kind: its class.
    """

    kept: list[Tensor]
    kind: str

    @property
    def frozen(self) -> bool:
        """Whether its class says that all is constant, as those of detection models do ("FrozenBatchNorm2d")."""
        return "frozen" in self.kind.lower() and "unfrozen" not in self.kind.lower()


def find_lookalikes(model: nn.Module) -> dict[str, Lookalike]:
    """Those in a model, by name; single numbers, as of a meter, are no statistics of channels.

    What torch's layers keep and others hold too (a wrapper of one, say) is left out.
    """
    norms = [module for module in model.modules() if isinstance(module, (BatchNorm, _InstanceNorm))]
    known = {id(tensor) for norm in norms for tensor in norm._buffers.values()}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (BatchNorm, _InstanceNorm)):
            continue
        own = {**vars(module), **vars(module).get("_buffers", {}), **vars(module).get("_parameters", {})}
        tensors = {key: value for key, value in own.items() if issubclass(type(value), Tensor) and value.dim()}
        kept = [tensor for key, tensor in tensors.items() if _is_averaged(key)]
        if not all(id(tensor) in known for tensor in kept):
            found[name or "(the model)"] = Lookalike(kept, type(module).__name__)
    return found


def _is_averaged(key: str) -> bool:
    """Whether an attribute's name has a word for a mean or a variance, and another that says that it is averaged."""
    words = key.lower().split("_")
    return any(word in _MOMENTS and _AVERAGED & {*words[:i], *words[i + 1 :]} for i, word in enumerate(words))


def _cannot_be_watched(module: torch.jit.ScriptModule) -> bool:
    """Whether it has batch norm, or is traced or frozen: what keeps its state is not the module then."""
    if "_buffers" not in vars(module) or not hasattr(module, "training"):
        return True
    if any(name.endswith("running_mean") for name, _ in module.named_buffers()):
        return True
    return hasattr(module, "graph") and "aten::batch_norm" in str(module.inlined_graph)


_WRAPPERS = frozenset({"module", "_orig_mod"})  # what (Distributed)DataParallel and torch.compile put into names


def strip_wrappers(name: str) -> str:
    """A layer's name without what wrappers of models have put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def match_names(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """For each of `names` the one of `others` that is the same layer, as far as there is one.

    The same name is; otherwise one that differs by wrappers only (`module.`, `_orig_mod.`), if it is unambiguous. Of
    several that are one name without wrappers (`bn` and `module.bn`, in a model with a part `module`) the same name is
    only if all of one side are on the other: with a wrapper around it `module.bn` is what `bn` was.
    """
    wanted, known = list(names), set(others)
    missing = [{strip_wrappers(name) for name in side} for side in (known.difference(wanted), set(wanted) - known)]
    pairs = {name: name for name in wanted if name in known and strip_wrappers(name) not in missing[0] & missing[1]}
    rest = [name for name in wanted if name not in pairs], [name for name in known if name not in pairs]
    mine, theirs = (Counter(map(strip_wrappers, side)) for side in rest)
    by_plain = {strip_wrappers(name): name for name in rest[1]}
    for name in rest[0]:
        plain = strip_wrappers(name)
        if mine[plain] == theirs[plain] == 1:
            pairs[name] = by_plain[plain]
    return pairs


def _select(found: dict[str, BatchNorm], layers: Sequence[str], caller: str) -> dict[str, BatchNorm]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"{caller}: layers={layers!r}; pass a list of layer names")
    wanted = list(layers)
    if not wanted:
        raise ValueError(f"{caller}: layers is empty; name at least one, or pass None for all")
    for name in wanted:
        if not isinstance(name, str) or name not in found:
            raise ValueError(
                f"{caller}: layers has {name!r}, which is no BatchNorm layer with running statistics; "
                f"there are {join_names(found)}"
            )
    return {name: module for name, module in found.items() if name in wanted}


def join_names(names: Iterable[str]) -> str:
    """The first six names, and how many there are beside them."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:6]) + (f" and {len(quoted) - 6} more" if len(quoted) > 6 else "")


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was given the module, or its forward."""
    if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
        return True
    forward = module.forward
    # torch.compiler.disable leaves the same mark, and one of its own.
    return hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable")


def is_tracing() -> bool:
    """Whether the operations that run now go into a graph of torch.jit.trace, torch.export or make_fx."""
    proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return torch._C._get_tracing_state() is not None or proxies is not None or torch.compiler.is_exporting()


def is_symbolic() -> bool:
    """Whether torch.fx runs the forward for its graph, in which the layers are called later."""
    return torch.fx._symbolic_trace._is_fx_tracing_flag and not is_tracing()


def past_modes() -> contextlib.AbstractContextManager[object]:
    """In the block operations go past torch's dispatch modes, which may count those of the model.

    Selective checkpointing repeats the operations of a forward in their order, and takes others for the model's.
    """
    seen = torch._C._len_torch_dispatch_stack() and not is_tracing()
    return _disable_current_modes() if seen else contextlib.nullcontext()


def get_running_buffers(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a layer that `batch_norm_layers` has found; ValueError if one is missing."""
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        raise ValueError(
            f"a {type(layer).__name__} of the model keeps a running mean and no running variance (mean-only batch "
            "norm?), or has none just now; only layers that keep both can be measured or recorded"
        )
    return mean, var


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The module inside of DataParallel or DistributedDataParallel, on one device and without synchronization."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def get_layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer was called with, from the arguments that its hooks get."""
    return args[0] if args else next(iter(kwargs.values()), None)


def replace_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with `x` where `get_layer_input` looks, the others as they are."""
    return ((x, *args[1:]), kwargs) if args else ((), kwargs | {next(iter(kwargs)): x})


def strip_transforms(x: Any) -> Any:
    """A tensor inside of `torch.func` transforms as it is outside: what `vmap` runs over becomes more rows."""
    functorch = torch._C._functorch
    while isinstance(x, Tensor) and (functorch.is_batchedtensor(x) or functorch.is_gradtrackingtensor(x)):
        dimension = functorch.maybe_get_bdim(x) if functorch.is_batchedtensor(x) else None
        x = functorch.get_unwrapped(x)
        if dimension is not None:
            x = x.movedim(dimension, 0).flatten(0, 1)
    return x


def check_input(name: str, layer: BatchNorm, x: Any, caller: str) -> None:
    """ValueError unless `x` is [N, C, ...] of floating-point type with the layer's channels, and not empty."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != layer.num_features:
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(f"{caller}: layer {name!r} expects {layer.num_features} channels, its input has {found}")
    if not x.is_floating_point():
        raise ValueError(f"{caller}: the input of layer {name!r} is {x.dtype}; convert it to a floating-point type")
    if x.numel() == 0:
        raise ValueError(f"{caller}: a batch of no images reached layer {name!r}; leave empty batches out")


def set_train_mode(layers: Iterable[BatchNorm]) -> None:
    """Put layers into train mode, and no module inside of them, such as dropout."""
    for layer in layers:
        inside = [(module, module.training) for module in layer.modules() if module is not layer]
        layer.train(True)  # as torch calls it, whatever stands in its place
        for module, mode in inside:
            module.training = mode
