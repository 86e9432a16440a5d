"""Modes of a borrowed model, whose own `train` and `eval` may do more than to set flags."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnlab.borrowing import KeptTensors, borrowed, is_plain
from bnlab.layers import BatchNorm

_MODES = ("mode", "training", "is_training", "is_train", "train_mode", "training_mode")  # arguments of own `train`s
# The same, which may mean something else too.
_FLAGS = ("m", "b", "on", "flag", "enable", "enabled", "state", "status", "train")


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """A mode for a borrowed model; what its own `train` or `eval` does to weights (merged adapters) is undone.

    What these do elsewhere (to the graph that runs, to averages in an object of another kind) they undo themselves:
    they are called again with the mode of before. Only then weights are put back, of which these may be copies.
    """
    own, modes = _list_with_own_modes(model), [(module, module.training) for module in model.modules()]
    changes = _enter_mode(model, training, _list_weights(own))
    flagless = _list_flagless(own, dict(modes), training)
    try:
        yield
    finally:
        if any(module.training != training for module in own):
            _set_mode(model, training)  # what the block has made of it is no part of what it has trained
        # All of them before one is written, as two may share memory.
        trained = [_take_over(parameter.detach(), given, value) for parameter, _, value, given in changes]
        if own:
            with KeptTensors(_list_weights(own)).restored(unseen=True), contextlib.suppress(Exception):
                for module in flagless:
                    _set_mode(module, not training, is_part=module is not model)
                give_modes(modes)  # a model for inference alone may refuse
        for (parameter, memory, *_), values in zip(changes, trained, strict=True):
            parameter.data = memory
            parameter.data.copy_(values)  # without a trace: a backward pass may be still to come


def _list_with_own_modes(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_own_modes(module)]


def _has_own_modes(module: nn.Module) -> bool:
    return _has_own(module, "train") or _has_own(module, "eval")


def _has_own(module: nn.Module, name: str) -> bool:
    """Whether it overrides this method of torch's, by its class or itself; a flag of that name is none."""
    return getattr(type(module), name) != getattr(nn.Module, name) or callable(vars(module).get(name))


def _list_flagless(modules: Iterable[nn.Module], before: Mapping[nn.Module, bool], training: bool) -> list[nn.Module]:
    """Those that are in train mode as ever, other than parts that have been put into a mode: they only pass it on."""
    found = list[nn.Module]()
    for module in modules:
        modes = [(before[part], part.training) for part in module.modules() if part is not module and part in before]
        were_off = not any(old for old, _ in modes)  # else it has parts that somebody has frozen
        if before[module] and module.training and any(old != new for old, new in modes) and (were_off or not training):
            found.append(module)
    return found


def keep_weights_of_own_modes(model: nn.Module) -> KeptTensors:
    """Weights that a module's own `train` or `eval` may write, also when a loader calls it."""
    return KeptTensors(_list_weights(_list_with_own_modes(model)))


def _list_weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if not is_lazy(p) and is_plain(p)))


def _take_over(now: Tensor, given: Tensor, value: Tensor) -> Tensor:
    """`value`, changed as `given` has been changed to `now`."""
    return torch.where((now == given) | given.isnan(), value, value + (now - given))


def _enter_mode(
    model: nn.Module, training: bool, parameters: Iterable[nn.Parameter]
) -> list[tuple[nn.Parameter, Tensor, Tensor, Tensor]]:
    """Those of `parameters` that this changes: each with its memory and values before, and the values it is given."""
    before = [(p, p.detach(), p.detach().clone()) for p in parameters]
    # A second `eval` may lose what the first has put aside; a second `train` comes with every epoch.
    if training or any(module.training for module in model.modules()):
        _set_mode(model, training)
    return [
        (parameter, memory, value, parameter.detach().clone())
        for parameter, memory, value in before
        if parameter.data_ptr() != memory.data_ptr() or not torch.equal(parameter, value)
    ]


def find_left_in_eval(model: nn.Module, layers: Mapping[str, BatchNorm]) -> list[str]:
    """Names of layers that stay in eval mode where the model is put into train mode: of a frozen part, say."""
    if not _list_with_own_modes(model) or not _is_mode_setter(model.train):
        return []
    with borrowed(model), contextlib.suppress(Exception), in_mode(model, training=True):
        return [name for name, layer in layers.items() if not layer.training]
    return []  # a model for inference alone may refuse


def _is_mode_setter(train: Any) -> bool:
    """Whether a model's `train` sets the mode, as torch's does; some people's own trains the model.

    By what its first argument is called or may be, and where that does not tell by what its code names: torch's `train`
    (any part's or the flag, where it takes no argument), and no backward pass.
    """
    if not callable(train):  # a flag of that name
        return False
    parameters = list(inspect.signature(train).parameters.values())
    if any(p.name in _MODES or p.kind == p.VAR_POSITIONAL for p in parameters):
        return True
    names = {*getattr(getattr(inspect.unwrap(train), "__code__", None), "co_names", ())}
    if "backward" in names:
        return False
    if not parameters:
        return bool({"train", "training"} & names)
    first, *others = parameters
    bases = {base.__name__ for base in type(getattr(train, "__self__", None)).__mro__}
    is_flag = isinstance(first.default, bool) or first.annotation in (bool, "bool") or first.name in _FLAGS
    calls_torch = "train" in names and not names.isdisjoint({"super", "Module"} | bases)
    return calls_torch and is_flag and all(p.default is not p.empty for p in others)


def give_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """A model, which comes first, and its parts their modes, by their own `train` or `eval` where there are any."""
    for place, (module, mode) in enumerate(modes):
        if module.training != mode and _has_own_modes(module):  # as it is now: one around it may have set it
            _set_mode(module, mode, is_part=place > 0)
    for module, mode in modes:
        if module.training != mode:
            module.training = mode


def _set_mode(module: nn.Module, training: bool, *, is_part: bool = False) -> None:
    """By its own `train` or `eval`, of which it may override one alone; by torch's where its `train` is another thing.

    `is_part`: of a model; torch calls a part's `train` with the mode, whatever it does.
    """
    if not training and _has_own(module, "eval"):
        module.eval()
    elif not (is_part or _is_mode_setter(module.train)):
        nn.Module.train(module, training)
    elif any(
        p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in inspect.signature(module.train).parameters.values()
    ):
        module.train(training)  # whatever the argument is called
    else:
        module.train()
