"""Small networks as users have brought them, and what is right of each."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab import diagnose, record
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.patients import CHANGES, bring_back_weights, offset_batches
from tests.helpers import unchanged


def read(diagnosis: Diagnosis) -> str:
    """Print a diagnosis in one line."""
    return " ".join(str(diagnosis).split())


def test_a_converter_brings_back_weights_that_training_did_not_use() -> None:
    """The first layer fits and the next does not; with weights of 1 all comes back, with exact statistics less."""
    given = bring_back_weights(1.6)

    diagnosis = diagnose(given.model, given.batches, progress=False)

    trials = diagnosis.trials
    with_ones = trials[trials["code"] == "BN303"]["score"].max()
    assert with_ones > trials[trials["code"] == "BN108"]["score"].max()
    assert diagnosis.faults[0].cause.code == "BN303"
    assert "Averages fit up to 1, and not from 4 on" in read(diagnosis)
    assert "Set these weights to 1" in read(diagnosis)


class Adapted(nn.Module):
    """A convolution and what a low-rank adapter adds to it."""

    def __init__(self, conv: nn.Conv2d, rank: int = 4) -> None:
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(conv.in_channels, rank, 1, conv.stride, bias=False)  # type: ignore[arg-type]
        self.up = nn.Conv2d(rank, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.up(self.down(x))


@cache
def load_adapters() -> Diagnosis:
    """Load adapters, which were trained on negatives together with batch norm, onto their base, and diagnose."""
    base = digits.make_healthy(2)
    torch.manual_seed(0)
    model = copy.deepcopy(base).requires_grad_(False)
    for place in (0, 3, 6):
        model[place] = Adapted(model[place])  # type: ignore[arg-type]
    digits.fit(model, steps=96, change=CHANGES["negative"])
    for layer, of_base in zip(digits.list_norms(model), digits.list_norms(base), strict=True):
        layer.load_state_dict(of_base.state_dict())
    return diagnose(model, digits.make_batches(CHANGES["negative"]), before=base, progress=False)


def test_adapters_that_were_saved_without_buffers_have_those_of_the_base() -> None:
    diagnosis = load_adapters()

    first = diagnosis.faults[0]
    assert (diagnosis.verdict, first.cause.code) == ("averages", "BN107"), str(diagnosis)
    assert "save adapters with their buffers" in read(diagnosis)
    assert "buffers the same" in first.evidence


def test_what_is_chosen_brings_back_nine_tenths_of_the_score_too() -> None:
    diagnosis = load_adapters()

    trials = diagnosis.trials
    assert diagnosis.faults[0].layers == digits.NORMS
    assert trials[trials["chosen"]]["gain"].max() >= 0.9 * trials["gain"].max()


def test_windows_of_one_recording_are_batches_that_are_not_alike_and_printed() -> None:
    given = offset_batches(2.0)

    diagnosis = diagnose(given.model, given.batches, progress=False)

    assert diagnosis.scores["batch"] > diagnosis.scores["exact"] + 0.1
    assert (diagnosis.verdict, diagnosis.faults[0].cause.code) == ("batches", "BN202"), str(diagnosis)
    assert "BN202 error: batches are not alike" in str(diagnosis)
    assert "recordings" in read(diagnosis) and "normalized each by itself" in read(diagnosis)


def cast_to_half() -> nn.Module:
    """Cast a network of which one layer's variance is above what float16 holds."""
    model = digits.make_healthy()
    mean, var = get_running_buffers(digits.list_norms(model)[1])
    scale = 1e5 / float(var.max())
    model.get_submodule("3").weight.data *= scale**0.5  # type: ignore[operator]
    model.get_submodule("3").bias.data *= scale**0.5  # type: ignore[operator]
    mean.mul_(scale**0.5)
    var.mul_(scale)
    return model.half()


@pytest.mark.parametrize("has_data", [False, True])
def test_a_variance_beyond_half_precision_is_kept_in_float32(has_data: bool) -> None:
    model = cast_to_half()
    batches = [(images.half(), labels) for images, labels in digits.make_batches(images=200)] if has_data else None

    with unchanged(model):
        diagnosis = diagnose(model, batches, progress=False)

    first = diagnosis.faults[0]
    assert (first.cause.code, first.severity, first.layers) == ("BN004", "error", ("4",)), str(diagnosis)
    assert "65,504" in first.evidence
    assert "Keep batch norm in float32" in read(diagnosis)
    assert "One bad batch" not in read(diagnosis)


def test_recalibrate_says_that_a_type_does_not_hold_a_variance() -> None:
    model = cast_to_half()
    batches = [(images.half(), labels) for images, labels in digits.make_batches(images=200)]

    with unchanged(model), pytest.raises(ValueError, match=r"layer '4'.* beyond torch\.float16.*batch norm in float32"):
        bnlab.recalibrate(model, batches, progress=False)


@cache
def tune_with_frozen_averages() -> nn.Module:
    """Train all weights on negatives while batch norm stays in eval mode, with the averages of other images."""
    model = digits.make_healthy(2)
    digits.fit(model, steps=192, rate=0.02, change=CHANGES["negative"], keep_mode=True)
    return model


def test_a_network_that_was_tuned_with_its_averages_as_constants_is_healthy() -> None:
    model = tune_with_frozen_averages()
    negative = CHANGES["negative"]
    training = [(negative(images), labels) for images, labels in digits.make_training_batches()[:-1]]

    diagnosis = diagnose(model, digits.make_batches(negative), training_batches=training, progress=False)

    assert diagnosis.scores["exact"] < diagnosis.scores["running"] - 0.05, str(diagnosis)
    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
    assert "trained with its averages as constants, so do not recalibrate" in read(diagnosis)
    assert diagnosis.case.training_score is not None and diagnosis.case.training_score > 0.97
    assert f"On the training batches {diagnosis.case.training_score:.1%}, as the model is" in read(diagnosis)
    assert not bnlab.recalibrate(copy.deepcopy(model), digits.make_batches(negative), progress=False).written


def test_a_small_last_batch_is_told_with_its_share_of_the_averages() -> None:
    """Of 797 images in batches of 189 the last has 41."""
    images, labels, _, _ = digits.load_images()
    model = digits.build(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with record(model) as trace:
        for epoch in range(8):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
            for chosen in order.split(189):
                optimizer.zero_grad()
                F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    training = digits.split(images, labels, 189)

    diagnosis = diagnose(model.eval(), digits.make_batches(), trace=trace, training_batches=training, progress=False)

    finding = next(finding for finding in diagnosis.faults if finding.cause.code == "BN110")
    assert finding.evidence == "the last batch of an epoch has 41 images of 189; it makes up 10% of the averages"
    assert "drop_last=True" in finding.cause.remedy
