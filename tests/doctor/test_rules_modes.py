"""Batch norms in train mode on data: what that costs decides how loudly it is said."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnlab import diagnose
from bnlab.layers import get_running_buffers
from tests.doctor.networks import NORMS, Batch, find, get_norm, list_images, make_batches, make_healthy, sort_images

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

    def evaluate(model: torch.nn.Module) -> Tensor:
        return torch.cat([model(images).argmax(1) == labels for images, labels in SORTED])

    without_labels = find("BN402", model, list_images(SORTED))
    with_a_metric = find("BN402", model, list_images(SORTED), evaluate=evaluate)

    for finding in (without_labels, with_a_metric):
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
