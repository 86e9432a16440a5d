"""A diagnosis by a metric of the caller's own: when it is called, and what it may return and raise."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose
from bnlab.layers import get_running_buffers
from tests.doctor.networks import Batch, get_norm, list_images, make_batches, make_healthy
from tests.helpers import unchanged


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return make_batches(16)


def test_evaluate_stands_in_for_labels(batches: list[Batch]) -> None:
    modes = []

    def evaluate(model: nn.Module) -> Tensor:
        modes.append(model.training)
        right = [model(images).argmax(1) == labels for images, labels in batches]
        return torch.cat(right)

    model = make_healthy()
    get_norm(model, "9").reset_running_stats()
    diagnosis = diagnose(model, list_images(batches), evaluate=evaluate, progress=False)

    by_labels = diagnose(model, batches, progress=False)
    assert modes == [False] * 3
    assert diagnosis.scores == by_labels.scores
    assert diagnosis.verdict == "averages"
    finding = diagnosis.faults[0]
    assert finding.rule.code == "BN002"
    assert math.isnan(finding.cost)  # one layer of three, and single layers' costs were not measured
    assert finding.severity == finding.rule.severity


def test_a_metric_is_asked_for_each_batchs_own_score_where_there_are_labels_too(batches: list[Batch]) -> None:
    model = make_healthy()

    def evaluate(model: nn.Module) -> list[float]:
        """Score 1 while batch norms normalize by their batches, otherwise 0."""
        model(batches[0][0])
        return [float(get_norm(model, "5").training)] * 200

    diagnosis = diagnose(model, batches, evaluate=evaluate, progress=False)

    assert diagnosis.scores == {"running": 0.0, "exact": 0.0, "batch": 1.0}
    assert diagnosis.verdict == "not the averages"
    assert "0.0% under exact statistics, 100.0% under each batch's own." in str(diagnosis)
    assert json.loads(diagnosis.to_json())["scores"]["batch"] == 1.0


@pytest.mark.parametrize("number", [1, 2])
def test_a_metric_of_other_images_in_a_later_call_is_refused(number: int, batches: list[Batch]) -> None:
    counts = [4, 4, 4]
    counts[number] = 3

    def evaluate(model: nn.Module) -> Tensor:
        return torch.ones(counts.pop(0))

    with pytest.raises(ValueError, match="evaluate returned 4 values, then 3; return a value for each image"):
        diagnose(make_healthy(), batches[:2], evaluate=evaluate, progress=False)


@pytest.mark.parametrize("has_labels", [True, False])
def test_buffers_that_are_not_finite_are_told_where_the_metric_is_not_either(
    has_labels: bool, batches: list[Batch]
) -> None:
    """Labels are numbers, so that they are scored by their squared error."""
    model = make_healthy()
    get_running_buffers(get_norm(model, "5"))[1][0] = math.nan
    labelled = [(images, F.one_hot(labels, 4) / 2) for images, labels in batches[:4]]

    def evaluate(model: nn.Module) -> Tensor:
        return torch.cat([-F.cross_entropy(model(images), numbers, reduction="none") for images, numbers in labelled])

    metric = None if has_labels else evaluate
    diagnosis = diagnose(model, labelled, evaluate=metric, progress=False)

    assert diagnosis.verdict == "averages"
    assert "Scores under running averages are not finite. Exact" in " ".join(str(diagnosis).split())
    assert math.isnan(diagnosis.scores["running"])
    assert math.isfinite(diagnosis.scores["exact"])
    assert diagnosis.faults[0].rule.code == "BN001"
    assert all(math.isnan(finding.cost) for finding in diagnosis.faults)
    assert json.loads(diagnosis.to_json())["gain"]["value"] is None


def refuse_nan(model: nn.Module) -> Tensor:
    """Score images as metrics of other packages do, which raise for NaN."""
    images, labels = make_batches(1, size=64)[0]
    scores = model(images)
    if scores.isnan().any():
        raise ValueError("Input contains NaN.")
    return scores.argmax(1) == labels


def test_a_metric_that_refuses_nan_does_not_hide_the_buffers_that_hold_some(batches: list[Batch]) -> None:
    model = make_healthy()
    get_running_buffers(get_norm(model, "5"))[0][0] = math.nan

    with unchanged(model):
        diagnosis = diagnose(model, batches[:4], evaluate=refuse_nan, progress=False)

    assert diagnosis.verdict == "averages"
    assert diagnosis.faults[0].rule.code == "BN001"
    assert math.isnan(diagnosis.scores["running"])
    assert math.isfinite(diagnosis.scores["exact"])


def test_a_metric_that_raises_under_sound_buffers_ends_the_diagnosis(batches: list[Batch]) -> None:
    calls = []

    def evaluate(model: nn.Module) -> Tensor:
        calls.append(model)
        if len(calls) == 2:
            raise ValueError("The second call fails.")
        return torch.ones(4)

    with pytest.raises(ValueError, match="The second call fails"):
        diagnose(make_healthy(), batches[:2], evaluate=evaluate, progress=False)


def test_a_metric_that_is_not_finite_under_sound_buffers_is_refused(batches: list[Batch]) -> None:
    with pytest.raises(ValueError, match="evaluate returned values that are not finite"):
        diagnose(make_healthy(), batches[:2], evaluate=lambda _: [math.nan], progress=False)
