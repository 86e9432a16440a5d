"""Lend a model to a measurement and take it back as it was: parameters, buffers, modes and random state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

_depth = 0  # blocks of `borrowed` that run now


def count_loans() -> int:
    """How many blocks of `borrowed` run now: what a model is called for in one is no training."""
    return _depth


@contextlib.contextmanager
def borrowed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model is in eval mode in the block (`training`: in train mode), and as it was before after it.

    Parameters and buffers (the tensors, and the values of buffers and of frozen parameters), modes and the random
    state of torch, numpy and Python are put back, also after an exception. What a forward writes elsewhere stays.
    """
    global _depth
    with contextlib.ExitStack() as undo:  # what fails does not keep the rest from being given back
        modules = list(model.modules())
        for module in modules:
            undo.callback(setattr, module, "training", module.training)
        undo.callback(_give_back_tensors, _list_tensors(modules))
        merging = [module for module in modules if type(module).train is not nn.Module.train]
        merged = [(module, module.training, _copy_values(module.parameters(recurse=False))) for module in merging]
        model.train(training)  # before values are taken: self-tuned layers bring their buffers up to date
        undo.callback(_give_back_values, _copy_values([*model.buffers(), *_list_teachers(model)]))
        for module, mode, weights in merged:
            undo.callback(_give_back_weights, module, mode, weights)

        _depth += 1
        try:
            with keep_random_state(model):
                yield
        finally:
            _depth -= 1


Values = Sequence[tuple[Tensor, Tensor]]
"""Tensors, and the values that they held."""


def _list_tensors(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """List each module's own parameters and buffers, with their names in it."""
    tensors: list[tuple[nn.Module, str, Tensor]] = []
    for module in modules:
        for named in (module.named_parameters, module.named_buffers):
            tensors += [(module, name, tensor) for name, tensor in named(recurse=False, remove_duplicate=False)]
    return tensors


def _list_teachers(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that may be moved in the forward, as an average of others is: without gradients, beside some with."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    is_all = len(frozen) == sum(1 for _ in model.parameters())
    return [] if is_all else frozen


def _copy_values(tensors: Iterable[Tensor]) -> Values:
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def _give_back_weights(module: nn.Module, mode: bool, weights: Values) -> None:
    """Give a layer its weights back that it has merged with others in eval mode, as LoRA's layers do."""
    if any(not torch.equal(weight, value) for weight, value in weights):
        module.train(mode)
    _give_back_values(weights)


def _give_back_values(values: Values) -> None:
    for tensor, value in values:
        if tensor.shape != value.shape:  # as of observers, which get their size in the first forward
            tensor.data = value
            continue

        # On CUDA a comparison would wait for the device, so tensors are written without one. An expanded tensor cannot
        # be written; as nothing can have changed it, the comparison finds it equal.
        is_expanded = 0 in tensor.stride()
        skips_comparison = tensor.is_cuda and not is_expanded
        if skips_comparison or not torch.equal(tensor, value):
            tensor.data.copy_(value)  # .data: a backward pass still to come may have saved the tensor


def _give_back_tensors(tensors: Iterable[tuple[nn.Module, str, Tensor]]) -> None:
    for module, name, tensor in tensors:
        if getattr(module, name, None) is not tensor:
            setattr(module, name, tensor)


@contextlib.contextmanager
def measured(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model is borrowed, its forwards take no gradients, and its layers' hooks run also where it is compiled."""
    with borrowed(model, training=training), torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


@contextlib.contextmanager
def keep_random_state(model: nn.Module | None = None) -> Iterator[None]:
    """Put the generators of torch, numpy and Python back at the end of the block, as if nothing had been drawn.

    Of accelerators only the generators of those that a model is on.
    """
    parameters = [] if model is None else model.parameters()
    devices = dict.fromkeys([parameter.device for parameter in parameters if parameter.is_cuda])
    state, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpys)
