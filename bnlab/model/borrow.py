"""Lend a model for a block, and take it back as it was: what it holds is known before anything is changed."""

from __future__ import annotations

import contextlib
import random
import sys
import traceback
import types
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.model.batches import is_dense
from bnlab.model.layers import BatchNorm

# What torch keeps in every module: the mode, and tables of tensors, modules and hooks.
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, OrderedDict, list, set)  # and no classes below them, which may refuse to be written
_WITH_GENERATORS = ("cuda", "mps", "xpu")  # types of devices that draw random numbers of their own

_measurements = 0  # loans in which bnlab alone calls models
_blocks: dict[int, frozenset[int]] = {}  # by loan in which the caller may call any model: the modules that are lent


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
    return _measurements + sum(layers <= lent for lent in _blocks.values())


class Reverted(contextlib.AbstractContextManager[Any]):
    """A `with` block after which all is as before.

    What is changed is known before it is changed. What is given back may be given back again, so that a Ctrl-C in the
    middle of it, or of the change, leaves nothing.

    Attributes:
        lent: what the block gets, as `with ... as lent`.
    """

    lent: Any = None
    _is_given_back = False

    def note(self) -> None:
        """Note what is about to be changed, as it is when the block begins."""

    def change(self) -> None:
        """Make the change."""

    def give_back(self) -> None:
        """Undo it, also if it was made in part, or undone before."""

    def __enter__(self) -> Any:
        self._is_given_back = False
        self.note()
        try:
            self.change()
            return self.lent
        except BaseException:
            self.give_back()
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: types.TracebackType | None) -> None:
        try:
            # What was interrupted in the middle, such as a mode of torch's that was about to end, would do so only once
            # the traceback is gone.
            if isinstance(error, KeyboardInterrupt):
                traceback.clear_frames(trace)
            self.give_back()
            self._is_given_back = True
        finally:
            if not self._is_given_back:
                self.give_back()


class RandomState(Reverted):
    """A block after which the generators of torch, numpy and Python are as before, as if nothing had been drawn.

    Args:
        model: of accelerators the generators of those that it is on are kept; None: none.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model

    def note(self) -> None:
        """Read all states."""
        model = self._model
        held = [] if model is None else [*model.parameters(), *model.buffers()]  # a norm of inputs has buffers alone
        devices = dict.fromkeys(tensor.device for tensor in held if tensor.device.type in _WITH_GENERATORS)
        self._states = [(device, _find_module(device).get_rng_state(*_list_index(device))) for device in devices]
        self._state = torch.get_rng_state()
        self._state_of_numpy = np.random.get_state()
        self._state_of_python = random.getstate()

    def give_back(self) -> None:
        """Put all states back."""
        for device, state in self._states:
            _find_module(device).set_rng_state(state, *_list_index(device))
        torch.set_rng_state(self._state)
        np.random.set_state(self._state_of_numpy)
        random.setstate(self._state_of_python)


def _find_module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _list_index(device: torch.device) -> list[torch.device]:
    """List what its module's functions want to know of a device: of the only one there can be, nothing."""
    return [] if device.type == "mps" else [device]


class Loan(Reverted):
    """A block after which a model is as it was before it.

    Each module gets back what it held: the mode, the tensors and hooks in its tables, and the values of the tensors;
    after a measurement also all weights, and what forwards have set on it, such as a mask that is made of the first
    batch. The random state and grad mode come back as well. What a forward writes elsewhere stays.

    Args:
        model: the model.
        training: the mode that it has in the block; None: the one that it has.
        is_measurement: whether bnlab alone calls models in the block, which is no training then.
        is_counted: whether calls of this model in the block are no training. What was compiled runs as it is written
            then, because compiled code sees no hooks.
        has_gradients: whether forwards in the block may take gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        training: bool | None,
        *,
        is_measurement: bool = False,
        is_counted: bool = False,
        has_gradients: bool = True,
    ) -> None:
        self._model = model
        self._training = training
        self._is_measurement = is_measurement
        self._is_counted = is_counted
        self._has_gradients = has_gradients
        self._random_state = RandomState(model)

    def note(self) -> None:
        """Note what the model holds."""
        modules = list(self._model.modules())
        # Self-tuned layers bring their buffers up to date before these are read; otherwise the block may do it.
        for module in modules:
            if isinstance(module, BatchNorm):
                module.state_dict()

        self._ids = frozenset(map(id, modules))
        self._stance: Any = None
        self._measurements = _measurements
        self._grad_mode = torch.is_grad_enabled()
        self._random_state.note()
        self._modes = [(module, module.training) for module in modules]
        self._switching = list_switching(self._model)
        # All attributes come back after a measurement. After other loans only those of modules that do more than note a
        # change of mode, and of what they contain: the rest may be the caller's work in the block.
        inside = {part for module in self._switching for part in module.modules()}
        whole = {*modules} if self._is_measurement else inside
        self._held = [_Held(module, all_attributes=module in whole) for module in modules]
        weights = [parameter for module in modules if module in whole for parameter in module.parameters(recurse=False)]
        self._values = _copy_values([*weights, *self._model.buffers(), *_list_frozen_parameters(self._model)])
        parameters = [*self._model.parameters()]
        self._gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]

    def change(self) -> None:
        """Set the mode, and count the loan."""
        global _measurements
        is_eager = self._is_counted or self._is_measurement
        if is_eager and "torch._dynamo" in sys.modules:  # else nothing was compiled, and the import takes seconds
            self._stance = torch.compiler.set_stance("force_eager")
        if self._is_measurement:
            _measurements = self._measurements + 1
        elif self._is_counted:
            _blocks[id(self)] = self._ids
        if self._is_measurement:
            # Put away, not copied: a forward may take gradients of its own, which would be added to these.
            for parameter, _, _ in self._gradients:
                parameter.grad = None
        if self._training is not None:
            # Its class may override either of the two.
            self._model.train() if self._training else self._model.eval()
        if not self._has_gradients:
            torch.set_grad_enabled(False)

    def give_back(self) -> None:
        """Give everything back, each part also if another one raises."""
        global _measurements
        torch.set_grad_enabled(self._grad_mode)
        _blocks.pop(id(self), None)
        _measurements = self._measurements
        with contextlib.ExitStack() as parts:  # the last one comes first
            parts.callback(self._random_state.give_back)
            parts.callback(self._give_back_modes)
            parts.callback(self._give_back_gradients)
            for tensor, value in self._values:
                parts.callback(_give_back_value, tensor, value)
            for held in self._held:
                parts.callback(held.give_back)
            parts.callback(self._switch_back)
            if self._stance is not None:
                parts.callback(self._stance.__exit__, None, None, None)

    def _switch_back(self) -> None:
        """Tell modules that do something when their mode changes, and were switched."""
        before = dict(self._modes)
        for module in self._switching:
            if module.training != before[module]:
                module.train(before[module])

    def _give_back_modes(self) -> None:
        # Set directly: `train` also changes submodules, and a class may override it.
        for module, mode in self._modes:
            if module.training != mode:
                module.training = mode

    def _give_back_gradients(self) -> None:
        for parameter, gradient, requires_gradient in self._gradients:
            if parameter.requires_grad != requires_gradient:
                parameter.requires_grad_(requires_gradient)
            if self._is_measurement:
                parameter.grad = gradient


class _Held:
    """What a module holds: its attributes, and what is in its tables and other containers.

    Args:
        module: the module.
        all_attributes: whether its own attributes come back, too, and not only what every module has, and a forward
            that is set on it.
    """

    def __init__(self, module: nn.Module, all_attributes: bool) -> None:
        self._attributes = vars(module)
        self._is_whole = all_attributes
        self._all = dict(self._attributes)
        self._before = {name: self._attributes[name] for name in self._list_names()}
        self._contents = [(value, value.copy()) for value in self._before.values() if type(value) in _CONTAINERS]

    def _has_other_tables(self) -> bool:
        """Return whether a table has got other tensors, modules or hooks."""
        for container, content in self._contents:
            if isinstance(container, dict) and isinstance(content, dict):
                if container.keys() != content.keys():
                    return True
                if any(container[name] is not value for name, value in content.items()):
                    return True
        return False

    def _list_names(self) -> set[str]:
        names = {*self._attributes}
        return names if self._is_whole else names & {*OF_EVERY_MODULE, "forward"}

    def give_back(self) -> None:
        """Give all of it back, in the very containers that it was in."""
        if self._has_other_tables():  # a flag beside a buffer that is registered late says that it is there
            self._is_whole = True
            self._before = self._all
        for name in self._list_names() - self._before.keys():
            del self._attributes[name]
        self._attributes.update(self._before)
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


def borrowed(model: nn.Module, *, training: bool = False) -> Loan:
    """Lend a model, in eval mode (`training`: in train mode)."""
    return Loan(model, training, is_measurement=True)


def measured(model: nn.Module, *, training: bool = False) -> Loan:
    """Lend a model whose forwards take no gradients."""
    return Loan(model, training, is_measurement=True, has_gradients=False)


def restored(model: nn.Module, *, training: bool | None = None) -> Loan:
    """Give a model back as it was after a block of the caller's, which may train other models."""
    return Loan(model, training)


def keep_random_state(model: nn.Module | None = None) -> RandomState:
    """Put the generators of torch, numpy and Python back at the end of the block, as if nothing had been drawn."""
    return RandomState(model)


def list_switching(model: nn.Module) -> list[nn.Module]:
    """List the modules that do more than note their mode when it changes, the outer ones first.

    LoRA's merge weights into others, graphs for both modes exchange them, schedule-free optimizers move weights.
    """
    plain = nn.Module.train, nn.Module.eval
    return [module for module in model.modules() if (type(module).train, type(module).eval) != plain]


Values = Sequence[tuple[Tensor, Tensor]]
"""Tensors, and the values that they held."""


def _list_frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters without gradients, which a forward may move as averages of others; none if all are so."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    # A teacher has a student. If all parameters are frozen, none of them can be an average of others.
    is_all = len(frozen) == sum(1 for _ in model.parameters())
    return [] if is_all else frozen


def _copy_values(tensors: Iterable[Tensor]) -> Values:
    by_identity = {id(tensor): tensor for tensor in tensors}
    return [(tensor, tensor.detach().clone()) for tensor in by_identity.values()]


def _give_back_value(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape != value.shape:  # as of observers, which get their size in the first forward
        tensor.data = value
        return

    if tensor.is_meta:  # which has no values
        return

    if not is_dense(tensor):  # of which torch has no comparison
        tensor.data.copy_(value)
        return

    # An expanded tensor cannot be written, so that nothing can have changed it.
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return
    # On CUDA a comparison would wait for the device, so tensors are written without one.
    if tensor.is_cuda or not torch.equal(tensor, value):
        tensor.data.copy_(value)  # .data: a backward pass still to come may have saved the tensor


def is_of_torch(module: nn.Module) -> bool:
    """Return whether a module is of torch's own class, on which forwards set no attributes."""
    return type(module).__module__.startswith("torch.nn.modules.")
