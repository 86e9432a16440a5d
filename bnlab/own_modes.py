"""Which methods of people's own set a model's mode, and setting it by them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

_MODES = ("mode", "training", "is_training", "is_train", "train_mode", "training_mode")  # arguments of own `train`s
# The same, which may mean something else too.
_FLAGS = ("m", "b", "on", "flag", "enable", "enabled", "state", "status", "train")


def list_with_own_modes(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_own_modes(module)]


def _has_own_modes(module: nn.Module) -> bool:
    return _has_own(module, "train") or _has_own(module, "eval")


def _has_own(module: nn.Module, name: str) -> bool:
    """Whether it overrides this method of torch's, by its class or itself; a flag of that name is none."""
    return getattr(type(module), name) != getattr(nn.Module, name) or callable(vars(module).get(name))


def _is_mode_setter(train: Any) -> bool:
    """Whether a model's `train` sets the mode, as torch's does; some people's own trains the model.

    By what its first argument is called or may be, and where that does not tell by what its code names: torch's
    `train`, and no backward pass.
    """
    if not callable(train):  # a flag of that name
        return False
    parameters = list(inspect.signature(train).parameters.values())
    if any(p.kind == p.VAR_POSITIONAL or _is_mode(p) for p in parameters):
        return True
    names = {*getattr(getattr(inspect.unwrap(train), "__code__", None), "co_names", ())}
    if "backward" in names:
        return False
    if not parameters:
        return True
    first, *others = parameters
    bases = {base.__name__ for base in type(getattr(train, "__self__", None)).__mro__}
    is_flag = isinstance(first.default, bool) or first.annotation in (bool, "bool") or first.name in _FLAGS
    calls_torch = "train" in names and not names.isdisjoint({"super", "Module"} | bases)
    return calls_torch and is_flag and all(p.default is not p.empty for p in others)


def _is_mode(parameter: inspect.Parameter) -> bool:
    """Whether it is named so, and no word for a way of training."""
    return parameter.name in _MODES and not isinstance(parameter.default, str)


def give_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """A model, which comes first, and its parts their modes, by their own `train` or `eval` where there are any."""
    for place, (module, mode) in enumerate(modes):
        if module.training != mode and _has_own_modes(module):  # as it is now: one around it may have set it
            set_mode(module, mode, is_part=place > 0)
    for module, mode in modes:
        if module.training != mode:
            module.training = mode


def set_mode(module: nn.Module, training: bool, *, is_part: bool = False) -> None:
    """By its own `train` or `eval`, of which it may override one alone; by torch's where these are other things.

    `is_part`: of a model; torch calls a part's `train` with the mode, whatever it does.
    """
    if not training and _has_own(module, "eval") and not _requires_arguments(module.eval):
        was_partly = not all(part.training for part in module.modules())
        changes, returned = _call_eval(module)
        # One that gives the module, as torch's, may itself have left it so: from train mode it shows what it changes.
        if not changes and was_partly and returned is module:
            set_mode(module, True, is_part=is_part)
            changes, _ = _call_eval(module)
        if changes:
            return
    if not (is_part or _is_mode_setter(module.train)):
        nn.Module.train(module, training)
    elif any(
        p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in inspect.signature(module.train).parameters.values()
    ):
        module.train(training)  # whatever the argument is called
    else:
        module.train()


def _call_eval(module: nn.Module) -> tuple[bool, Any]:
    """Whether its own `eval` has put anything into eval mode, or has evaluated the model; and what it has returned."""
    _, *parts = module.modules()
    before = [part.training for part in parts]
    returned: Any = module.eval()
    after = [part.training for part in parts]
    return not module.training or before != after or (bool(parts) and not any(after)), returned


def _requires_arguments(method: Any) -> bool:
    """Whether it cannot be called as torch's `eval`: some people's own evaluates the model on data."""
    parameters = inspect.signature(method).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
