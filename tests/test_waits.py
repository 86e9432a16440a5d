"""In a step of training, and between the layers of a measurement, nobody waits for the device: seen on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnlab import population_statistics, record
from bnlab.exact.walk import Walk
from bnlab.model.reading import DeviceReader
from bnlab.nn import SelfTuned
from tests.helpers import images, measure_difference, plain, residual
from tests.waits import Waits

BLOCKS = (1, 2, 4, 8, 16, 32, 64)  # batches after which a self-tuned layer chooses its momenta


@pytest.fixture
def _on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments are left where they were read, as on an accelerator."""
    monkeypatch.setattr("bnlab.exact.population.choose_reader", lambda *_: DeviceReader())


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize("sizes", [(8,) * 6 + (5,), (8,) * 8 + (5,)])
def test_a_program_never_waits_between_layers(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()
    own_go = Walk.go

    def go(walk: Walk, progress: Callable[[], object]) -> Walk:
        with waits:
            return own_go(walk, progress)

    monkeypatch.setattr(Walk, "go", go)
    found = population_statistics(residual(), images(*sizes))

    monkeypatch.undo()
    assert not waits.counts
    assert measure_difference(found, population_statistics(residual(), images(*sizes))) < 1e-5


@pytest.mark.usefixtures("_on_device")
def test_what_is_measured_at_once_waits_for_nothing() -> None:
    waits = Waits()
    with waits:
        DeviceReader().measure(images(8)[0] + 1000)

    assert not waits.counts


@pytest.mark.usefixtures("_on_device")
def test_what_is_not_finite_on_a_device_is_refused_at_the_end() -> None:
    with pytest.raises(ValueError, match="the input of layer '1' has NaN or infinite values"):
        population_statistics(plain(), [images(8)[0] * torch.nan])


def count_waits(model: nn.Module, recorded: bool) -> list[int]:
    """How often a program waits in each of 70 steps; Adam's and torch's own waits are left out by plain descent."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    block: Any = record(model) if recorded else contextlib.nullcontext()
    counts = []
    with block:
        for x in images(*[8] * 70, side=6):
            waits = Waits()
            with waits:
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            counts.append(waits.counts.total())
    return counts


def test_recording_waits_no_more_than_training_does() -> None:
    assert count_waits(plain(), recorded=True) == count_waits(plain(), recorded=False)


def test_self_tuned_layers_wait_only_where_they_choose() -> None:
    usual = count_waits(plain(), recorded=False)
    tuned = count_waits(SelfTuned.convert(plain()), recorded=False)
    more = {step for step, waits in enumerate(tuned, start=1) if waits > usual[step - 1]}

    assert more
    assert more <= set(BLOCKS)
