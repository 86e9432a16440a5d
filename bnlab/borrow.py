"""Lend a model to a measurement and take it back as it was: parameters, buffers, modes and random state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

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
    modes = [(module, module.training) for module in model.modules()]
    tensors = [
        (module, name, tensor)
        for module in model.modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    own = [module for module in model.modules() if type(module).train is not nn.Module.train]
    weights = [(module, weight, weight.detach().clone()) for module in own for weight in module.parameters(False)]
    model.train(training)  # before values are taken: self-tuned layers bring their buffers up to date
    written = [*model.buffers(), *_list_teachers(model)]
    values = [(tensor, tensor.detach().clone()) for tensor in written]

    def give_back_modes() -> None:
        for module, mode in modes:
            module.training = mode

    def give_back_tensors() -> None:
        for module, name, tensor in tensors:
            if getattr(module, name, None) is not tensor:
                setattr(module, name, tensor)

    def give_back_values() -> None:
        for module, mode in modes:  # LoRA's layers merge their weights in eval mode
            if any(of is module and not torch.equal(weight, value) for of, weight, value in weights):
                module.train(mode)
        for tensor, value in (*values, *(pair for _, *pair in weights)):
            _give_back(tensor, value)

    with contextlib.ExitStack() as undo:  # what fails does not keep the rest from being given back
        undo.callback(give_back_modes)
        undo.callback(give_back_tensors)
        undo.callback(give_back_values)
        _depth += 1
        try:
            with keep_random_state(model):
                yield
        finally:
            _depth -= 1


def _list_teachers(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that may be moved in the forward, as an average of others is: without gradients, beside some with."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    is_all = len(frozen) == sum(1 for _ in model.parameters())
    return [] if is_all else frozen


def _give_back(tensor: Tensor, value: Tensor) -> None:
    """Let a tensor hold a value again."""
    if tensor.shape != value.shape:  # as of observers, which get their size in the first forward
        tensor.data = value
        return

    # On CUDA a comparison would wait for the device, so tensors are written without one. An expanded tensor cannot be
    # written; as nothing can have changed it, the comparison finds it equal.
    is_expanded = 0 in tensor.stride()
    skips_comparison = tensor.is_cuda and not is_expanded
    if skips_comparison or not torch.equal(tensor, value):
        tensor.data.copy_(value)  # .data: a backward pass still to come may have saved the tensor


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
    devices = {parameter.device for parameter in parameters if parameter.is_cuda}
    own, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
