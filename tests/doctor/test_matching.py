"""An earlier checkpoint whose names begin otherwise, that has more layers, or other forms of the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bnlab import diagnose
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.history import History
from tests.doctor.points import list_codes, make_healthy, make_net


def get_history(diagnosis: Diagnosis) -> History:
    """Return what was compared with the earlier checkpoint."""
    history = diagnosis.case.history
    assert history is not None
    return history


def update_once(model: nn.Sequential) -> nn.Sequential:
    """Let a forward in train mode update a copy of the model's averages."""
    updated = copy.deepcopy(model).train()
    updated(torch.zeros(4, 8))
    return updated.eval()


def halve(model: nn.Sequential) -> nn.Sequential:
    """Prune half of two layers' weights in a copy, which keeps the others and masks."""
    pruned = copy.deepcopy(model)
    for name in ("3", "6"):
        prune.l1_unstructured(pruned.get_submodule(name), "weight", 0.5)
    return pruned


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "model._orig_mod.", "backbone.0."])
def test_names_in_front_of_which_there_is_something_are_matched(prefix: str) -> None:
    model = make_healthy()
    before = {prefix + name: value for name, value in model.state_dict().items()}

    diagnosis = diagnose(update_once(model), before=before)

    assert list_codes(diagnosis) == ["BN105"]
    assert get_history(diagnosis).parameters == 8
    plain = prefix.replace("_orig_mod.", "").replace("module.", "")
    assert diagnosis.notes == ([f"Names in before= begin with {plain!r}."] if plain else [])


def test_a_network_that_contains_the_model_is_matched_as_far_as_it_goes() -> None:
    model = make_healthy()
    larger = nn.Sequential(model, nn.Linear(4, 4), nn.BatchNorm1d(4))

    diagnosis = diagnose(update_once(model), before=larger)

    assert list_codes(diagnosis) == ["BN105"]
    assert diagnosis.notes == [
        "Names in before= begin with '0.'. In before= alone, or of another shape there: '1', '2'."
    ]


def test_layers_that_the_checkpoint_does_not_have_are_told() -> None:
    model = make_healthy()
    before = {name: value for name, value in model.state_dict().items() if not name.startswith(("4", "5", "6"))}

    diagnosis = diagnose(model, before=before)

    assert list(get_history(diagnosis).layers) == ["1"]
    assert diagnosis.notes == ["Not in before=, or of another shape there: '4', '6'."]


def test_counts_that_an_old_checkpoint_does_not_have_are_no_missing_layers() -> None:
    model = make_healthy()
    before = {name: value for name, value in model.state_dict().items() if "tracked" not in name}

    assert diagnose(model, before=before).notes == []


def test_the_part_of_a_checkpoint_that_has_more_of_the_model_is_taken() -> None:
    model = make_healthy()
    norms = {f"norms.{name}": value for name, value in make_net().state_dict().items() if name[0] in "14"}
    before = {**norms, **{f"net.{name}": value for name, value in model.state_dict().items()}}

    diagnosis = diagnose(update_once(model), before=before)

    assert list_codes(diagnosis) == ["BN105"]
    assert get_history(diagnosis).unmatched.startswith("Names in before= begin with 'net.'.")


def test_two_copies_of_the_model_are_not_guessed_from() -> None:
    state = make_healthy().state_dict()
    before: dict[str, Tensor] = {}
    for part in ("student", "teacher"):
        before |= {f"{part}.{name}": value for name, value in state.items()}

    with pytest.raises(ValueError, match=r"under each of 'student\.', 'teacher\.'; pass a state dict of one"):
        diagnose(make_healthy(), before=before)


def test_another_models_checkpoint_is_refused() -> None:
    other: Any = nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2))

    with pytest.raises(ValueError, match="has no running statistics of this model's layers"):
        diagnose(make_healthy(), before=other)


def test_pruned_weights_with_their_masks_have_moved() -> None:
    model = make_healthy()

    diagnosis = diagnose(halve(model), before=model)

    assert list_codes(diagnosis) == ["BN106"]
    history = get_history(diagnosis)
    assert tuple(history.moved) == ("3.weight_orig", "6.weight_orig")
    # 128 values stay, and half of 256 and of 64.
    assert history.kept == pytest.approx((128 + 128 + 32) / 448)
    assert history.unmatched == ""


def test_pruned_weights_are_the_same_with_their_masks_and_without() -> None:
    model = halve(make_healthy())
    without_masks = halve(make_healthy())
    for name in ("3", "6"):
        prune.remove(without_masks.get_submodule(name), "weight")

    for now, before in ((model, without_masks), (without_masks, model), (model, model)):
        history = get_history(diagnose(now, before=before))
        assert (history.parameters, history.moved, history.unmatched) == (8, {}, "")
