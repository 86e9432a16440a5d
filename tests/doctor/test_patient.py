"""A patient is run under any change, and comes back as it was, with its batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.diagnose import diagnose
from bnlab.doctor.patient import Patient, keep, normalize_by, normalize_by_batch
from bnlab.model.calls import NormCall
from bnlab.statistics.moments import Moments
from tests.doctor import digits
from tests.helpers import unchanged


@pytest.fixture
def model() -> nn.Sequential:
    return digits.make_healthy(0)


def name_classes(model: nn.Module, batches: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(images) for images, _ in batches])


def join(outputs: Any) -> Tensor:
    return torch.cat([*outputs])


def test_each_batchs_own_statistics_are_those_of_train_mode(model: nn.Sequential) -> None:
    batches = digits.make_batches()
    patient = Patient(model, batches)
    with unchanged(model):
        ran = patient.run(normalize_by_batch)

    expected = name_classes(digits.make_healthy(0).train(), batches)
    torch.testing.assert_close(join(ran.outputs), expected, rtol=1e-4, atol=1e-4)
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(ran.scores.values, (join(ran.outputs).argmax(1) == labels).double())


def test_other_statistics_are_those_of_a_model_that_has_them(model: nn.Sequential) -> None:
    batches = digits.make_batches()
    others = {
        name: Moments(9, torch.randn(len(norm.running_mean)), torch.rand(len(norm.running_mean)) + 0.5)
        for name, norm in model.named_modules()
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    }
    with unchanged(model):
        ran = Patient(model, batches).run(normalize_by(others))

    written = digits.make_healthy(0)
    for name, moments in others.items():
        norm: Any = written.get_submodule(name)
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.var)
    torch.testing.assert_close(join(ran.outputs), name_classes(written, batches), rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def turn_signs(model: nn.Module) -> Iterator[None]:
    last: Any = model.get_submodule("10")
    last.weight.data.neg_()
    yield
    last.weight.data.neg_()


def without_weight(call: NormCall) -> NormCall | None:
    assert call.mean is not None
    assert call.var is not None
    return replace(call.normalize_by(call.mean, call.var), weight=None)


RUNS: dict[str, Callable[[Patient], Any]] = {
    "as it is": lambda patient: patient.run(),
    "by batch": lambda patient: patient.run(normalize_by_batch, looks_at=patient.layers),
    "without weights": lambda patient: patient.run(without_weight),
    "other images": lambda patient: patient.run(images=lambda images: images.mul_(2)),
    "other labels": lambda patient: patient.run(labels=lambda labels: 9 - labels),
    "other weights": lambda patient: patient.run(within=turn_signs),
    "the mode that was given": lambda patient: patient.run(mode="given"),
}


@pytest.mark.parametrize("run", RUNS)
def test_model_and_batches_come_back(model: nn.Sequential, run: str) -> None:
    """Of a model that came with some modules in train mode."""
    model.train()
    model[4].eval()
    model[5].eval()
    batches = digits.make_batches(images=200)
    kept = [(images.clone(), labels.clone()) for images, labels in batches]
    with unchanged(model):
        RUNS[run](Patient(model, batches))
    for now, before in zip(batches, kept, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(now, before, strict=True))


def test_a_model_comes_back_from_a_forward_that_raises(model: nn.Sequential) -> None:
    def raise_late(images: Tensor) -> Tensor:
        if images.sum() != first:
            raise ArithmeticError("of the change's own")
        return images

    batches = digits.make_batches(images=200)
    first = batches[0][0].sum()
    with unchanged(model.train()), pytest.raises(ArithmeticError, match="own"):
        Patient(model, batches).run(without_weight, images=raise_late, within=turn_signs_and_back)


@contextlib.contextmanager
def turn_signs_and_back(model: nn.Module) -> Iterator[None]:
    try:
        with turn_signs(model):
            yield
    finally:
        last: Any = model.get_submodule("10")
        last.weight.data.neg_()


def test_a_run_in_eval_mode_is_that_of_eval_mode_whatever_the_mode_it_came_in(model: nn.Sequential) -> None:
    batches = digits.make_batches()
    expected = name_classes(model, batches)
    patient = Patient(model.train(), batches)

    torch.testing.assert_close(join(patient.as_is.outputs), expected, rtol=0, atol=0)
    given = join(patient.run(mode="given").outputs)
    torch.testing.assert_close(given, name_classes(digits.make_healthy(0).train(), batches), rtol=1e-4, atol=1e-4)


def test_images_are_chosen_from_batches_that_are_spread_over_all(model: nn.Sequential) -> None:
    """Of 4,000 images in sorted batches some 1,000 are read, and all kinds among them."""
    images = torch.arange(80.0).repeat_interleave(50).view(80, 50, 1, 1, 1).expand(80, 50, 3, 8, 8)
    batches = [(each, torch.zeros(50, dtype=torch.long)) for each in images]
    patient = Patient(model, batches)

    firsts = [float(each[0].flatten()[0]) for each in patient.batches]
    assert patient.images == 50 * len(firsts) <= 1350
    assert firsts == [float(number) for number in range(0, 80, 3)]
    assert len(Patient(model, batches[:20]).batches) == 20


def test_regrouped_images_keep_their_place(model: nn.Sequential) -> None:
    """One by one, the same images have the same scores in the same order."""
    batches = digits.make_batches(images=100)
    alone = [
        (image[None], label[None]) for images, labels in batches for image, label in zip(images, labels, strict=True)
    ]
    patient = Patient(model, batches)

    ran = patient.run(regrouped=alone)

    assert torch.equal(ran.scores.values, patient.as_is.scores.values)
    torch.testing.assert_close(ran.scores.likelihoods, patient.as_is.scores.likelihoods, rtol=1e-3, atol=1e-4)


def test_moments_are_noted_call_by_call(model: nn.Sequential) -> None:
    batches = digits.make_batches(images=100)
    ran = Patient(model, batches).run(keep, looks_at=["1"])

    inputs = [model[0](images).detach() for images, _ in batches]
    assert [*ran.calls] == ["1"]
    for moments, given in zip(ran.calls["1"], inputs, strict=True):
        torch.testing.assert_close(moments.mean, given.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    pooled = ran.pool()["1"]
    expected = torch.cat(inputs).double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(pooled.var, expected, rtol=1e-5, atol=1e-6)


def test_passes_count_images_that_were_run(model: nn.Sequential) -> None:
    batches = digits.make_batches(images=200)
    patient = Patient(model, batches)
    patient.run()
    patient.run(others=batches[:1])
    assert patient.passes == 1 + 1 / len(batches)


class Centring(nn.Module):
    """Subtracts from its own input, in place, as some forwards prepare their images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return self.inner(images.sub_(0.5))


def test_a_forward_that_writes_into_its_images_is_given_copies(model: nn.Sequential) -> None:
    """Without these each run would be of darker images than the one before."""
    batches = digits.make_batches(lambda images: images + 0.5)
    kept = [images.clone() for images, _ in batches]

    diagnosis = diagnose(Centring(model).eval(), batches)

    assert diagnosis.verdict == "healthy"
    assert all(torch.equal(images, before) for (images, _), before in zip(batches, kept, strict=True))
    labels = torch.cat([labels for _, labels in batches])
    accuracy = float((name_classes(model, digits.make_batches()).argmax(1) == labels).double().mean())
    assert float(diagnosis.trials[0].scores.values.mean()) == pytest.approx(accuracy, abs=0.002)


def test_a_loader_that_refills_its_memory_is_read_as_if_it_had_yielded_copies(model: nn.Sequential) -> None:
    batches = digits.make_batches()
    memory = torch.empty_like(batches[0][0])

    def refill() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield memory.copy_(images), labels

    assert diagnose(model, refill()).table.equals(diagnose(model, batches).table)


WITHOUT_AVERAGES = {
    "instance norm": nn.InstanceNorm2d(3),
    "instance norm with weights": nn.InstanceNorm2d(3, affine=True),
    "batch norm": nn.BatchNorm2d(3, track_running_stats=False),
    "batch norm without weights": nn.BatchNorm2d(3, affine=False, track_running_stats=False),
}


@pytest.mark.parametrize("norm", WITHOUT_AVERAGES)
def test_a_norm_without_averages_runs_as_it_does(model: nn.Sequential, norm: str) -> None:
    batches = digits.make_batches(images=200)
    with_norm = nn.Sequential(WITHOUT_AVERAGES[norm], *model).eval()
    patient = Patient(with_norm, batches)

    assert torch.equal(join(patient.as_is.outputs), name_classes(with_norm, batches))
    with unchanged(with_norm):
        assert diagnose(with_norm, batches).verdict is not None


def test_an_operation_without_averages_can_be_changed_as_others_can(model: nn.Sequential) -> None:
    """It is given float64, as all statistics are."""
    batches = digits.make_batches(images=200)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    patient = Patient(nn.Sequential(norm, *model).eval(), batches)

    ran = patient.run(
        unnamed=lambda call: call.normalize_by(torch.zeros(3).double(), torch.ones(3).double() - norm.eps)
    )

    torch.testing.assert_close(join(ran.outputs), name_classes(model, batches), rtol=1e-4, atol=1e-4)


def test_batches_that_hold_nothing_are_refused(model: nn.Sequential) -> None:
    """A generator that was read to its end would otherwise be taken for a model without batches."""
    read = iter(digits.make_batches())
    assert len([*read]) == 20
    with unchanged(model), pytest.raises(ValueError, match="diagnose: batches is empty"):
        diagnose(model, read)
    with unchanged(model), pytest.raises(ValueError, match="diagnose: training_batches is empty"):
        diagnose(model, digits.make_batches(), training_batches=[])
    nothing = (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))
    with unchanged(model), pytest.raises(ValueError, match="diagnose: a batch of batches has no images"):
        diagnose(model, [*digits.make_batches(), nothing])


@pytest.mark.parametrize("expected", [90.0, float("nan"), float("inf")])
def test_an_expected_score_that_none_can_reach_is_refused(model: nn.Sequential, expected: float) -> None:
    with unchanged(model), pytest.raises(ValueError, match=f"expected={expected}"):
        diagnose(model, digits.make_batches(), expected=expected)


def test_an_expected_score_of_ones_own_metric_may_be_of_any_size(model: nn.Sequential) -> None:
    def percent(output: Tensor, batch: Any) -> Tensor:
        return 100 * output.softmax(1).gather(1, batch[1][:, None])[:, 0]

    batches = digits.make_batches()
    assert diagnose(model, batches, metric=percent, expected=80.0).verdict == "healthy"
    assert diagnose(model, batches, metric=percent, expected=99.9).verdict == "network"
