"""What a self-tuned layer keeps beside its buffers: a bank of averages, and the batches that wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnlab.estimators.bank import BLOCK, Bank


class Averages:
    """A bank, and places for the moments of a layer's batches.

    Torch writes a batch's moments into a place of their own, which it does with momentum 1. The bank takes them when a
    block is full: after 1, 2, 4, …, 64, 128, 192, … batches.

    Args:
        start: [2, C], the layer's running mean and variance.
        updates: batches that have made them what they are.
        eps: the layer's.

    Attributes:
        bank: the averages after the last full block.
        shown: [2, C], what the buffers held when they were looked at last.
        is_behind: whether there are batches that the buffers do not show yet.
    """

    @torch.inference_mode(False)
    def __init__(self, start: Tensor, updates: int, eps: float) -> None:
        device = "cpu" if start.device.type == "mps" else start.device  # MPS has no float64
        wide = start.to(device).double()
        self.bank = Bank.begin(wide, updates, torch.full_like(wide[0], eps), (wide.shape[1],))
        self.shown, self.is_behind = start.clone(), False
        self._recent = set[float]()  # of the batches of the block before
        self._keep(start[None][:0])

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep(self._rows[: self._waiting])  # pickled places are no longer parts of the rows

    def _keep(self, rows: Tensor) -> None:
        """Let these moments [n, 2, C] be the only ones that wait for the bank."""
        # In new memory: a backward pass still to come may have saved the old places.
        self._waiting, self._rows = len(rows), torch.cat((rows, rows.new_zeros(BLOCK - len(rows), *rows.shape[1:])))
        values = self._rows.flatten(0, 1).unbind()
        self._places = list(zip(values[::2], values[1::2], strict=True))

    @property
    def place(self) -> tuple[Tensor, Tensor]:
        """Where torch writes the mean and the variance [C] of the next batch, which `take` counts."""
        return self._places[self._waiting]

    def fits(self, buffer: Tensor) -> bool:
        """Whether places have this type and device."""
        return (self._rows.dtype, self._rows.device) == (buffer.dtype, buffer.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def take(self) -> bool:
        """Count the batch that has been written into its place; whether the bank has taken a block with it."""
        self._waiting += 1
        self.is_behind = True
        if self._waiting < self.bank.room:
            return False
        rows = self._find_rows()
        is_full = len(rows) == self.bank.room
        if is_full:
            self._recent = set(_list_keys(rows))
            self.bank, rows = self.bank.forecast(rows.to(self.bank.eps)).end(), rows[:0]
        self._keep(rows)
        return is_full

    def _find_rows(self) -> Tensor:
        """Those that wait, without values that are not finite, and forwards that checkpointing has repeated."""
        rows = self._rows[: self._waiting]
        rows = rows[rows.isfinite().flatten(1).all(1)]
        first: dict[float, int] = {}
        for number, key in enumerate(_list_keys(rows)):
            first.setdefault(key, number)
        return rows[[number for key, number in first.items() if key not in self._recent]]

    def advance(self) -> Bank:
        """The bank after all batches so far; this one stays where it is."""
        rows = self._find_rows()
        return self.bank.forecast(rows.to(self.bank.eps)).end() if len(rows) else self.bank

    def settle(self) -> Tensor | None:
        """[2, C], what is given out after all batches so far; None before the first."""
        self.is_behind = False
        bank = self.advance()
        return bank.state() if bank.count else None

    def export(self) -> dict[str, Any]:
        """All that it holds, as tensors and numbers."""
        return {**vars(self.bank), "waiting": self._find_rows(), "shown": self.shown}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take up what `export` gave, of a layer with as many channels."""
        values: dict[str, Any] = {key: saved[key] for key in vars(self.bank)}
        for key, value in values.items():
            if isinstance(value, Tensor):
                values[key] = value.to(self.bank.eps.device, copy=True)
        self.bank = replace(self.bank, **values)
        self._keep(saved["waiting"].to(self._rows))


def _list_keys(rows: Tensor) -> list[float]:
    """A number of each batch that no other batch has."""
    return rows.double().flatten(1).sum(1).tolist()  # type: ignore[no-any-return]
