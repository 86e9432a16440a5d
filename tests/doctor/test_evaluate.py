"""A diagnosis by a metric of the caller's own: when it is called, and what it may return and raise."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose
from bnlab.model.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.diagnosed import diagnose_spoiled, draw, make_spoiled
from tests.doctor.digits import Batches, get_norm, list_images, make_exact, make_healthy
from tests.helpers import unchanged


@pytest.fixture(scope="module")
def batches() -> Batches:
    return draw()


def test_evaluate_stands_in_for_labels(batches: Batches) -> None:
    modes = []

    def evaluate(model: nn.Module) -> Tensor:
        modes.append(model.training)
        return torch.cat([model(images).argmax(1) == labels for images, labels in batches])

    diagnosis = diagnose(make_spoiled(), list_images(batches), evaluate=evaluate, progress=False)

    assert set(modes) == {False} and 3 < len(modes) <= 12
    assert diagnosis.scores == diagnose_spoiled().scores
    assert diagnosis.verdict == "averages"
    (finding, *_) = diagnosis.faults
    assert finding.cause.code == "BN002"
    assert finding.cost == pytest.approx(diagnosis.trials.loc[diagnosis.trials["chosen"], "gain"].item())
    assert finding.severity == "error"

    modes.clear()
    healthy = diagnose(make_exact(list_images(batches)), list_images(batches), evaluate=evaluate, progress=False)
    assert healthy.verdict == "healthy"
    assert len(modes) == 3


class Denoiser(nn.Module):
    """Adds to noisy images [N, 1, 8, 8] what two convolutions say."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def make_noisy(seed: int) -> tuple[Tensor, Tensor]:
    """Make images of digits [1024, 1, 8, 8], and the same with noise."""
    training, _, testing, _ = digits.load_images()
    clean = torch.cat((training, testing))[:1024, :1]
    return clean, clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def load_denoiser() -> nn.Module:
    """Load one that was trained."""
    model = Denoiser()

    def train() -> None:
        clean, noisy = make_noisy(0)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(120):
            chosen = slice(64 * (step % 16), 64 * (step % 16) + 64)
            optimizer.zero_grad()
            (model(noisy[chosen]) - clean[chosen]).square().mean().backward()
            optimizer.step()

    digits.NETWORKS.recall("denoiser", model, train)
    return model.eval()


def measure_decibels(model: nn.Module) -> Tensor:
    """Measure each image's ratio of the largest value to the error, in dB."""
    clean, noisy = make_noisy(1)
    return -10 * ((model(noisy) - clean) / 2).square().mean((1, 2, 3)).log10()


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "healthy"), (1.0, "averages")])
def test_a_metric_without_a_unit_is_worth_a_hundredth_of_its_spread(shift: float, verdict: str) -> None:
    """A denoiser, whose exact statistics gain or lose some hundredths of a dB by chance."""
    model = load_denoiser()
    mean, var = get_running_buffers(get_norm(model, "layers.4"))
    mean += shift * var.sqrt()
    images = list(make_noisy(1)[1].split(64))

    diagnosis = diagnose(model, images, evaluate=measure_decibels, progress=False)

    assert diagnosis.verdict == verdict, str(diagnosis)
    assert diagnosis.is_healthy == (verdict == "healthy")
    assert ("points" in str(diagnosis)) is False


def test_a_metric_is_asked_for_each_batchs_own_score_where_there_are_labels_too(batches: Batches) -> None:
    model = make_healthy()

    def evaluate(model: nn.Module) -> list[float]:
        """Score 1 while batch norms normalize by their batches, otherwise 0."""
        model(batches[0][0])
        return [float(get_norm(model, "4").training)] * 200

    diagnosis = diagnose(model, batches, evaluate=evaluate, progress=False)

    assert diagnosis.scores == {"running": 0.0, "exact": 0.0, "batch": 1.0}
    assert diagnosis.verdict == "batches"
    assert "0.0% under exact statistics, 100.0% under each batch's own statistics." in " ".join(str(diagnosis).split())
    assert json.loads(diagnosis.to_json())["scores"]["batch"] == 1.0


@pytest.mark.parametrize("has_labels", [True, False])
def test_buffers_that_are_not_finite_are_told_where_the_metric_is_not_either(
    has_labels: bool, batches: Batches
) -> None:
    """Labels are numbers, so that they are scored by their squared error."""
    model = make_healthy()
    get_running_buffers(get_norm(model, "4"))[1][0] = math.nan
    labelled = [(images, F.one_hot(labels, 10) / 2) for images, labels in batches[:4]]

    def evaluate(model: nn.Module) -> Tensor:
        return torch.cat([-F.cross_entropy(model(images), numbers, reduction="none") for images, numbers in labelled])

    metric = None if has_labels else evaluate
    diagnosis = diagnose(model, labelled, evaluate=metric, progress=False)

    assert diagnosis.verdict == "averages"
    assert "not finite" in " ".join(str(diagnosis).split())
    assert math.isnan(diagnosis.scores["running"])
    assert math.isfinite(diagnosis.scores["exact"])
    assert diagnosis.faults[0].cause.code == "BN001"
    assert all(math.isnan(finding.cost) for finding in diagnosis.faults)
    assert json.loads(diagnosis.to_json())["gain"]["value"] is None


def test_a_metric_that_refuses_nan_does_not_hide_the_buffers_that_hold_some(batches: Batches) -> None:
    model = make_healthy()
    get_running_buffers(get_norm(model, "4"))[0][0] = math.nan

    def refuse_nan(model: nn.Module) -> Tensor:
        """Score images as metrics of other packages do, which raise for NaN."""
        scores = model(batches[0][0])
        if scores.isnan().any():
            raise ValueError("Input contains NaN.")
        return scores.argmax(1) == batches[0][1]

    with unchanged(model):
        diagnosis = diagnose(model, batches[:4], evaluate=refuse_nan, progress=False)

    assert diagnosis.verdict == "averages"
    assert diagnosis.faults[0].cause.code == "BN001"
    assert math.isnan(diagnosis.scores["running"])
    assert math.isfinite(diagnosis.scores["exact"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0] * 4, ValueError("The second call fails.")], "The second call fails"),
        ([[math.nan]], "evaluate returned values that are not finite"),
        ([[1.0] * 4, [1.0] * 3], "evaluate returned 4 values, then 3; return a value for each image"),
        ([[1.0] * 4, [1.0] * 4, [1.0] * 3], "evaluate returned 4 values, then 3; return a value for each image"),
    ],
)
def test_a_metric_that_fails_under_sound_buffers_ends_the_diagnosis(
    returned: list[Any], message: str, batches: Batches
) -> None:
    calls = iter(returned)

    def evaluate(model: nn.Module) -> list[float]:
        values = next(calls)
        if isinstance(values, Exception):
            raise values
        return values

    with pytest.raises(ValueError, match=message):
        diagnose(make_healthy(), batches[:2], evaluate=evaluate, progress=False)
