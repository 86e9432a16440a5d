"""Faults of kinds that public reports had and the gallery had not: each in networks that differ, in several doses, and
healthy networks of the same kind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.doctor.evidence.history import read_state
from tests.doctor import digits
from tests.doctor.patients import Given
from tests.doctor.test_patients import build_perceptron, examine, load_perceptron, read


def require(given: Given, verdict: str, code: str, says: str) -> None:
    """Require a verdict, the first finding's code, and words."""
    diagnosis = examine(given)

    assert diagnosis.verdict == verdict, str(diagnosis)
    assert diagnosis.faults[0].cause.code == code, str(diagnosis)
    assert says in read(diagnosis), str(diagnosis)


def flatten(batches: digits.Batches) -> digits.Batches:
    return [(images.flatten(1), labels) for images, labels in batches]


def give_perceptron() -> Given:
    """Give a healthy network for rows of numbers, to be changed."""
    return Given(copy.deepcopy(load_perceptron()[0]), flatten(digits.make_batches()))


def list_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]


# Weights that were not trained


def leave_weights_initial() -> Given:
    """Give a new network the buffers of a trained one."""
    model = digits.build(4).eval()
    for norm, trained in zip(list_norms(model), list_norms(digits.make_healthy()), strict=True):
        norm.load_state_dict(dict(norm.named_parameters()) | dict(trained.named_buffers()))
    return Given(model)


def count_without_training(updates: int) -> Given:
    """Run a new network in train mode, as where an optimizer was given the parameters of another one."""
    model = build_perceptron().train()
    batches = flatten(digits.draw_batches(updates, seed=-1, size=8))
    for images, _ in batches:
        model(images)
    return Given(model.eval(), flatten(digits.make_batches()))


@pytest.mark.parametrize(
    "make", [leave_weights_initial, lambda: count_without_training(20), lambda: count_without_training(90)]
)
def test_weights_that_were_never_trained_are_the_networks_fault(make: Callable[[], Given]) -> None:
    given = make()

    require(given, "network", "BN306", "is this the network that was trained? Look at what load_state_dict returns.")

    recalibration = bnlab.recalibrate(given.model, given.batches, progress=False)
    assert not recalibration.written and "BN306" in recalibration.reason


@pytest.mark.parametrize("form", ["module", "state"])
def test_the_network_that_it_should_be_is_tried(form: str) -> None:
    given = leave_weights_initial()
    trained = digits.make_healthy()
    before = trained if form == "module" else read_state(trained, "test")

    require(
        Given(given.model, given.batches, {"before": before}), "network", "BN305", "weights and averages of before="
    )


class Scale(nn.Module):
    """Multiplies and shifts each channel."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


@torch.no_grad()
def move_scales_out(given: Given) -> Given:
    """Give batch norms weights of 1 and biases of 0, and put a layer behind each that does what theirs did."""
    layers: list[nn.Module] = []
    assert isinstance(given.model, nn.Sequential)
    for layer in given.model:
        layers.append(layer)
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layers.append(Scale(layer.weight, layer.bias))
            layer.weight.fill_(1)
            layer.bias.zero_()
    return Given(nn.Sequential(*layers).eval(), given.batches)


HEALTHY: list[Callable[[], Given]] = [
    lambda: Given(digits.make_healthy(0)),
    lambda: Given(digits.make_healthy(1)),
    give_perceptron,
]


@pytest.mark.parametrize("make", HEALTHY)
def test_weights_that_training_left_at_1_are_a_note(make: Callable[[], Given]) -> None:
    given = move_scales_out(make())

    diagnosis = examine(given)

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
    assert "BN306" in diagnosis.findings["code"].tolist()
    assert bnlab.diagnose(given.model).is_healthy


# Averages of no images


@torch.no_grad()
def feed(given: Given, fill: Callable[[Tensor], Tensor], times: int, momentum: float = 0.1) -> Given:
    """Send tensors that are no images through a network in train mode."""
    for norm in list_norms(given.model):
        norm.momentum = momentum  # type: ignore[assignment]
    given.model.train()
    for _ in range(times):
        given.model(fill(given.batches[0][0][:4]))
    given.model.eval()
    return given


FED: list[tuple[Callable[[], Given], str]] = [
    (lambda: feed(Given(digits.make_healthy(0)), torch.ones_like, 3), "of ones, as 3 forwards in train mode"),
    (lambda: feed(Given(digits.make_healthy(1)), torch.zeros_like, 8), "of zeros, as 8 forwards in train mode"),
    (lambda: feed(Given(digits.make_healthy(2)), torch.randn_like, 12), "of normal noise, as 1"),
    (lambda: feed(give_perceptron(), torch.ones_like, 5, 0.05), "of ones, as 5 forwards in train mode"),
]


@pytest.mark.parametrize(("make", "says"), FED)
def test_forwards_of_no_images_are_counted_and_recalibrated(make: Callable[[], Given], says: str) -> None:
    torch.manual_seed(0)
    given = make()

    require(given, "averages", "BN111", says)

    assert bnlab.recalibrate(given.model, given.batches, progress=False).written


@pytest.mark.parametrize("make", HEALTHY)
def test_a_forward_of_no_images_that_is_nearly_forgotten_is_a_note(make: Callable[[], Given]) -> None:
    diagnosis = examine(feed(make(), torch.ones_like, 1, 0.001))

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
