"""Lending a model: it comes back as it was, also after an exception."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnlab.borrow import borrowed, count_loans, measured
from tests.helpers import images, residual, unchanged


def disturb(model: Any) -> None:
    """What forwards of real models do to themselves."""
    model.train()
    model(images(4)[0])
    torch.rand(3)
    np.random.rand(3)
    random.random()
    model[1].running_mean = torch.full((6,), 7.0)
    model[1].weight = nn.Parameter(torch.zeros(6))
    model[1].num_batches_tracked.add_(5)
    model[3].eval()


def collect_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers themselves, not copies."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_comes_back_as_it_was(error: type[BaseException] | None, training: bool) -> None:
    model = residual().train()
    model[3].eval()
    tensors = collect_tensors(model)
    state = random.getstate()
    with unchanged(model):
        try:
            with borrowed(model, training=training):
                assert all(module.training == training for module in model.modules())
                assert count_loans() == 1
                disturb(model)
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            assert error
    now = collect_tensors(model)

    assert count_loans() == 0
    assert random.getstate() == state
    assert now.keys() == tensors.keys()
    assert all(now[name] is tensor for name, tensor in tensors.items())


def test_a_backward_pass_that_is_still_to_come_works() -> None:
    model = residual().train()
    loss = model(images(4)[0]).sum()
    with borrowed(model):
        disturb(model)
    loss.backward()


def test_loans_may_lie_inside_of_one_another() -> None:
    model = residual()
    with borrowed(model), borrowed(model, training=True):
        assert count_loans() == 2
        assert model.training

    assert count_loans() == 0
    assert model.training


def test_what_is_compiled_shows_its_layers_to_a_measurement() -> None:
    model = residual().eval()
    calls = []
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(images(4)[0])
    hook = model[1].register_forward_pre_hook(lambda *_: calls.append(1))
    with measured(model):
        compiled(images(4)[0])
        assert not torch.is_grad_enabled()
    hook.remove()

    assert calls == [1]


class Merging(nn.Linear):
    """In eval mode its weight is another one, as that of LoRA's layers."""

    def train(self, mode: bool = True) -> Merging:
        if mode != self.training:
            self.weight.data.add_(-1.0 if mode else 1.0)
        return super().train(mode)


def test_layers_that_do_something_in_eval_mode_undo_it() -> None:
    model = nn.Sequential(Merging(4, 4), nn.BatchNorm1d(4))
    with unchanged(model), borrowed(model):
        inside = model.get_parameter("0.weight").detach().clone()
    model.eval()

    assert torch.equal(model.get_parameter("0.weight"), inside)  # once, not twice


def test_a_buffer_that_cannot_be_written() -> None:
    model = residual()
    model.register_buffer("table", torch.ones(1, 4).expand(8, 4))
    with unchanged(model), borrowed(model):
        pass
