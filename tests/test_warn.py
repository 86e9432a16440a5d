"""Warnings point at the line of the user's that called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bnlab import gap, population_statistics, record
from bnlab.nn import SelfTuned


class Remembering(nn.Module):
    """A model that keeps state in a list between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = nn.BatchNorm1d(3)
        self.kept = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        self.kept[0] = float(x.mean())
        return self.second(self.first(x) * self.kept[0])


class Own(nn.BatchNorm1d):
    pass


def test_warnings_point_at_the_line_that_called() -> None:
    batches = [torch.randn(16, 3) + number for number in range(4)]
    with pytest.warns(RuntimeWarning, match="measured layer by layer") as slow:
        statistics = population_statistics(Remembering(), batches)
    with pytest.warns(UserWarning, match="are not the average") as recorded:
        model = nn.Sequential(nn.BatchNorm1d(3))
        with record(model):
            model(batches[0])
            model[0].reset_running_stats()  # type: ignore[operator]
    with pytest.warns(UserWarning, match="not of torch's own classes") as converted:
        SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(3), Own(3)))
    broken = copy.deepcopy(statistics)
    broken["first"].var[0] = -1.0
    with pytest.warns(RuntimeWarning, match="gap: ") as compared:
        gap(broken, statistics)
    for found in (slow, recorded, converted, compared):
        assert {warning.filename for warning in found} == {__file__}
