"""Averaging recorded moments into the layers' buffers: for all layers of a forward at once."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bnlab.model.layers import BatchNorm, get_running_buffers


class BufferAverages:
    """Averages batch moments into running buffers, as torch's own batch norm does with its momentum.

    While the model runs, the moments wait for its end, where one operation takes those of all layers. What reads the
    buffers before, an evaluation within the forward for example, calls `write`.
    """

    def __init__(self) -> None:
        self._is_in_forward = False
        self._layers = set[BatchNorm]()
        self._waiting: dict[float, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by weight: (buffer, moment) [C]

    def begin_forward(self, *_: object) -> None:
        """Let moments wait from now on; a hook before the model's forward."""
        self.write()  # of a forward that has failed
        self._is_in_forward = True

    def end_forward(self, *_: object) -> None:
        """Write what waits; a hook after the model's forward."""
        self._is_in_forward = False
        self.write()

    def add(self, layer: BatchNorm, moments: tuple[Tensor, Tensor], weight: float) -> None:
        """Average the mean and the variance [C] of a batch into the layer's buffers, by this weight."""
        if layer in self._layers:  # it is called several times in the forward
            self.write()
        self._layers.add(layer)
        self._waiting[weight].extend(zip(get_running_buffers(layer), moments, strict=True))
        if not self._is_in_forward:
            self.write()

    def write(self) -> None:
        """Write into the buffers what waits for it."""
        for weight, pairs in self._waiting.items():
            buffers = [buffer.data for buffer, _ in pairs]  # .data: a backward pass still to come may have saved them
            moments = [moment for _, moment in pairs]
            average = get_ema_multi_avg_fn(1 - weight)
            average(buffers, moments, None)  # type: ignore[no-untyped-call]
        self._waiting.clear()
        self._layers.clear()
