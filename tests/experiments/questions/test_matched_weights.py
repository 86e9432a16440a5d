"""Networks that are matched channel by channel: against a planted order, numpy's correlations, all permutations."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiments.questions.changed_weights import changed
from experiments.questions.changed_weights.matched import (
    OTHER_START,
    MatchedWeights,
    match_channels,
    train_apart,
)
from tests.helpers import Run, train_network

STEP = 40


def build_chain(seed: int, width: int = 4) -> nn.Sequential:
    """Two convolutions with batch norms that are far from their initial values, and a head."""
    torch.manual_seed(seed)
    chain = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )
    for norm in (chain[1], chain[4]):
        for values in norm.state_dict().values():
            if values.dim() == 1:
                values.uniform_(0.5, 1.5)
    return chain.eval()


def permute(chain: nn.Sequential, orders: dict[int, Tensor]) -> nn.Sequential:
    """Put the channels behind each norm, named by its place, into an order."""
    permuted = copy.deepcopy(chain)
    state = permuted.state_dict()
    readers = {1: "3.weight", 4: "8.weight"}
    for place, order in orders.items():
        for name in (f"{place - 1}.weight", f"{place}.weight", f"{place}.bias"):
            state[name].copy_(state[name][order])
        for name in (f"{place}.running_mean", f"{place}.running_var"):
            state[name].copy_(state[name][order])
        read = state[readers[place]]
        read.copy_(read[:, order])
    return permuted


def first_weight(chain: nn.Module) -> Tensor:
    return chain.state_dict()["0.weight"]


def draw_images(count: int = 16) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_a_planted_order_is_undone() -> None:
    first = build_chain(0)
    second = permute(first, {1: torch.tensor([2, 0, 3, 1]), 4: torch.tensor([3, 2, 1, 0])})
    assert not torch.equal(first_weight(second), first_weight(first))

    match_channels(first, second, draw_images())

    for name, values in second.state_dict().items():
        assert torch.equal(values, first.state_dict()[name]), name


def test_a_matched_network_predicts_as_before() -> None:
    """Permuting reorders sums of 36 float32 terms: a few units in the last place, through two layers."""
    first = build_chain(0)
    second = build_chain(1)
    images = draw_images()
    before = second(images)

    match_channels(first, second, images)

    assert not torch.equal(first_weight(second), first_weight(build_chain(1)))
    torch.testing.assert_close(second(images), before, rtol=1e-5, atol=1e-5)


def test_the_second_network_is_that_of_another_seed(trained: Run) -> None:
    """Running averages differ by a unit in the last place where batch moments are recorded."""
    other = Run(replace(trained.config, seed=trained.config.seed + OTHER_START))

    second = train_apart(trained, STEP)

    train_network(other)
    for name, values in other.load_checkpoint(STEP).items():
        torch.testing.assert_close(second.state_dict()[name], values)


def test_rows(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed, "SAMPLES", (48,))
    assert MatchedWeights().scope(trained, []) == {None: [STEP]}
    assert MatchedWeights().reads(trained, []) == [STEP]

    frame = MatchedWeights().measure(trained, [None], [STEP])

    assert frame["change"].unique().tolist() == ["none", "apart", "matched"]
    exact = frame[(frame["statistics"] == "exact") & (frame["images"] == 360)].set_index("change")
    assert (exact["accuracy_lost"] == 0).all()
    second = train_apart(trained, STEP)
    models = dict(MatchedWeights().build_models(trained, STEP))
    last = trained.load_checkpoint(STEP)
    for name, values in models["apart"].state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(values, (last[name] + second.state_dict()[name]) / 2)
    assert not torch.equal(first_weight(models["matched"]), first_weight(models["apart"]))
