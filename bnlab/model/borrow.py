"""Lend a model to a measurement and take it back as it was: parameters, buffers, modes and random state."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.model.batches import is_dense
from bnlab.model.layers import BatchNorm

_WITH_GENERATORS = ("cuda", "mps", "xpu")  # types of devices that draw random numbers of their own

_measurements = 0  # loans in which bnlab alone calls models
_blocks: list[frozenset[int]] = []  # of each loan in which the caller may call any model: the modules that are lent


def is_lent(layer: nn.Module) -> bool:
    """Return whether calls of a layer are no training now; see `count_loans`."""
    # Asked first, so that compiled code is not made again for the identity of each layer.
    if not _measurements and not _blocks:
        return False
    return count_loans(frozenset((id(layer),))) > 0


def count_loans(layers: frozenset[int]) -> int:
    """Count the loans because of which a call of layers, by their identities, is no training.

    A measurement calls models only in order to measure, also another one than its own, such as the generator whose
    images a discriminator is measured on. A block of the caller's is about the model that is lent: a student may be
    trained in one that evaluates its teacher.
    """
    return _measurements + sum(layers <= lent for lent in _blocks)


@contextlib.contextmanager
def borrowed(model: nn.Module, *, training: bool = False, for_caller: bool = False) -> Iterator[None]:
    """The model is in eval mode in the block (`training`: in train mode), and as it was before after it.

    What `restored` puts back is put back; and, unless the caller's code runs in the block, all weights, and what
    forwards have set on modules, such as a mask that is made of the first batch. What was compiled runs as it is
    written, because compiled code sees no hooks.

    Args:
        model: the model.
        training: whether it is in train mode.
        for_caller: whether the caller's code runs in the block, which may train other models.
    """
    global _measurements
    with restored(model, training=training), contextlib.ExitStack() as undo:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and the import takes longer than measuring
            undo.enter_context(torch.compiler.set_stance("force_eager"))

        if for_caller:
            lent = frozenset(id(module) for module in model.modules())
            _blocks.append(lent)
            # Not `pop`: blocks may end in another order than they began.
            undo.callback(_blocks.remove, lent)
            yield
            return

        undo.callback(_give_back_values, _copy_values(model.parameters()))
        undo.callback(_give_back_attributes, _copy_attributes(model))
        _measurements += 1
        try:
            yield
        finally:
            _measurements -= 1


@contextlib.contextmanager
def restored(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """The model and the random state are as they were before, after the block.

    Parameters and buffers (the tensors, and the values of buffers and of frozen parameters), modes and the random
    state of torch, numpy and Python are put back, also after an exception. What a forward writes elsewhere stays.

    Args:
        model: the model.
        training: the mode that it has in the block; None: the one that it has.
    """
    with contextlib.ExitStack() as undo:  # what fails does not keep the rest from being given back
        modules = list(model.modules())
        # The attribute is set directly: `train` also changes submodules, and a class may override it.
        for module in modules:
            undo.callback(setattr, module, "training", module.training)

        # Layers such as LoRA's merge weights into others when their mode changes, so that they have a `train` of their
        # own.
        merging = [module for module in modules if type(module).train is not nn.Module.train]
        for module in merging:
            undo.callback(_tell_mode, module, module.training)

        # Only a module of somebody's own may register a buffer in its forward.
        attributes = {id(module): {*dir(module)} for module in modules if not is_of_torch(module)}
        undo.callback(_give_back_tensors, modules, _list_tensors(modules), attributes)
        # Weights are copied before the mode changes, because changing it may merge them.
        merged = [(module, module.training, _copy_values(module.parameters(recurse=False))) for module in merging]
        if training is not None:
            model.train(training)
        # Self-tuned layers bring their buffers up to date before values are taken: otherwise the block may do it, and
        # the layers would find other values in them afterwards, and begin new averages.
        for module in modules:
            if isinstance(module, BatchNorm):
                module.state_dict()

        undo.callback(_give_back_values, _copy_values([*model.buffers(), *_list_frozen_parameters(model)]))
        # An ExitStack undoes in reverse order: first the random state, then weights and values, then the tensors
        # themselves. Modules are told their modes when all of these are back, because self-tuned layers then
        # read their buffers. At last modes are set.
        for module, mode, weights in merged:
            undo.callback(_give_back_weights, module, mode, weights)

        undo.enter_context(keep_random_state(model))
        yield


Values = Sequence[tuple[Tensor, Tensor]]
"""Tensors, and the values that they held."""


def _list_tensors(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """List each module's own parameters and buffers, with their names in it."""
    tensors: list[tuple[nn.Module, str, Tensor]] = []
    for module in modules:
        for named in (module.named_parameters, module.named_buffers):
            tensors += [(module, name, tensor) for name, tensor in named(recurse=False, remove_duplicate=False)]
    return tensors


def _list_frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters without gradients, which a forward may move as averages of others; none if all are so."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    # A teacher has a student. If all parameters are frozen, none of them can be an average of others.
    is_all = len(frozen) == sum(1 for _ in model.parameters())
    return [] if is_all else frozen


def _copy_values(tensors: Iterable[Tensor]) -> Values:
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


# What torch keeps in every module: tables of tensors, modules and hooks, and the mode.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _copy_attributes(model: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Copy what modules hold beside tensors and modules: the attributes themselves, and what they are now.

    Self-tuned norms bring theirs up to date by themselves.
    """
    copied = []
    for module in model.modules():
        if not isinstance(module, BatchNorm):
            attributes = vars(module)
            copied.append((attributes, {name: attributes[name] for name in attributes.keys() - OF_EVERY_MODULE}))
    return copied


def _give_back_attributes(copied: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for attributes, before in copied:
        for name in attributes.keys() - OF_EVERY_MODULE - before.keys():
            del attributes[name]
        attributes.update(before)


def _give_back_weights(module: nn.Module, mode: bool, weights: Values) -> None:
    """Give a layer its weights back that it has merged with others in eval mode, as LoRA's layers do."""
    # `train(mode)` lets the layer undo its own merge; the copies then remove what rounding has left.
    if any(not torch.equal(weight, value) for weight, value in weights):
        module.train(mode)
    _give_back_values(weights)


def _tell_mode(module: nn.Module, mode: bool) -> None:
    """Tell a module with a `train` of its own its mode: it may have to forget what it has computed in the other one."""
    if module.training != mode:
        module.train(mode)


def _give_back_values(values: Values) -> None:
    for tensor, value in values:
        if tensor.shape != value.shape:  # as of observers, which get their size in the first forward
            tensor.data = value
            continue

        if not is_dense(tensor):  # of which torch has no comparison
            tensor.data.copy_(value)
            continue

        # An expanded tensor cannot be written, so that nothing can have changed it.
        is_expanded = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        if is_expanded:
            continue
        # On CUDA a comparison would wait for the device, so tensors are written without one.
        if tensor.is_cuda or not torch.equal(tensor, value):
            tensor.data.copy_(value)  # .data: a backward pass still to come may have saved the tensor


def _give_back_tensors(
    modules: Iterable[nn.Module],
    tensors: Sequence[tuple[nn.Module, str, Tensor]],
    attributes: Mapping[int, Collection[str]],
) -> None:
    # Of a buffer that the first forward fills or registers the list has nothing.
    known = {(id(module), name) for module, name, _ in tensors}
    for module in modules:
        for name in [name for name, _ in module.named_buffers(recurse=False, remove_duplicate=False)]:
            if (id(module), name) not in known:
                # One that was registered as None is among the attributes.
                if name in attributes.get(id(module), (name,)):
                    setattr(module, name, None)
                else:
                    delattr(module, name)

    for module, name, tensor in tensors:
        # Identity matters: a forward that replaces a tensor by an equal one must not leave its own behind.
        if getattr(module, name, None) is not tensor:
            setattr(module, name, tensor)


@contextlib.contextmanager
def measured(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model is borrowed, and its forwards take no gradients."""
    with borrowed(model, training=training), torch.no_grad():
        yield


@contextlib.contextmanager
def keep_random_state(model: nn.Module | None = None) -> Iterator[None]:
    """Put the generators of torch, numpy and Python back at the end of the block, as if nothing had been drawn.

    Of accelerators only the generators of those that a model is on.
    """
    held = [] if model is None else [*model.parameters(), *model.buffers()]  # a norm of inputs has buffers alone
    found = [tensor.device for tensor in held if tensor.device.type in _WITH_GENERATORS]
    kind = found[0].type if found else "cuda"
    devices = [*dict.fromkeys(device for device in found if device.type == kind)]  # hardly ever are there several types
    state = random.getstate()
    numpy_state = np.random.get_state()
    try:
        # Without a list, torch would save the generators of every accelerator in the machine.
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def are_equal(tensor: Tensor, values: Tensor) -> bool:
    """Return whether a tensor has these values; where both are NaN they are equal."""
    # The quick comparison first: it is enough wherever nothing is NaN.
    return torch.equal(tensor, values) or torch.allclose(tensor, values, rtol=0.0, atol=0.0, equal_nan=True)


def is_of_torch(module: nn.Module) -> bool:
    """Return whether a module is of torch's own class, on which forwards set no attributes."""
    return type(module).__module__.startswith("torch.nn.")
