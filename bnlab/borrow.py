"""Lend a model to a measurement and take it back as it was: parameters, buffers, modes and random state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

_depth = 0  # blocks of `borrowed` that run now


def count_loans() -> int:
    """How many blocks of `borrowed` run now: what a model is called for in one is no training."""
    return _depth


@contextlib.contextmanager
def borrowed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model is in eval mode in the block (`training`: in train mode), and as it was before after it.

    Parameters and buffers (the tensors, and the values of buffers), modes and the random state of torch, numpy and
    Python are put back, also after an exception. What a forward writes elsewhere stays.
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
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    _depth += 1
    try:
        with keep_random_state(model):
            yield
    finally:
        _depth -= 1
        for module, mode in modes:  # LoRA's layers merge their weights in eval mode
            if any(of is module and not torch.equal(weight, value) for of, weight, value in weights):
                module.train(mode)
        for tensor, value in (*values, *(pair for _, *pair in weights)):
            if not torch.equal(tensor, value):  # as an expanded one, which cannot be written, is
                tensor.data.copy_(value)  # .data: a backward pass still to come may have saved the tensor
        for module, name, tensor in tensors:
            if getattr(module, name, None) is not tensor:
                setattr(module, name, tensor)
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def measured(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model is borrowed, its forwards take no gradients, and its layers' hooks run also where it is compiled."""
    with borrowed(model, training=training), torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


@contextlib.contextmanager
def keep_random_state(model: nn.Module) -> Iterator[None]:
    """What is drawn in the block from the generators of torch, numpy and Python is as if it had not been drawn."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    own, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
