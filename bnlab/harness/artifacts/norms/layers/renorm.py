"""The layer of norm=renorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.model.layers import BatchNorm, get_running_buffers


class BatchRenorm(nn.Module):
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275): in training y = γ·(x̂·r + d) + β with x̂ = (x − μ_B)/σ_B.

        r = clip(σ_B/σ, 1/r_max, r_max), d = clip((μ_B − μ)/σ, −d_max, d_max)

    No gradient flows through r and d. μ and σ are of the running averages before this batch. The batch norm inside
    updates these by its momentum as torch does: averages of unbiased variances, where the paper averages σ_B. In eval
    mode the layer is that batch norm.

    r_max rises from 1 to 3 and d_max from 0 to 5, on straight lines: in the paper from update 5,000 on, r_max until
    update 40,000 and d_max until 25,000, of 130,000; here at the same shares of the training.

    Args:
        norm: affine; keeps the averages, and counts the batches by which the limits rise.
        steps: updates in the training.
    """

    def __init__(self, norm: BatchNorm, steps: int) -> None:
        super().__init__()
        self.norm = norm
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        is_training = self.training and self.norm.training
        if not is_training:  # nor is it where weights are frozen, with the norm inside alone in train mode
            return self.norm(x)  # type: ignore[no-any-return]

        # The correction comes first, because it reads the averages before the norm updates them by this batch.
        r, d = self._correct(x.detach())
        normalized = self.norm(x)

        # γ·(x̂·r + d) + β, computed from γ·x̂ + β
        shift = self.norm.weight * d + self.norm.bias * (1 - r)
        by_channel = (1, -1, *[1] * (x.dim() - 2))
        return normalized * r.view(by_channel) + shift.view(by_channel)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _correct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute r and d, [C]."""
        all_but_channels = [0, *range(2, x.dim())]
        # Autocast may give bfloat16, of which mean and variance would be rounded.
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), all_but_channels, correction=0)
        running_mean, running_var = get_running_buffers(self.norm)
        std = torch.sqrt(var + self.norm.eps)
        running_std = torch.sqrt(running_var + self.norm.eps)
        r_max, d_max = self.limits()

        r = std / running_std
        r = r.clamp(1 / r_max, r_max)
        d = (mean - running_mean) / running_std
        d = d.clamp(-d_max, d_max)
        return r, d

    def limits(self) -> tuple[Tensor, Tensor]:
        """Compute r_max and d_max for the next batch, without waiting for an accelerator."""
        batches = self.norm.num_batches_tracked
        assert batches is not None
        share = batches / self.steps
        r_max = 1 + 2 * _rise(share, end=40)
        d_max = 5 * _rise(share, end=25)
        return r_max, d_max


def _rise(share: Tensor, end: int) -> Tensor:
    """Rise from 0 to 1 between 5 and `end` parts in 130 of the training."""
    start = 5 / 130
    length = (end - 5) / 130
    return ((share - start) / length).clamp(0, 1)
