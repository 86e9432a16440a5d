"""How to borrow a model so that it comes back as it was."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from bnlab.containers import copy_entries, differs, list_inner, refill
from bnlab.flags import flags_restored
from bnlab.interrupts import end_interrupted_calls
from bnlab.layers import BatchNorm
from bnlab.loans import lent_to_this_thread
from bnlab.randomness import list_generators, restored

_CONTAINERS: tuple[type[Any], ...] = (dict, list, set)


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Lend `model` to the block and put everything back afterwards, also after an exception.

    Modes, momentum, hooks, parameters' and buffers' identity, which parameters want gradients, buffers' values, every
    attribute of every module (lists, sets and dictionaries by their entries), and the random state of torch, numpy and
    Python and of generators that modules hold (see `find_generators`). Parameter values and gradients are not copied:
    do not train a borrowed model. What is compiled runs uncompiled inside the block, because hooks that come later do
    not reach a compiled graph. Flags of torch and Python that hold for the whole process are put back too.

    Raises:
        ValueError: a part of the model is lent to another thread, or a recorded layer is being called.
    """
    modules = list(model.modules())
    end_interrupted_calls(modules)
    with lent_to_this_thread(modules), _borrowed(model, modules):
        yield model


@contextlib.contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[None]:
    """Parameters have no gradients in the block, to which a backward pass would add, and those of before after it."""
    leaves = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.is_leaf]
    # One that `.data = ...` has made unlike its parameter could not be given back.
    kept = [(p, g) for p, g in leaves if g is None or (g.shape, g.dtype, g.device) == (p.shape, p.dtype, p.device)]
    for parameter, gradient in kept:
        if gradient is not None:
            parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextlib.contextmanager
def _borrowed(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    tensors = KeptTensors(list_state_tensors(model))
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with (
        tensors.restored(unseen=True),
        _random_state_restored(modules),
        flags_restored(),
        _uncompiled(modules),
        attributes_restored(modules),
    ):
        for module in modules:
            _pause(module)
        try:
            yield
        finally:
            for parameter, wants_gradient in gradients:
                if parameter.requires_grad != wants_gradient:
                    parameter.requires_grad_(wants_gradient)


@contextlib.contextmanager
def attributes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Every attribute of these modules, and the entries of those that are containers, are put back after the block."""
    states = [(module, _capture(module)) for module in modules]
    try:
        yield
    finally:
        for module, state in states:
            _restore(module, state)


def _pause(module: nn.Module) -> None:
    """Take off what does not run on a borrowed module: hooks and forwards marked so, and compiled code."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if is_paused_while_borrowed(hook)]:
            del hooks[key]
    lent: Any = vars(module).get("forward")
    if is_paused_while_borrowed(lent):
        del vars(module)["forward"]
        vars(module).update({} if lent.given is None else {"forward": lent.given})
    if module.__dict__.get("_compiled_call_impl") is not None:
        module.__dict__["_compiled_call_impl"] = None
    if isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
        module.__dict__["forward"] = compiled.__call__


@contextlib.contextmanager
def _uncompiled(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Functions under `torch.compile` run as they were written."""
    # Importing it takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    notes, key = vars(sys.modules["torch._dynamo.eval_frame"]), "_in_optimized_module"  # while one is called
    kept = {key: notes[key]} if key in notes and any("_orig_mod" in module._modules for module in modules) else {}
    with torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            notes.update(kept)


@contextlib.contextmanager
def _random_state_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Of torch, Python and numpy, and of generators that modules hold."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), restored(list_generators(modules)):
        yield


def copy_back(buffer: Tensor, value: Tensor) -> None:
    """Only where they differ: writing would break a backward pass that is still to come."""
    if not is_plain(buffer) or not hold_the_same(buffer, value):
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(value)


def is_plain(tensor: Tensor) -> bool:
    """Whether its memory and values can be compared: it is not sparse, nested or on the meta device."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def hold_the_same(a: Tensor, b: Tensor) -> bool:
    """Whether two plain tensors of one shape and type have the same values, NaN where the other has NaN."""
    if torch.equal(a, b):
        return True
    return (a.is_floating_point() or a.is_complex()) and bool(((a == b) | (a.isnan() & b.isnan())).all())


def set_buffers_aside(layer: BatchNorm) -> None:
    """Give a layer of a borrowed model copies of its buffers, to be written into."""
    for key, own in layer._buffers.items():
        layer._buffers[key] = None if own is None else own.clone()


def read_with_own_buffers(
    batches: Iterable[Any], own: Sequence[tuple[nn.Module, Mapping[str, Tensor | None]]]
) -> Iterator[Any]:
    """The batches; who makes one, with the model perhaps, sees the layers of a borrowed model with these buffers."""
    iterator: Iterator[Any] | None = None
    while True:
        lent = [dict(layer._buffers) for layer, _ in own]
        for layer, buffers in own:
            layer._buffers.update(buffers)
        try:
            iterator = iter(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            for (layer, _), buffers in zip(own, lent, strict=True):
                layer._buffers.update(buffers)
        yield batch


def pause_while_borrowed(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook that does not run while its module is borrowed: what is measured is not what is trained."""
    hook.__dict__["paused_while_borrowed"] = True
    return hook


def is_paused_while_borrowed(hook: object) -> bool:
    """Whether a hook or forward has been marked so."""
    return getattr(hook, "paused_while_borrowed", False)


def replace_forward(module: nn.Module, run: Callable[..., Any]) -> None:
    """Let `run(module, its own forward, args, kwargs)` be what a borrowed model calls, until it is borrowed again.

    Other than hooks, it also gets what later hooks make of the input, and sees every exception.
    """
    given = vars(module).get("forward")  # over that of the class
    # A partial function, because a copy of it, deep or pickled, belongs to the copy of the module.
    forward = functools.partial(_run_instead, run, given, module)
    forward.__dict__["given"] = given
    vars(module)["forward"] = pause_while_borrowed(forward)


def _run_instead(
    run: Callable[..., Any], given: Callable[..., Any] | None, module: nn.Module, /, *args: Any, **kwargs: Any
) -> Any:
    # Not a method: torch.compile cannot make one.
    own = functools.partial(type(module).forward, module) if given is None else given
    return run(module, own, args, kwargs)


def count_writes(tensor: Tensor | None) -> int:
    """How often it has been written in place; -1 where nobody counts, as for inference tensors."""
    try:
        return -1 if tensor is None else tensor._version
    except RuntimeError:
        return -1


class KeptTensors:
    """Tensors as they are now, to be put back where a forward has written into them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(t, t.detach(), t.detach().clone()) for t in tensors if not is_lazy(t)]
        self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        return [count_writes(tensor) for tensor, *_ in self._kept]

    def take_up(self) -> bool:
        """Take what has been written since for what is to be put back; whether anything has."""
        written = False
        for place, ((tensor, memory, value), version) in enumerate(zip(self._kept, self._versions, strict=True)):
            same = (tensor.dtype, tensor.layout) == (value.dtype, value.layout)
            if same and is_plain(tensor):
                same = tensor.shape == value.shape and tensor.data_ptr() == memory.data_ptr()
                same = same and hold_the_same(tensor, value)
            elif same:
                same = count_writes(tensor) == version
            if not same:
                self._kept[place] = tensor, tensor.detach(), tensor.detach().clone()
                written = True
        self._versions = self._versions_now()
        return written

    def take_up_counted(self) -> bool:
        """The same, but for writes that leave no trace: all values need not be compared."""
        return self._versions_now() != self._versions and self.take_up()

    @contextlib.contextmanager
    def restored(self, *, unseen: bool = False) -> Iterator[None]:
        """Put back what the block has written, also if it ends half-way; `unseen`: also what left no trace."""
        try:
            yield
        finally:
            now = self._versions_now()
            for (tensor, memory, value), before, version in zip(self._kept, self._versions, now, strict=True):
                plain = is_plain(tensor)
                # Other memory, or resized in place, where it shares memory still.
                replaced = plain and (tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape)
                if replaced:
                    tensor.data = memory
                written = version != before or tensor.is_inference()  # whose writes nobody counts
                if replaced or written or (unseen and plain):
                    copy_back(tensor, value)
            self._versions = self._versions_now()


def list_state_tensors(model: nn.Module) -> list[Tensor]:
    """Its buffers, and the tensors that its modules hold as attributes, also in containers; no parameters."""
    held = [value for m in model.modules() for key, value in vars(m).items() if key != "_parameters"]
    held += [entry for value in held for entry in list_inner(value)]
    optimizers = [value for value in held if issubclass(type(value), Optimizer)]
    states = [state for optimizer in optimizers for state in getattr(optimizer, "state", {}).values()]
    held += [entry for state in states if isinstance(state, dict) for entry in state.values()]
    kinds = {kind for kind in set(map(type, held)) if issubclass(kind, Tensor) and not issubclass(kind, nn.Parameter)}
    found = {id(value): value for value in held if type(value) in kinds}
    return [*({id(buffer): buffer for buffer in model.buffers()} | found).values()]


def keep_state(model: nn.Module) -> KeptTensors:
    """State tensors, to be put back, but what norm layers average: it has no part in what they do in train mode."""
    norms = [module for module in model.modules() if isinstance(module, (BatchNorm, _InstanceNorm))]
    averages = {id(t) for m in norms for t in (m.running_mean, m.running_var, m.num_batches_tracked)}
    return KeptTensors(tensor for tensor in list_state_tensors(model) if id(tensor) not in averages)


_State = tuple[dict[str, Any], dict[str, Collection[Any]], bool]


def _capture(module: nn.Module) -> _State:
    """Every attribute, and the entries of those that are containers (plain: a subclass may forbid copying)."""
    attributes = dict(module.__dict__)
    # Most are empty (hooks), and copies would keep the garbage collector busy.
    entries = {key: copy_entries(v) if v else () for key, v in attributes.items() if issubclass(type(v), _CONTAINERS)}
    return attributes, entries, module.training


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
            refill(container, before)
