"""Recording layers that keep the moments of their batches themselves."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from bnlab.borrowing import count_writes
from bnlab.estimators import Predictive, fold
from bnlab.layer_trace import LayerTrace
from bnlab.nn.self_tuned import SelfTuned
from bnlab.recording.recorder import Loan, Recorder
from bnlab.recording.watch import Average, Watch
from bnlab.trace import make_stream


class SelfTunedRecorder(Recorder):
    """The hooks of a self-tuned layer: nothing is lent, what the layer has kept of a call is the entry."""

    layer: SelfTuned

    def _make_watch(self) -> Watch:
        return _BankWatch(self.layer, self._entries, self._get_averages()[1])

    def _is_seen_by_others(self) -> bool:
        return False

    def _lend(self, count: int, held: Average, own: Average) -> None:
        slot = self._trace.slot(self._entries)
        self._loan = Loan(slot, count, self._counter.find_step(), held, own, threading.get_ident())

    def _take_entry(self, loan: Loan, updates: int, output: object) -> None:
        self._loan = None
        moments = self.layer.upkeep.last
        if output is None or moments is None:  # the call has raised, or repeated another
            return
        self._check_updates(updates)
        for place, value in zip(loan.slot, moments, strict=True):
            place.copy_(value)
        self._append(loan.values, loan.step, 1.0)  # a momentum as any other: it has none


class _BankWatch(Watch):
    """Tells what else than recorded calls has made the averages of a self-tuned layer."""

    def __init__(self, layer: SelfTuned, entries: LayerTrace, own: Average) -> None:
        self._upkeep = layer.upkeep
        super().__init__(layer, entries, own)

    def look(self, own: Average) -> None:
        super().look(own)
        self._beginnings = self._upkeep.beginnings

    def _keep(self, values: Tensor | None) -> None:
        # What the calls have left is computed.
        self._left, self._left_values = None, ()

    def _go_back(self) -> None:
        self.updates = self._entries.updates_now

    def is_due(self) -> bool:
        return False

    def is_written(self, own: Average) -> bool:
        # The layer itself writes its buffers whenever somebody looks.
        self._upkeep.begin_where_written(self._buffers, certainly=not self._upkeep.is_behind)
        return (
            self._upkeep.beginnings != self._beginnings
            or self._entries.truncated
            or count_writes(self._batches) != self._batches_version
        )

    def take_up(self, own: Average, step: int) -> None:
        self._upkeep.catch_up(self._buffers)
        super().take_up(own, step)

    def _fit(self, values: Tensor, updates: int) -> bool:
        # Of values that came back without their averages, as from a plain dictionary, the layer has begun again.
        begun = self._upkeep.beginnings != self._beginnings and not self._upkeep.collector.count_batches()
        return not (begun and self._entries.calls_since_start) and super()._fit(values, updates)

    def is_overwritten(self, own: Average) -> bool:
        # A checkpoint may bring averages of other batches with it; so may the block's own beginning, which is no write.
        self._upkeep.catch_up(self._buffers)
        return bool(self._entries.restarts) and super().is_overwritten(own)

    def _holds(self, values: Tensor) -> bool:
        """Whether these are what the estimator gives out after all that is recorded, to rounding."""
        entries = self._entries
        first = entries.last_start.entries
        state = fold([Predictive()], make_stream([entries], -1, first, None), [len(entries) - first])[0, 0]
        scale = torch.stack((state[0].abs() + state[1].sqrt(), state[1]))
        return bool(((values.cpu().double() - state).abs() <= 8 * torch.finfo(values.dtype).eps * scale).all())
