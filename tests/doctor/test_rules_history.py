"""Rules that look at a history or at ranks: each fires on a planted fault, and stays quiet on what is no fault."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bnlab import diagnose, population_statistics, record
from bnlab.doctor.rules.bn401 import RanksDiffer
from tests.doctor.patients import (
    get_finding,
    list_codes,
    make_batches,
    make_healthy,
    make_net,
    take_steps,
    train,
)
from tests.helpers import run_two_ranks

TEST_BATCHES = make_batches(20, seed=7)


# BN103


class Checkpointed(nn.Module):
    """A network whose first block runs again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = make_net()[:3]
        self.head = make_net()[3:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


def test_bn103_warns_of_layers_that_checkpointing_updates_twice() -> None:
    model = Checkpointed()
    with record(model) as trace:
        train(model, make_batches(5))

    finding = get_finding(diagnose(model, trace=trace), "BN103")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("block.1",))
    assert finding.signs.evidence == "2 updates a step, of the same batch in 1 of 1 layers"


def test_bn103_notes_several_batches_a_step() -> None:
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with record(model) as trace:
        for number, (inputs, labels) in enumerate(make_batches(12), start=1):
            F.cross_entropy(model(inputs), labels).backward()
            if number % 3 == 0:
                optimizer.step()

    finding = get_finding(diagnose(model, trace=trace), "BN103")

    assert finding is not None
    assert finding.severity == "note"
    assert finding.signs.evidence == "3 updates a step, of different batches"


def test_bn103_is_quiet_with_an_update_a_step() -> None:
    model = make_net()
    with record(model) as trace:
        train(model, make_batches(5))

    assert "BN103" not in list_codes(diagnose(model, trace=trace))


# BN104 and BN105


def forward_in_train_mode(model: nn.Module, times: int) -> None:
    model.train()
    with torch.no_grad():
        for _ in range(times):
            model(torch.zeros(4, 8))
    model.eval()


def test_bn105_finds_forwards_in_train_mode_between_two_checkpoints() -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    forward_in_train_mode(model, times=3)

    finding = get_finding(diagnose(model, before=before), "BN105")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("1", "4"))
    assert finding.signs.evidence == "3 updates, while 8 tensors of weights stayed the same"


def test_bn105_is_quiet_after_training() -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    train(model, make_batches(2))

    assert list_codes(diagnose(model.eval(), before=before)) == []


def test_bn105_is_quiet_after_a_recalibration() -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    population_statistics(model, TEST_BATCHES).write_to(model)

    assert list_codes(diagnose(model, before=before)) == []


def test_bn104_finds_frozen_layers_that_were_updated_since() -> None:
    model = make_healthy()
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model)
    train(model, make_batches(4))

    finding = get_finding(diagnose(model.eval(), before=before), "BN104")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("1",))
    assert finding.signs.evidence == "4 updates since the earlier checkpoint"


def test_bn104_is_quiet_about_frozen_layers_that_stayed_as_they_were() -> None:
    model = make_healthy()
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model)
    model[4].train()
    model[1].eval()
    take_steps(model, make_batches(4))

    assert list_codes(diagnose(model.eval(), before=before)) == []


# BN106 and BN107


def change_weights(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change all matrices of weights."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(change(parameter.data))


def prune(weight: Tensor) -> Tensor:
    """Leave the larger half."""
    return weight.where(weight.abs() > weight.abs().median(), 0.0)


def round_rows(weight: Tensor) -> Tensor:
    """Round each row to five levels."""
    step = weight.abs().amax(1, keepdim=True) / 2
    return (weight / step).round() * step


def move(weight: Tensor) -> Tensor:
    """Move all weights, as further training or an average of other weights does."""
    generator = torch.Generator().manual_seed(0)
    return weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)


CHANGES = pytest.mark.parametrize(
    ("change", "code"), [(prune, "BN106"), (round_rows, "BN106"), (move, "BN107")], ids=["prune", "round", "move"]
)


@CHANGES
def test_weights_that_moved_alone_are_found_without_data(change: Callable[[Tensor], Tensor], code: str) -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    change_weights(model, change)

    diagnosis = diagnose(model, before=before)

    assert [(finding.rule.code, finding.severity) for finding in diagnosis.faults] == [(code, "warning")]
    assert diagnosis.faults[0].signs.layers == ("1", "4")


@CHANGES
def test_weights_that_moved_alone_are_no_lag(change: Callable[[Tensor], Tensor], code: str) -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    change_weights(model, change)

    diagnosis = diagnose(model, TEST_BATCHES, before=before)

    assert set(list_codes(diagnosis)) - {"BN201"} == {code}  # noise, a note of other layers


@CHANGES
def test_weights_that_moved_are_no_finding_after_a_recalibration(change: Callable[[Tensor], Tensor], code: str) -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    change_weights(model, change)
    population_statistics(model, TEST_BATCHES).write_to(model)

    assert list_codes(diagnose(model, before=before)) == []


def test_weights_that_hardly_moved_are_no_finding() -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    change_weights(model, lambda weight: weight.half().float())  # by 0.02%

    assert list_codes(diagnose(model, before=before)) == []


def test_averaged_weights_with_averaged_buffers_are_no_finding() -> None:
    online = make_healthy()
    average = copy.deepcopy(online)
    train(online, make_batches(20, seed=3), lr=0.2)
    state = online.state_dict()
    for name, value in average.state_dict().items():
        value.copy_((value + state[name]) / 2)

    assert list_codes(diagnose(average.eval(), before=online)) == []


def test_bn107_finds_an_average_of_weights_that_took_the_online_buffers() -> None:
    online = make_healthy()
    average = copy.deepcopy(online)
    train(online, make_batches(20, seed=3), lr=0.2)
    for weight, other in zip(average.parameters(), online.parameters(), strict=True):
        weight.data.lerp_(other.data, 0.5)
    for buffer, other_buffer in zip(average.buffers(), online.buffers(), strict=True):
        buffer.copy_(other_buffer)

    assert list_codes(diagnose(average.eval(), before=online)) == ["BN107"]


# BN401


@pytest.mark.parametrize(("off", "severity"), [(0.005, None), (0.05, "note"), (0.5, "warning")])
def test_bn401_grades_the_distance_between_ranks(off: float, severity: str | None) -> None:
    case = diagnose(make_healthy()).case
    other = {name: buffers.clone() for name, buffers in case.buffers.items()}
    other["4"][0, 2] += off * (other["4"][1, 2] + 1e-5).sqrt()

    signs = RanksDiffer().look(replace(case, ranks=[case.buffers, other]))

    if severity is None:
        assert signs is None
    else:
        assert signs is not None
        assert (signs.layers, signs.at_least) == (("4",), severity)
        assert signs.evidence == f"up to {off:g} σ between 2 ranks, in '4'"


@pytest.mark.slow
def test_bn401_compares_the_ranks_of_a_group(tmp_path: Path) -> None:
    script = """
from bnlab import diagnose
model = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).eval()
model[0].running_mean += 1.0 + rank
diagnosis = diagnose(model, group=dist.group.WORLD)
(finding,) = [found for found in diagnosis.faults if found.rule.code == "BN401"]
assert finding.severity == "warning", finding
"""
    run_two_ranks(script, tmp_path)
