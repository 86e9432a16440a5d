"""Which thread has borrowed which modules."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

# Modules that are lent now, by identity, and the thread that has them.
_loans: list[tuple[int, set[int]]] = []
_loans_lock = threading.Lock()


@contextlib.contextmanager
def lent_to_this_thread(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block other threads cannot borrow the modules; ValueError if one of them has."""
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


def count_loans_of(module: nn.Module) -> int:
    """How many blocks of any thread have borrowed it now."""
    return sum(id(module) in lent for _, lent in list(_loans))


def is_lent(module: nn.Module) -> bool:
    """Whether a block of any thread has borrowed it."""
    return count_loans_of(module) > 0


def refuse_other_threads(model: nn.Module) -> None:
    """Let other threads not call a borrowed model, read or load its state: ValueError there until it is given back.

    Parts of it they may call: the forward itself may have begun them. Deep copies nobody can refuse them.
    """
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_state_dict_pre_hook(_refuse_other_thread)
            module.register_load_state_dict_pre_hook(_refuse_other_thread)
    compiled = vars(model).get("_modules", {}).get("_orig_mod")  # what is inside of a compiled one
    for called in (model, *([compiled] if isinstance(compiled, nn.Module) else [])):
        called.register_forward_pre_hook(_refuse_other_thread)


def _refuse_other_thread(module: nn.Module, *_: object) -> None:
    check_not_lent([module])


def check_not_lent(modules: Iterable[nn.Module]) -> None:
    """ValueError if another thread has borrowed one of the modules."""
    thread, wanted = threading.get_ident(), set(map(id, modules))
    if any(other != thread and not wanted.isdisjoint(lent) for other, lent in list(_loans)):
        raise ValueError(
            "the model is in use by a measurement or by bnlab.using in another thread; wait for it, or use a deep copy "
            "that was made before (a forward that is measured has to run in the thread that measures)"
        )
