"""A stream of batch moments, and the base class of estimators that average it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bnlab.common.names import Named
from bnlab.model.arguments import require_number

# Here and below the device is named, because `torch.set_default_device` may have chosen another one.
_TORCH_EPS = torch.tensor(1e-5, dtype=torch.float64, device="cpu")


# A generated `==` would compare tensors, whose comparison has no single truth value.
@dataclass(frozen=True, eq=False)
class Stream:
    """A recorded stream of batch moments, channels of all layers side by side; everything float64.

    Args:
        start: [2, C], the running mean and variance before the first batch.
        batches: [T, 2, C], each batch's mean and *unbiased* variance (what torch's buffers average).
        counts: [T, C], values in each channel of each batch (N·H·W).
        updates: batches that the buffers had seen before the first of these (`num_batches_tracked`).
        eps: [C], or one for all channels: what the layers add to the variance.
        layers: how many of the channels belong to each layer, in order; (): all belong to one.

    >>> batches = torch.tensor([[[1.0], [2.0]], [[3.0], [8.0]]], dtype=torch.float64)  # mean 1, variance 2; 3 and 8
    >>> start = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    >>> stream = Stream(start, batches, counts=torch.full((2, 1), 2.0))
    >>> len(stream), stream.biased[:, 1, 0].tolist()  # variances with ddof 0
    (2, [1.0, 4.0])
    """

    start: Tensor
    batches: Tensor
    counts: Tensor
    updates: int = 0
    eps: Tensor = _TORCH_EPS
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.batches.shape[0]

    @property
    def steps(self) -> Tensor:
        """[T], the numbers of the recorded batches: 1, 2, ..., T."""
        return torch.arange(1, len(self) + 1, dtype=torch.float64, device="cpu")

    # The same tensor is returned each time, because `fold` groups estimators whose values are one tensor.
    @cached_property
    def biased(self) -> Tensor:
        """[T, 2, C], each batch's mean and variance with ddof 0."""
        mean, unbiased = self.batches.unbind(1)
        # Torch's buffers hold unbiased variances, so that the factor n/(n − 1) has to be undone.
        var = unbiased * (self.counts - 1) / self.counts
        return torch.stack((mean, var), dim=1)

    @cached_property
    def shift(self) -> Tensor:
        """[C], the first batch's mean: squares are taken about it, so that nothing cancels where mean ≫ deviation."""
        mean = self.batches[0, 0] if len(self) else self.start[0]
        # Even if the first batch is not finite the shift has to be, or all later squares would be NaN.
        return mean.nan_to_num(0.0, 0.0, 0.0)

    @cached_property
    def squares(self) -> Tensor:
        """[T, 2, C], each batch's mean and mean square about `shift`."""
        return self.about_shift(self.biased)

    def about_shift(self, pairs: Tensor) -> Tensor:
        """Turn mean and variance [..., 2, C] into mean and mean square about `shift`."""
        mean, var = pairs.unbind(-2)
        square = var + (mean - self.shift).square()
        return torch.stack((mean, square), dim=-2)

    def from_squares(self, pairs: Tensor) -> Tensor:
        """Invert `about_shift`."""
        mean, square = pairs.unbind(-2)
        var = square - (mean - self.shift).square()
        # Where nothing varies, rounding may give a little less than 0.
        return torch.stack((mean, var.clamp(min=0)), dim=-2)


@dataclass(frozen=True)
class Estimator(Named):
    """`state ← state + gain·(value − state)` for each batch, from the state `begin`; `read` gives mean and variance.

    Subclasses are frozen dataclasses whose fields are their parameters. They need a `name` and `gains`, or `direct`;
    the other methods have defaults, with which mean and unbiased variance are averaged. One with a field `momentum` is
    measured with each momentum of a sweep.

    >>> from bnlab.estimators import fold
    >>> @dataclass(frozen=True)
    ... class InverseRoot(Estimator):
    ...     name = "inverse_root"
    ...
    ...     def gains(self, stream):
    ...         return stream.steps**-0.5
    >>> start = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    >>> batches = torch.tensor([[[1.0], [2.0]], [[3.0], [8.0]]], dtype=torch.float64)
    >>> stream = Stream(start, batches, counts=torch.full((2, 1), 2.0))
    >>> fold([InverseRoot()], stream, [0, 1, 2])[0, :, 0, 0].round(decimals=3).tolist()  # the mean at each step
    [0.0, 1.0, 2.414]
    """

    def gains(self, stream: Stream) -> Tensor:
        """Compute the gain of each batch, in [0, 1]: float64 [T], or [T, C] or [T, 2, C] where channels differ."""
        raise NotImplementedError(f"{self.label} has no gains; `direct` computes it")

    def values(self, stream: Stream) -> Tensor:
        """Return the values that are averaged, [T, 2, C].

        Estimators that return one and the same tensor, such as a property of the stream, are folded together.
        """
        return stream.batches

    def begin(self, stream: Stream) -> Tensor:
        """Return the state before the first batch, [2, C]: `stream.start`, converted to what the values are."""
        return stream.start

    def read(self, states: Tensor, stream: Stream) -> Tensor:
        """Turn averaged values [..., 2, C] into mean and variance [..., 2, C]."""
        return states

    def direct(self, stream: Stream, positions: Sequence[int]) -> Tensor | None:
        """Compute the states after so many batches, [positions, 2, C], without the recursion; None: `fold` does it."""
        return None

    @property
    def label(self) -> str:
        """Canonical name with every parameter but the momentum, e.g. `window(k=20,pooled=False)`."""
        # In tables the momentum is a column of its own.
        name = self.full_name.leave_out("momentum")
        return str(name)


def check_momentum(momentum: float) -> None:
    """Raise TypeError unless `momentum` is a number, ValueError unless it lies in (0, 1].

    >>> check_momentum(0.1)
    >>> check_momentum(1.5)
    Traceback (most recent call last):
    ...
    ValueError: momentum=1.5: it is the weight of the new batch and lies in (0, 1]; for a decay use EMA.from_decay
    """
    message = f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]"
    require_number(momentum, lambda m: 0 < m <= 1, f"{message}; for a decay use EMA.from_decay")
