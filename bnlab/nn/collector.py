"""The batches that a layer is trained on, as its bank of averages takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnlab.estimators.bank import BLOCK, Bank

_NOT_WRITTEN = -1.0  # as a variance; with momentum 1 torch adds 0 times this to the batch's


class Collector:
    """Places for the moments of a layer's batches, and the bank that takes them a block at a time.

    What a batch costs in training is that torch writes its moments into a place of their own, which it does with
    momentum 1. The bank takes them when a block is full: after 1, 2, 4, …, 64, 128, 192, … batches.

    Args:
        start: [2, C], the layer's running mean and variance; places have its type and device.
        updates: batches that have made them what they are.
        eps: the layer's.

    Attributes:
        bank: the averages after the last full block.
    """

    def __init__(self, start: Tensor, updates: int, eps: float) -> None:
        self._eps = eps
        self.begin(start, updates)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A process that is given a model shares the memory of its tensors with the one that gave it.
        vars(self).update(state, _places=state["_places"].clone())

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, start: Tensor, updates: int) -> None:
        """Forget all batches, and begin from `start`."""
        wide = start.to(_choose_device(start.device)).double()
        self.bank = Bank.begin(wide, updates, torch.full_like(wide[0], self._eps), (wide.shape[1],))
        self._keep(start[None][:0])

    def _keep(self, rows: Tensor) -> None:
        """Let these moments [n, 2, C] be the only ones that wait for the bank."""
        self._places = rows.new_zeros(BLOCK, *rows.shape[1:])
        self._places[:, 1] = _NOT_WRITTEN
        self._places[: len(rows)] = rows
        self._waiting = len(rows)

    def count_batches(self) -> int:
        """How many batches have got a place since the averages began."""
        return self.bank.count + self._waiting

    def make_place(self) -> tuple[Tensor, Tensor]:
        """Where torch shall write the mean and the variance [C] of the next batch.

        A batch that is not finite in some channel is left out, as one whose moments are never written.
        """
        if self._waiting == self.bank.room:
            self._settle()
        mean, var = self._places[self._waiting].unbind()
        self._waiting += 1
        return mean, var

    def make_scratch(self) -> tuple[Tensor, Tensor]:
        """As `make_place`, for a batch that is not to be taken."""
        mean, var = torch.zeros_like(self._places[0]).unbind()
        return mean, var

    @torch.inference_mode(False)
    @torch.no_grad()
    def _settle(self) -> None:
        """Let the bank take the batches that wait, if they fill a block."""
        rows = self._find_whole_rows()
        if len(rows) == self.bank.room:
            self.bank, rows = self.bank.forecast(self._widen(rows)).end(), rows[:0]
        self._keep(rows)

    def _find_whole_rows(self) -> Tensor:
        rows = self._places[: self._waiting]
        whole = (rows.isfinite().all(1) & (rows[:, 1] >= 0)).all(1)
        return rows[whole]

    def _widen(self, rows: Tensor) -> Tensor:
        return rows.to(self.bank.eps)

    @torch.inference_mode(False)
    @torch.no_grad()
    def state(self) -> Tensor | None:
        """[2, C], what is given out after all batches so far; None before the first."""
        rows = self._find_whole_rows()
        if len(rows):
            return self.bank.forecast(self._widen(rows)).state(len(rows))
        return self.bank.state() if self.bank.count else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def advance(self) -> Bank:
        """The bank after all batches so far; this one stays where it is."""
        rows = self._find_whole_rows()
        return self.bank.forecast(self._widen(rows)).end() if len(rows) else self.bank

    @torch.inference_mode(False)
    @torch.no_grad()
    def move(self, like: Tensor) -> None:
        """Have places of the type and on the device of `like`, and the bank there too."""
        device = _choose_device(like.device)
        moved: dict[str, Any] = {key: value.to(device) for key, value in _list_tensors(self.bank).items()}
        self.bank = replace(self.bank, **moved)
        self._keep(self._find_whole_rows().to(like))

    def export(self) -> dict[str, Any]:
        """All that it holds, as tensors and numbers."""
        tensors = _list_tensors(self.bank) | {"waiting": self._find_whole_rows()}
        return {"count": self.bank.count, "warm": self.bank.warm} | tensors

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `export` gave, of a layer with as many channels."""
        tensors: dict[str, Any] = {key: state[key].to(own) for key, own in _list_tensors(self.bank).items()}
        self.bank = replace(self.bank, count=state["count"], warm=state["warm"], **tensors)
        self._keep(state["waiting"].to(self._places))


def _list_tensors(bank: Bank) -> dict[str, Tensor]:
    return {key: value for key, value in vars(bank).items() if isinstance(value, Tensor)}


def _choose_device(device: torch.device) -> torch.device:
    """Where the bank lies: beside the layer, but for devices without float64."""
    return torch.device("cpu") if device.type == "mps" else device
