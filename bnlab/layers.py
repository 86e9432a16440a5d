"""The batch-norm layers of a model, and how to borrow a model so that it comes back as it was."""

from __future__ import annotations

import contextlib
import operator
import random
import sys
import threading
import types
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from bnlab.flags import flags_restored

Forward = Callable[[nn.Module, Any], Any]

_CONTAINERS: tuple[type[Any], ...] = (dict, list, set)

BatchNorm = _BatchNorm  # BatchNorm1d/2d/3d, SyncBatchNorm, the lazy ones once built, and subclasses (timm's)


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
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected a torch.nn.Module, found {type(model).__name__}")
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
        note = ", ".join(f"{n} {kind}" for kind, n in skipped.items())
        raise ValueError(
            f"{caller}: no BatchNorm layer with running statistics in {type(model).__name__}"
            + (f" ({note} skipped)" if note else "")
        )
    return found if layers is None else _select(found, layers, caller)


def _cannot_be_watched(module: torch.jit.ScriptModule) -> bool:
    """Whether it has batch norm, or is traced: what keeps its state is not the module then."""
    if "_buffers" not in vars(module):
        return True
    if any(name.endswith("running_mean") for name, _ in module.named_buffers()):
        return True
    return hasattr(module, "graph") and "aten::batch_norm" in str(module.inlined_graph)


_WRAPPERS = frozenset({"module", "_orig_mod"})  # what (Distributed)DataParallel and torch.compile put into names


def plain_name(name: str) -> str:
    """A layer's name without what wrappers of models have put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def match_names(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """For each of `names` the one of `others` that is the same layer, as far as there is one.

    The same name is; otherwise one that differs by wrappers only (`module.`, `_orig_mod.`), if it is unambiguous.
    """
    wanted, known = list(names), set(others)
    pairs = {name: name for name in wanted if name in known}
    rest = [name for name in wanted if name not in pairs], [name for name in known if name not in pairs]
    mine, theirs = (Counter(map(plain_name, side)) for side in rest)
    by_plain = {plain_name(name): name for name in rest[1]}
    for name in rest[0]:
        plain = plain_name(name)
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


def get_running_buffers(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """The running mean and variance of a layer that `batch_norm_layers` has found."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None
    return mean, var


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The module inside of DataParallel or DistributedDataParallel, on one device and without synchronization."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def call(model: nn.Module, batch: Any) -> Any:
    """The default forward: `model(batch)`, or `model(batch[0])` of a tuple or list such as (images, labels)."""
    if not isinstance(batch, (tuple, list)):
        return model(batch)
    if not batch:
        raise ValueError("a batch is an empty list or tuple; pass e.g. (images, labels), or forward= for other batches")
    return model(batch[0])


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer was called with, from the arguments that its hooks get."""
    return args[0] if args else next(iter(kwargs.values()), None)


def replace_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with `x` where `layer_input` looks, the others as they are."""
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


def copy_batch(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """The batch with copies of its tensors on `device`, and of its numpy arrays.

    Args:
        channels_last: images [N, C, H, W] are laid out with the channels innermost.
    """

    def copy(tensor: Tensor) -> Tensor:
        plain = tensor.layout == torch.strided and not tensor.is_nested
        images = channels_last and plain and tensor.dim() == 4
        layout = torch.channels_last if images else torch.preserve_format
        return tensor.to(device, copy=True, memory_format=layout)

    return tree_map_only(Tensor, copy, tree_map_only(np.ndarray, np.copy, batch))


def keep_batch(batch: Any) -> Any:
    """The batch with copies of its tensors and arrays where they are: a loader may use its memory again."""
    batch = tree_map_only(np.ndarray, np.copy, batch)
    return tree_map_only(Tensor, torch.clone, batch)


def set_train_mode(layers: Mapping[str, BatchNorm]) -> list[str]:
    """Put layers into train mode. Returns the names of those that do not go: their class overrides `train`."""
    for layer in layers.values():
        layer.train()
    return [name for name, layer in layers.items() if not layer.training]


def set_buffers_aside(layer: BatchNorm) -> None:
    """Give a layer of a borrowed model copies of its buffers, to be written into."""
    for key, own in layer._buffers.items():
        layer._buffers[key] = None if own is None else own.clone()


def set_weights_channels_last(model: nn.Module, most: int) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give the convolutions of a borrowed model copies of their weights with the channels innermost.

    oneDNN arranges weights for itself at every call, and has less to do then. Results differ by
    float32 rounding where an input does not have its channels innermost.

    Returns:
        (module, key, own weight) of what was replaced; nothing, where that would take more than `most` bytes.
    """
    layout = torch.channels_last
    weights = [m._parameters.get("weight") for m in model.modules() if type(m) is nn.Conv2d]
    own = {id(w): w for w in weights if type(w) is nn.Parameter and not w.is_contiguous(memory_format=layout)}
    if sum(w.nbytes for w in own.values()) > most:
        return []
    lent = {key: nn.Parameter(w.detach().contiguous(memory_format=layout), w.requires_grad) for key, w in own.items()}
    # Wherever the model has them: weights may be shared.
    places = [(m, key, w) for m in model.modules() for key, w in m._parameters.items() if id(w) in own]
    for module, key, weight in places:
        module._parameters[key] = lent[id(weight)]
    return places  # type: ignore[return-value]


def mark_resting(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook that does not run while its module is borrowed: what is measured is not what is trained."""
    hook.__dict__["rests"] = True
    return hook


# What ends the calls of a layer that an interrupt has left before their hooks, by the layer's identity.
_enders: dict[int, list[Callable[[], None]]] = {}


@contextlib.contextmanager
def interrupts_ended_by(layer: nn.Module, end: Callable[[], None]) -> Iterator[None]:
    """Inside the block `end` is called before something reads or writes the layer's buffers from outside of a call."""
    handles = (
        layer.register_state_dict_pre_hook(_end_interrupted_call),
        layer.register_load_state_dict_pre_hook(_end_interrupted_call),
    )
    enders = _enders.setdefault(id(layer), [])
    enders.append(end)
    try:
        yield
    finally:
        enders.remove(end)
        if not enders:
            del _enders[id(layer)]
        for handle in handles:
            handle.remove()


def _end_interrupted_call(module: nn.Module, *_: object) -> None:
    end_interrupted_calls([module])


def end_interrupted_calls(modules: Iterable[nn.Module]) -> None:
    """Let recorded layers have their own buffers again where a KeyboardInterrupt has ended a call before its hooks.

    Raises:
        ValueError: a layer is being called now, by another thread or by what this has interrupted.
    """
    for module in modules:
        for end in reversed(_enders.get(id(module), ())):  # what was lent last comes back first
            end()


def set_resting_forward(module: nn.Module, run: Callable[..., Any]) -> None:
    """Let `run(module, its own forward, args, kwargs)` be what a borrowed model calls, until it is borrowed again.

    Other than hooks, it also gets what later hooks make of the input, and sees every exception.
    """
    given = vars(module).get("forward")  # over that of the class

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = types.MethodType(type(module).forward, module) if given is None else given
        return run(module, own, args, kwargs)

    forward.__dict__["given"] = given
    # Bound, because a deep copy of a method belongs to the copy of the module.
    vars(module)["forward"] = types.MethodType(mark_resting(forward), module)


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` to the block and put everything back afterwards, also after an exception.

    Modes, momentum, hooks, parameters' and buffers' identity, buffers' values, every attribute of every module
    (lists, sets and dictionaries by their entries), and the random state of torch, numpy and Python. Parameter
    values and gradients are not copied: do not train a borrowed model. What is compiled runs uncompiled inside
    the block, because hooks that come later do not reach a compiled graph. Flags of torch and Python that hold for
    the whole process are put back too.

    Raises:
        ValueError: a part of the model is lent to another thread, or a recorded layer is being called.
    """
    modules = list(model.modules())
    end_interrupted_calls(modules)
    with _lent_to_this_thread(modules), _borrowed(model, modules):
        yield model


# Modules that are lent now, by identity, and the thread that has them.
_loans: list[tuple[int, set[int]]] = []
_loans_lock = threading.Lock()


@contextlib.contextmanager
def _lent_to_this_thread(modules: Sequence[nn.Module]) -> Iterator[None]:
    loan = threading.get_ident(), set(map(id, modules))
    with _loans_lock:
        check_not_lent(modules)
        _loans.append(loan)
    try:
        yield
    finally:
        with _loans_lock:
            at = next(i for i, other in enumerate(_loans) if other is loan)
            later = _loans[at + 1 :]
            del _loans[at]
        if any(thread == loan[0] and not loan[1].isdisjoint(lent) for thread, lent in later):
            warnings.warn(
                "two blocks that borrow one model (bnlab.using in a generator, say) end in another order than they "
                "began; neither the model nor torch's settings are as they were",
                RuntimeWarning,
                stacklevel=2,
            )


def count_loans() -> int:
    """How many blocks of this thread have borrowed a model now."""
    thread = threading.get_ident()
    return sum(owner == thread for owner, _ in list(_loans))


def check_loans(expected: int, name: str, caller: str) -> None:
    """ValueError if the forward that calls layer `name` has borrowed a model beside the `expected` loans."""
    if count_loans() > expected:
        raise ValueError(
            f"{caller}: layer {name!r} is called inside of a measurement or of bnlab.using that the forward has begun; "
            "take that out of the forward, or pass a forward= without it"
        )


def check_not_lent(modules: Iterable[nn.Module]) -> None:
    """ValueError if another thread has borrowed one of the modules."""
    thread, wanted = threading.get_ident(), set(map(id, modules))
    if any(other != thread and not wanted.isdisjoint(lent) for other, lent in list(_loans)):
        raise ValueError(
            "the model is in use by a measurement or by bnlab.using in another thread; wait for it, or use a deep copy"
        )


@contextlib.contextmanager
def _borrowed(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    states = [_module_state(module) for module in modules]
    buffers = [(tensor, tensor.detach().clone()) for tensor in state_tensors(model) if not is_lazy(tensor)]
    for module in modules:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "rests", False)]:
                del hooks[key]
        lent: Any = vars(module).get("forward")
        if getattr(lent, "rests", False):
            del vars(module)["forward"]
            vars(module).update({} if lent.given is None else {"forward": lent.given})
        if module.__dict__.get("_compiled_call_impl") is not None:
            module.__dict__["_compiled_call_impl"] = None
        if isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module.__dict__["forward"] = compiled.__call__
    with _random_state(), flags_restored(), _uncompiled():
        try:
            yield
        finally:
            for module, state in zip(modules, states, strict=True):
                _restore(module, state)
            for buffer, value in buffers:
                _copy_back(buffer, value)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Functions under `torch.compile` run as they were written."""
    # Importing it takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _copy_back(buffer: Tensor, value: Tensor) -> None:
    """Only where they differ: writing would break a backward pass that is still to come."""
    if not torch.equal(buffer, value):
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(value)


class KeptTensors:
    """Tensors as they are now, to be put back where a forward has written into them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(t, t.detach(), t.detach().clone()) for t in tensors if not is_lazy(t)]
        self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        return [-1 if tensor.is_inference() else tensor._version for tensor, *_ in self._kept]

    @contextlib.contextmanager
    def restored(self, *, unseen: bool = False) -> Iterator[None]:
        """Put back what the block has written, also if it ends half-way; `unseen`: also what left no trace."""
        try:
            yield
        finally:
            now = self._versions_now()
            for (tensor, memory, value), before, version in zip(self._kept, self._versions, now, strict=True):
                replaced = tensor.layout == torch.strided and tensor.data_ptr() != memory.data_ptr()
                if replaced:
                    tensor.data = memory
                if replaced or unseen or version != before or tensor.is_inference():  # whose writes nobody counts
                    _copy_back(tensor, value)
            self._versions = self._versions_now()


def state_tensors(model: nn.Module) -> list[Tensor]:
    """Its buffers, and the tensors that its modules hold as attributes."""
    plain = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    return [*model.buffers(), *plain]


def kept_state(model: nn.Module) -> KeptTensors:
    """The `state_tensors` but what norm layers average, which has no part in what they do in train mode."""
    norms = [module for module in model.modules() if isinstance(module, (BatchNorm, _InstanceNorm))]
    averages = {id(t) for m in norms for t in (m.running_mean, m.running_var, m.num_batches_tracked)}
    return KeptTensors(tensor for tensor in state_tensors(model) if id(tensor) not in averages)


_State = tuple[dict[str, Any], dict[str, Collection[Any]], bool]


def _module_state(module: nn.Module) -> _State:
    """Every attribute, and the entries of those that are containers (plain: a subclass may forbid copying)."""
    attributes = dict(module.__dict__)
    # Most are empty (hooks), and copies would keep the garbage collector busy.
    entries = {key: _entries(v) if v else () for key, v in attributes.items() if isinstance(v, _CONTAINERS)}
    return attributes, entries, module.training


def _entries(value: Any) -> Collection[Any]:
    return next(kind(value) for kind in _CONTAINERS if isinstance(value, kind))


def _restore(module: nn.Module, state: _State) -> None:
    attributes, entries, training = state
    for key in [key for key in module.__dict__ if key not in attributes]:
        del module.__dict__[key]
    module.__dict__.update(attributes)
    if module.training != training:  # of a scripted module it is no entry of the dictionary
        module.training = training
    for key, before in entries.items():
        container = attributes[key]
        if (container or before) and differs(container, before):
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)


def differs(container: Any, entries: Any) -> bool:
    """Whether a dictionary, list, deque or set has other entries, by identity, or in another order."""
    if len(container) != len(entries):
        return True
    if isinstance(container, dict):
        return list(container) != list(entries) or not all(map(operator.is_, container.values(), entries.values()))
    if isinstance(container, (list, deque)):
        return not all(map(operator.is_, container, entries))
    return bool(container != entries)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None and legacy is not None:
                numpy.random.set_state(legacy)
