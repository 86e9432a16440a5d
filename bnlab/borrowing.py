"""How to borrow a model so that it comes back as it was."""

from __future__ import annotations

import contextlib
import functools
import operator
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from bnlab.flags import flags_restored
from bnlab.interrupts import end_interrupted_calls
from bnlab.layers import BatchNorm
from bnlab.loans import lent_to_this_thread

_CONTAINERS: tuple[type[Any], ...] = (dict, list, set)


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
    with lent_to_this_thread(modules), _borrowed(model, modules):
        yield model


@contextlib.contextmanager
def _borrowed(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    states = [_module_state(module) for module in modules]
    buffers = [(tensor, tensor.detach().clone()) for tensor in state_tensors(model) if not is_lazy(tensor)]
    for module in modules:
        _put_to_rest(module)
    with _random_state(), flags_restored(), _uncompiled():
        try:
            yield
        finally:
            for module, state in zip(modules, states, strict=True):
                _restore(module, state)
            for buffer, value in buffers:
                _copy_back(buffer, value)


def _put_to_rest(module: nn.Module) -> None:
    """Take off what does not run on a borrowed module: resting hooks and forwards, and compiled code."""
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


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Functions under `torch.compile` run as they were written."""
    # Importing it takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


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


def _copy_back(buffer: Tensor, value: Tensor) -> None:
    """Only where they differ: writing would break a backward pass that is still to come."""
    if not torch.equal(buffer, value):
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(value)


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


def set_resting_forward(module: nn.Module, run: Callable[..., Any]) -> None:
    """Let `run(module, its own forward, args, kwargs)` be what a borrowed model calls, until it is borrowed again.

    Other than hooks, it also gets what later hooks make of the input, and sees every exception.
    """
    given = vars(module).get("forward")  # over that of the class
    # A partial function, because a copy of it, deep or pickled, belongs to the copy of the module.
    forward = functools.partial(_run_instead, run, given, module)
    forward.__dict__["given"] = given
    vars(module)["forward"] = mark_resting(forward)


def _run_instead(
    run: Callable[..., Any], given: Callable[..., Any] | None, module: nn.Module, /, *args: Any, **kwargs: Any
) -> Any:
    own = types.MethodType(type(module).forward, module) if given is None else given
    return run(module, own, args, kwargs)


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
