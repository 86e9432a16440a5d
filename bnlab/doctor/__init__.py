"""The doctor: why a model is worse in `eval()`, what it costs, and what to do. A table of causes, and one loop::

    model, batches ─▶ patient: scores of the same images, as it is and under any change
                         │
    causes (a row each) ─┼─▶ how the mistake is undone         ─▶ scores without it
                         └─▶ what averages it would have left  ─▶ bits that they are described in
                                        │
    diagnose: the loop, and the choice ◀┘ ─▶ report ─▶ repair

A change is made in one place, where torch's batch norm runs (`bnlab.model.calls`), or to the images before the first
layer, to labels, weights or modes; nothing stays. Of the changes that bring back nearly as much as the best, the one
with the fewest numbers that it was free to choose is named. Exact statistics undo many mistakes. Among these the one is
named under which the averages, as they are, take the fewest bits to describe.

`patient` has the loop over data, `fits` all that is fitted to numbers. `cause` says what a row is, `average_rows`,
`other_rows` and `general_rows` have what rows do, and `causes` is the table. `diagnose` chooses, `report` writes.
A code is a mistake, and may have two rows, which look for it in different ways.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bnlab.doctor.codes import explain

if TYPE_CHECKING:
    from bnlab.doctor.cause import Cause, Left, Trace, Undo
    from bnlab.doctor.causes import CAUSES

__all__ = ["CAUSES", "Cause", "Left", "Trace", "Undo", "explain"]


def __getattr__(name: str) -> Any:
    # They need torch, which the command `bnlab explain` should not wait for.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'causes' if name == 'CAUSES' else 'cause'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Names that nobody has asked for yet are no globals.
    return sorted({*globals(), *__all__})
