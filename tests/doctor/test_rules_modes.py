"""Batch norms in train mode on data, and frozen ones that were: what that costs decides how loudly it is said."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.doctor.rules.bn104 import FrozenButMoving
from bnlab.layers import get_running_buffers
from tests.doctor.networks import (
    NORMS,
    Batch,
    average,
    change_images,
    find,
    get_conv,
    get_norm,
    list_images,
    make_batches,
    make_healthy,
    reset,
    sort_images,
)

SHUFFLED = make_batches(12)
SORTED = sort_images(SHUFFLED, size=8)  # each batch is of one class, which its own statistics take away


# BN402


def test_bn402_tells_first_what_a_forgotten_eval_costs() -> None:
    diagnosis = diagnose(make_healthy().train(), SORTED, progress=False)

    scores = diagnosis.scores
    finding = diagnosis.faults[0]
    told = (
        f"Not the averages (3 batch norms). All are in train mode, where accuracy is {scores['batch']:.1%}; in eval "
        f"mode it is {scores['running']:.1%}. Call model.eval(). Exact statistics of 384 images "
    )
    assert " ".join(str(diagnosis).split()).startswith(told)
    assert (finding.rule.code, finding.severity, finding.signs.layers) == ("BN402", "error", ("1", "5", "9"))
    assert finding.signs.evidence == "3 of 3 in train mode"
    assert finding.cost == pytest.approx(scores["running"] - scores["batch"])
    assert diagnosis.verdict == "not the averages"
    assert "training_batches=" not in str(diagnosis)


def test_bn402_counts_the_layers_where_some_are_kept_in_eval_mode() -> None:
    model = make_healthy().train()
    model[1].eval()

    diagnosis = diagnose(model, SORTED, progress=False)

    assert "(3 batch norms). 2 are in train mode, where accuracy is " in " ".join(str(diagnosis).split())


def test_bn402_is_quiet_in_eval_mode_whatever_train_mode_would_cost() -> None:
    diagnosis = diagnose(make_healthy(), SORTED, progress=False)

    assert diagnosis.scores["batch"] < diagnosis.scores["running"] - 0.2
    assert diagnosis.verdict == "healthy"
    assert "BN402" not in {finding.rule.code for finding in diagnosis.faults}


def test_bn402_is_a_note_where_train_mode_costs_nothing() -> None:
    """As after a step of training: any mode may be examined."""
    diagnosis = diagnose(make_healthy().train(), SHUFFLED, progress=False)

    severities = {finding.rule.code: finding.severity for finding in diagnosis.faults}
    assert severities["BN402"] == "note"
    assert diagnosis.verdict == "healthy"
    assert len(str(diagnosis).splitlines()) == 3


def test_bn402_is_a_note_where_the_cost_is_not_known() -> None:
    model = make_healthy().train()

    finding = find("BN402", model, list_images(SORTED))

    assert finding is not None
    assert finding.severity == "note"
    assert math.isnan(finding.cost)


def test_bn402_measures_no_cost_of_fewer_than_half_of_the_layers() -> None:
    model = make_healthy()
    model[5].train()

    finding = find("BN402", model, SORTED)

    assert finding is not None
    assert finding.severity == "warning"
    assert math.isnan(finding.cost)


@pytest.mark.parametrize("batches", [SHUFFLED, SORTED], ids=["shuffled", "sorted"])
def test_bn402_does_not_take_the_blame_from_averages(batches: list[Batch]) -> None:
    model = make_healthy()
    for name in NORMS:
        mean, var = get_running_buffers(get_norm(model, name))
        mean.add_(3 * var.sqrt())

    diagnosis = diagnose(model.train(), batches, progress=False)

    assert diagnosis.verdict == "averages"
    assert "Call model.eval()" not in str(diagnosis).partition("\n\n")[0]


# BN104


def freeze(model: nn.Sequential, parts: int) -> nn.Sequential:
    """Freeze so many of a network's first parts; its last batch norm is the tenth."""
    model[:parts].requires_grad_(False)
    return model


def brighten(images: Tensor) -> Tensor:
    return images + 1


def pass_bright_images(model: nn.Sequential) -> nn.Sequential:
    """Let averages follow other images in train mode, as they do while a new part is trained on them."""
    average(model, change_images(make_batches(30, seed=-2), brighten))
    return model


def list_codes(model: nn.Module, **arguments: Any) -> list[str]:
    return [finding.rule.code for finding in diagnose(model, SHUFFLED, progress=False, **arguments).faults]


def test_bn104_finds_frozen_weights_with_averages_of_other_images_without_a_history() -> None:
    model = pass_bright_images(freeze(make_healthy(), parts=10))

    finding = find("BN104", model, SHUFFLED)

    assert finding is not None
    assert finding.severity == "error"
    assert {"1", "5"} <= set(finding.signs.layers)
    assert "; frozen weights do not move, so other images passed in train() (or these are " in finding.signs.evidence
    assert "BN108" not in list_codes(model)


def test_bn104_adds_how_far_they_are_off_to_what_a_history_tells() -> None:
    model = freeze(make_healthy(), parts=10)
    before = copy.deepcopy(model)
    pass_bright_images(model)

    finding = find("BN104", model, SHUFFLED, before=before)

    assert finding is not None
    told = "30 updates since the earlier checkpoint; [0-9]+ times farther off than chance explains"
    assert re.fullmatch(told, finding.signs.evidence)
    assert "BN105" not in list_codes(model, before=before)


@pytest.mark.parametrize("parts", [2, 10, 16])
def test_bn104_is_quiet_about_frozen_layers_that_are_healthy(parts: int) -> None:
    """In part, up to the last batch norm, and all, as for inference."""
    diagnosis = diagnose(freeze(make_healthy(), parts), SHUFFLED, progress=False)

    assert diagnosis.verdict == "healthy"
    assert {finding.severity for finding in diagnosis.faults} <= {"note"}
    assert not {"BN104", "BN108"} & {finding.rule.code for finding in diagnosis.faults}


def test_bn104_is_quiet_where_all_is_frozen_as_weights_may_have_moved_before() -> None:
    codes = list_codes(pass_bright_images(freeze(make_healthy(), parts=16)))

    assert "BN104" not in codes
    assert "BN108" in codes


def test_bn104_is_quiet_behind_weights_that_are_trained() -> None:
    model = pass_bright_images(freeze(make_healthy(), parts=10))
    get_conv(model, "0").weight.requires_grad_(True)

    codes = list_codes(model)

    assert "BN104" not in codes
    assert "BN108" in codes


def test_bn104_leaves_other_data_than_in_training_to_bn207() -> None:
    """The averages fit the training batches, which shows that these images are the others."""
    model = pass_bright_images(freeze(make_healthy(), parts=10))
    training = change_images(make_batches(12, seed=-3), brighten)

    codes = list_codes(model, training_batches=training)

    assert "BN207" in codes
    assert "BN104" not in codes


def test_bn104_is_quiet_behind_a_first_layer_that_another_rule_explains() -> None:
    """As BN209 does, which names the first layer alone where images are prepared otherwise."""
    case = diagnose(pass_bright_images(freeze(make_healthy(), parts=10)), SHUFFLED, progress=False).case
    behind = {name: case.layers[name] for name in NORMS[1:]}

    assert FrozenButMoving().look(case) is not None
    assert FrozenButMoving().look(replace(case, layers=behind)) is None


def test_bn104_leaves_averages_that_were_never_updated_to_bn002() -> None:
    codes = list_codes(reset(freeze(make_healthy(), parts=10)))

    assert "BN002" in codes
    assert "BN104" not in codes
