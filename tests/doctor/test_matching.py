"""An earlier checkpoint whose names begin otherwise, that has more layers, or other forms of the same weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bnlab import diagnose
from bnlab.doctor.evidence.history import Changes
from tests.doctor.digits import list_codes, make_healthy


def get_history(model: nn.Module, before: nn.Module | Mapping[str, Tensor]) -> Changes:
    """Return what is found by comparing a network with an earlier one."""
    history = diagnose(model, before=before).case.history
    assert history is not None
    return history


def update_once(model: nn.Sequential) -> nn.Sequential:
    """Let a forward in train mode update a copy of the model's averages."""
    updated = copy.deepcopy(model).train()
    updated(torch.zeros(4, 3, 8, 8))
    return updated.eval()


def halve(model: nn.Sequential, has_masks: bool = True) -> nn.Sequential:
    """Prune half of two layers' weights in a copy, which keeps the others and masks, or does not."""
    pruned = copy.deepcopy(model)
    for name in ("3", "6"):
        prune.l1_unstructured(pruned.get_submodule(name), "weight", 0.5)
        if not has_masks:
            prune.remove(pruned.get_submodule(name), "weight")
    return pruned


def add_prefix(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in model.state_dict().items()}


BEFORE: dict[str, tuple[Callable[[nn.Sequential], Any], list[str]]] = {
    "within a trainer's": (lambda model: add_prefix("model.", model), ["Names in before= begin with 'model.'."]),
    "parallel": (lambda model: add_prefix("module.", model), []),
    "compiled": (lambda model: add_prefix("_orig_mod.", model), []),
    "part of a sequence": (
        lambda model: nn.Sequential(model, nn.Linear(4, 4), nn.BatchNorm1d(4)),
        ["Names in before= begin with '0.'. In before= alone, or of another shape there: '1', '2'."],
    ),
    "of a layer less": (
        lambda model: {name: value for name, value in model.state_dict().items() if name[0] != "6"},
        ["Not in before=, or of another shape there: '6'."],
    ),
    "without counts, as old ones": (lambda model: _leave_out_counts(model.state_dict()), []),
}
"""Earlier checkpoints, and what is noted of them."""


def _leave_out_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "tracked" not in name}


@pytest.mark.parametrize("name", BEFORE)
def test_a_checkpoint_is_matched_as_far_as_it_goes(name: str) -> None:
    make_before, notes = BEFORE[name]
    model = make_healthy()

    diagnosis = diagnose(update_once(model), before=make_before(model))

    assert diagnosis.notes == notes
    assert list_codes(diagnosis) == ([] if "without counts" in name else ["BN104"])
    assert diagnosis.case.history is not None
    assert diagnosis.case.history.parameters == (12 if "less" in name else 14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_buffers_loaded_from_half_precision_are_those_of_the_checkpoint(dtype: torch.dtype) -> None:
    model = make_healthy().to(dtype).float()
    before = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }

    history = get_history(model, before)

    assert history.layers and all(change.is_same for change in history.layers.values())


def test_weights_of_half_precision_are_those_of_their_checkpoint() -> None:
    model = make_healthy()

    history = get_history(copy.deepcopy(model).bfloat16(), model.state_dict())

    assert not history.moved


def test_a_parameter_that_is_not_a_number_has_not_moved() -> None:
    model = make_healthy()
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = math.nan

    history = get_history(model, copy.deepcopy(model))

    assert not history.moved
    assert history.distance == 0.0


def test_a_model_without_averages_has_no_history() -> None:
    model = nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2, track_running_stats=False))

    assert "No running averages" in str(diagnose(model, before=make_healthy()))


def test_two_copies_of_the_model_are_not_guessed_from() -> None:
    model = make_healthy()
    before = {**add_prefix("student.", model), **add_prefix("teacher.", model)}

    with pytest.raises(ValueError, match=r"under each of 'student\.', 'teacher\.'; pass a state dict of one"):
        diagnose(model, before=before)


def test_another_models_checkpoint_is_refused() -> None:
    other = nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2))

    with pytest.raises(ValueError, match="has no running statistics of this model's layers"):
        diagnose(make_healthy(), before=other)


def test_pruned_weights_with_their_masks_have_moved() -> None:
    model = make_healthy()

    history = get_history(halve(model), model)

    assert tuple(history.moved) == ("3.weight_orig", "6.weight_orig")
    weights = [model.get_submodule(name).get_parameter("weight").detach() for name in ("0", "3", "6", "10")]
    smallest = [weight.abs().flatten().sort().values[: weight.numel() // 2] for weight in weights[1:3]]
    lost = torch.cat(smallest).norm() / torch.cat([weight.flatten() for weight in weights]).norm()
    assert history.distance == pytest.approx(float(lost), rel=1e-5)
    assert history.unmatched == ""


def test_pruned_weights_are_the_same_with_their_masks_and_without() -> None:
    with_masks = halve(make_healthy())
    without = halve(make_healthy(), has_masks=False)

    for now, before in ((with_masks, without), (without, with_masks)):
        history = get_history(now, before)
        assert (history.parameters, history.moved, history.unmatched) == (14, {}, "")
