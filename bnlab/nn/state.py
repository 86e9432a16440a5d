"""State of a self-tuned layer beside its buffers: a bank of averages, and the batches that wait for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnlab.common.precision import to_float64
from bnlab.estimators.bank import BATCHES_PER_BLOCK, MOMENTA, Bank

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers by the bytes of a number
_SAVED = ("count", "warm", "averages", "scores", "chosen", "eps")  # fields of a bank that a state dict has
_GOLDEN = 0x1E3779B97F4A7C15  # the golden ratio in bits, but for the first: its multiples have no pattern


class TunedState:
    """Bank of averages, and places for the moments of a layer's batches.

    Torch writes a batch's moments into a place of their own, because its momentum is 1. The bank takes them when a
    block is full: after 1, 2, 4, …, 64, 128, 192, … batches. So the calls for each batch are, in this order:

        mean, var = state.place       # where torch's batch norm, at momentum 1, writes the batch's moments
        state.average_into(buffers)   # the buffers take one step, at the momenta that were chosen last
        state.count_batch()           # moves on to the next place; at the end of a block the bank takes all of it
        state.settle()                # if that was so, or when the buffers are read: momenta are chosen again

    Args:
        start: [2, C], the layer's running mean and variance.
        updates: the number of batches that they average.
        eps: the layer's eps.

    Attributes:
        bank: the averages after the last full block.
        shown: [2, C], what the buffers hold unless something else has written them.
        momenta: of mean and variance, as they were chosen last.
        has_pending: whether there are batches after which no momenta have been chosen yet.
    """

    @torch.inference_mode(False)
    def __init__(self, start: Tensor, updates: int, eps: float) -> None:
        wide = to_float64(start)
        eps_by_channel = torch.full_like(wide[0], eps)
        self.bank = Bank.begin(wide, updates, eps_by_channel, (wide.shape[1],))
        self.shown = start.clone()
        self.momenta = _read_momenta(self.bank)
        self.has_pending = False
        self._recent_fingerprints = set[int]()  # of the batches of the last full block
        self._keep(start.new_empty(0, *start.shape))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep(self._rows[: self._waiting])  # pickled places are no longer parts of the rows

    def _keep(self, rows: Tensor) -> None:
        """Let these moments [n, 2, C] be the only ones that wait for the bank."""
        unused = rows.new_zeros(BATCHES_PER_BLOCK - len(rows), *rows.shape[1:])
        self._waiting = len(rows)
        # In new memory: a backward pass still to come may have saved the old places.
        self._rows = torch.cat((rows, unused))
        means = self._rows[:, 0].unbind()
        variances = self._rows[:, 1].unbind()
        self._places = list(zip(means, variances, strict=True))

    @property
    def place(self) -> tuple[Tensor, Tensor]:
        """Place where torch writes the mean and the variance [C] of the next batch."""
        return self._places[self._waiting]

    def fits(self, buffer: Tensor) -> bool:
        """Return whether places have this buffer's type and device."""
        return self._rows.dtype == buffer.dtype and self._rows.device == buffer.device

    @torch.inference_mode(False)
    @torch.no_grad()
    def average_into(self, buffers: tuple[Tensor, Tensor]) -> None:
        """Average the batch in the place for the next one into the buffers, at the momenta that were chosen last.

        A batch that is not finite changes nothing. What is shown takes the same steps as the buffers, and is the same
        bit for bit unless something else has written these.
        """
        row = self._rows[self._waiting]
        # An `if` would wait for an accelerator at each batch. Instead, a row that is not finite is replaced
        # by what the buffers hold, and averaging that into them changes nothing.
        values = row.where(row.isfinite().all(), self.shown)
        number = self.bank.count + self._waiting + 1
        for buffer, shown, value, momentum in zip(buffers, self.shown, values, self.momenta, strict=True):
            # Averages that began from the buffers move as torch's own do. Others have their start divided out, as those
            # of the bank have.
            gain = momentum if self.bank.warm else _compute_gain(momentum, number)
            buffer.data.lerp_(value, gain)
            shown.lerp_(value, gain)

    @torch.inference_mode(False)
    @torch.no_grad()
    def count_batch(self) -> bool:
        """Count the batch that has been written into its place; return whether the bank has taken a block with it."""
        self._waiting += 1
        self.has_pending = True
        if self._waiting < self.bank.room:
            return False

        rows = self._select_rows()
        # Rows that were left out make room for further batches in the same block.
        is_full = len(rows) == self.bank.room

        if is_full:
            self._recent_fingerprints = set(_list_fingerprints(rows))
            self.bank = self._forecast(rows)
            rows = rows[:0]
        self._keep(rows)
        return is_full

    def _select_rows(self) -> Tensor:
        """Select the rows that wait, without those that are not finite, and each of several equal ones once.

        Activation checkpointing runs a forward twice, which gives a row twice; see `SelfTuned` for what else may.
        """
        rows = self._rows[: self._waiting]
        is_finite = rows.isfinite().flatten(1).all(1)
        rows = rows[is_finite]

        first: dict[int, int] = {}
        for number, fingerprint in enumerate(_list_fingerprints(rows)):
            first.setdefault(fingerprint, number)
        # Rows of the block before are left out, too: a checkpointed forward may run again after its first run has
        # filled the block.
        numbers = [number for fingerprint, number in first.items() if fingerprint not in self._recent_fingerprints]
        return rows[numbers]

    def _forecast(self, rows: Tensor) -> Bank:
        block = self.bank.forecast(to_float64(rows).to(self.bank.eps))
        return block.end()

    def advance(self) -> Bank:
        """Compute the bank after all batches so far; this one stays where it is."""
        rows = self._select_rows()
        return self._forecast(rows) if len(rows) else self.bank

    def settle(self) -> Tensor | None:
        """Compute the running mean and variance [2, C] after all batches so far; None before the first."""
        self.has_pending = False
        bank = self.advance()
        self.momenta = _read_momenta(bank)
        return bank.state() if bank.count else None

    def export(self) -> dict[str, Any]:
        """Return all that it holds, as tensors and numbers."""
        of_bank = {field: getattr(self.bank, field) for field in _SAVED}
        return {**of_bank, "waiting": self._select_rows(), "shown": self.shown}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `export` gave, of a layer with as many channels."""
        device = self.bank.eps.device
        values: dict[str, Any] = {}
        for field in _SAVED:
            value = saved[field]
            values[field] = value.to(device, copy=True) if isinstance(value, Tensor) else value
        self.bank = replace(self.bank, **values)
        self.momenta = _read_momenta(self.bank)
        self._keep(saved["waiting"].to(self._rows))


def _read_momenta(bank: Bank) -> tuple[float, float]:
    """Read the momenta that a bank of one layer has chosen for its mean and its variance."""
    of_mean, of_var = MOMENTA[bank.chosen[:, 0].cpu()].tolist()
    return of_mean, of_var


def _compute_gain(momentum: float, number: int) -> float:
    """Compute the weight of batch `number`, from 1, in an average that begins with the first batch."""
    # `log1p(-1)` below would raise.
    if momentum == 1:
        return 1.0
    # In this form nothing cancels; 1 − (1 − m)^t would at a small momentum.
    weight_of_all = -math.expm1(number * math.log1p(-momentum))
    return min(1.0, momentum / weight_of_all)


def _list_fingerprints(rows: Tensor) -> list[int]:
    """Compute a fingerprint of each row [2, C]: rows that are equal bit for bit have the same, others hardly ever."""
    # Whole numbers, whose sum does not depend on the order. Only these sums leave the device.
    bits = rows.flatten(1).contiguous().view(_BITS[rows.element_size()]).long()
    # Weighted, because the same few values may stand in other places. Products and sums wrap around.
    numbers = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    weights = 2 * _GOLDEN * numbers + 1
    sums = (weights * bits).sum(1)
    return sums.tolist()  # type: ignore[no-any-return]
