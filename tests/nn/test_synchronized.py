"""Layers that take the statistics of all processes: two of these train as one does on both batches together."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.helpers import plain, run_two_ranks, without_dropout

STEPS = 70
SIZES = (6, 3)  # images of each process in a batch


def images(step: int) -> Tensor:
    """[9, 3, 8, 8], those of all processes; they drift, so that there is something to choose."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(sum(SIZES), 3, 8, 8, generator=generator, dtype=torch.float64) + 0.05 * step


def network() -> nn.Module:
    """The same whatever number of processes trains it."""
    return without_dropout(plain()).double()


def train(model: nn.Module, begin: int = 0, end: int = sum(SIZES)) -> None:
    """On the images from `begin` to `end` of each batch; the loss is the sum over all processes."""
    parameters = list(model.parameters())
    for step in range(STEPS):
        loss = (model(images(step)[begin:end]) - 1).square().sum() / 100
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            if end - begin < sum(SIZES):
                torch.distributed.all_reduce(gradient)
            p.data -= 0.02 * gradient


RANKS = """
from bnlab import record, replay
from bnlab.estimators import EMA
from bnlab.nn import SelfTuned, momenta
from tests.nn.test_synchronized import SIZES, network, train
from tests.sync_batch_norm import on_cpu

def share(value):
    both = [None, None]
    dist.all_gather_object(both, value)
    return both

begin = sum(SIZES[:rank])
part = begin, begin + SIZES[rank]
with on_cpu():
    tuned = SelfTuned.convert(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network()))
    train(tuned, *part)
    for other in share(tuned.state_dict()):
        for key, value in tuned.state_dict().items():
            assert torch.equal(value, other[key]), key
    first, second = share(momenta(tuned))
    assert first.equals(second) and first["momentum"].nunique() > 1

    synchronized = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network())
    with record(synchronized) as trace:
        train(synchronized, *part)
    for name, statistics in replay(trace, EMA(0.1))[trace.last_step].items():
        torch.testing.assert_close(statistics.mean, synchronized.get_submodule(name).running_mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(statistics.var, synchronized.get_submodule(name).running_var, rtol=1e-9, atol=1e-9)
    assert set(trace.layers["1"].counts) == {64 * SIZES[rank]}

alone = SelfTuned.convert(network())
train(alone)
for key, value in alone.state_dict().items():
    torch.testing.assert_close(tuned.state_dict()[key], value, rtol=1e-9, atol=1e-9)
assert first["momentum"].equals(momenta(alone)["momentum"])
"""


def test_two_processes_choose_as_one_with_both_batches(tmp_path: Path) -> None:
    run_two_ranks(RANKS, tmp_path)
