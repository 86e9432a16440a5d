"""Causes of a user's own, and how findings are made of what was tried and what was seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.commands.demo.specimen import list_norms, reset
from bnlab.doctor import Cause, Signs, Undo
from bnlab.doctor.cause import Ground, Severity
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.undo import EXACT, write_averages
from bnlab.doctor.verdict.findings import Finding, grade_cost, sort_findings
from bnlab.model.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.causes import Planted
from tests.doctor.patients import PATIENTS, Given, rescale
from tests.helpers import unchanged


class Wide(Planted):
    """Looks for layers of more than 16 channels."""

    title = "wide layers"
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        return Signs.of(case.select(lambda name: case.layers[name].num_features > 16), "more than 16 channels")


def test_a_cause_that_looks_is_found_without_data_and_with() -> None:
    model = digits.make_healthy()

    for data in (None, digits.make_batches(images=200)):
        diagnosis = diagnose(model, data, causes=[Wide()], progress=False)

        finding = diagnosis.findings.set_index("code").loc["OWN1"]
        assert (finding["layers"], finding["severity"]) == (("4", "7"), "warning")
        assert diagnosis.findings["cost"].isna().all()
        assert "OWN1 warning: wide layers, in 4, 7" in str(diagnosis)


class Tripled(Planted):
    """Proposes to divide the weights of the head by three, which it multiplied."""

    kind = "network"

    def propose(self, case: Case) -> Iterator[Undo]:
        head = case.model[-1]  # type: ignore[index]

        def apply(model: nn.Module, stack: Any) -> None:
            stack.callback(head.bias.data.add_, 1000.0 * torch.eye(10)[0])
            head.bias.data.sub_(1000.0 * torch.eye(10)[0])

        yield Undo("1,000 was added to a bias", ("9",), 0, apply)


def test_a_cause_that_proposes_an_undo_is_named_and_decides_the_verdict() -> None:
    """Which bnlab's own causes do not see."""
    model = digits.make_healthy()
    model.get_submodule("10").get_parameter("bias").data[0] += 1000

    with unchanged(model):
        without = diagnose(model, digits.make_few(500), progress=False)
        diagnosis = diagnose(model, digits.make_few(500), causes=[Tripled()], progress=False)

    assert without.verdict in ("healthy", "network") and not without.faults
    assert diagnosis.verdict == "network"
    (first, *_) = diagnosis.faults
    assert (first.cause.code, first.severity, first.layers) == ("OWN1", "error", ("9",))
    assert first.cost == pytest.approx(diagnosis.trials["gain"][0]) and first.cost > 0.8
    assert diagnosis.trials.set_index("code").loc["OWN1", "chosen"]


class ProposesTwo(Tripled):
    """Proposes two undos, in another order from each half."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.calls = 0

    def propose(self, case: Case) -> Iterator[Undo]:
        (helps,) = super().propose(case)
        nothing = Undo("nothing", ("1",), 0, lambda model, stack: None)
        undos = [replace(undo, name=name) for undo, name in zip((helps, nothing), self.names, strict=True)]
        self.calls += 1
        yield from undos if self.calls % 2 else reversed(undos)


def test_several_undos_of_a_cause_are_judged_by_their_names() -> None:
    model = digits.make_healthy()
    model.get_submodule("10").get_parameter("bias").data[0] += 1000
    batches = digits.make_few()

    trials = diagnose(model, batches, causes=[ProposesTwo("one", "other")], progress=False).trials
    with pytest.raises(ValueError, match="OWN1 proposes several undos of one name"):
        diagnose(model, batches, causes=[ProposesTwo("", "")], progress=False)

    gains = trials[trials["code"] == "OWN1"].set_index("undone")["gain"]
    assert gains["1,000 was added to a bias"] > 0.8 and gains["nothing"] == 0


class Remembers(Planted):
    """Proposes to leave all as it is, and remembers which images it has seen, and on which it is judged."""

    def __init__(self) -> None:
        self.halves: list[tuple[set[bytes], set[bytes]]] = []

    def propose(self, case: Case) -> Iterator[Undo]:
        assert case.task is not None
        proposed = {image.numpy().tobytes() for images, _ in case.task.data for image in images}
        judged: set[bytes] = set()

        def remember(module: nn.Module, args: tuple[Tensor]) -> None:
            judged.update(image.numpy().tobytes() for image in args[0])

        def apply(model: nn.Module, stack: Any) -> None:
            self.halves.append((proposed, judged))
            stack.callback(model.register_forward_pre_hook(remember).remove)

        yield Undo("nothing", ("1",), 0, apply)


def test_each_image_judges_once_what_was_proposed_without_it() -> None:
    cause = Remembers()

    diagnose(digits.make_healthy(), digits.make_batches(images=200), causes=[cause], progress=False)

    (first, judged_first), (second, judged_second) = cause.halves
    assert (first, second) == (judged_second, judged_first)
    assert not first & second


class Foretells(Planted):
    """Predicts that averages are 0 and 1, and shares the undo of exact statistics."""

    code = "ANOTHER"
    undone_by = (EXACT,)

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        start = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        return {name: start.expand(2, layer.num_features) for name, layer in case.layers.items()}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        return f"as foretold in {len(layers)} layers"


class Claims(Foretells):
    """Explains everything by signs of its own."""

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        return {"traces": 1.0}


@pytest.mark.parametrize(("cause", "code"), [(Claims(), "ANOTHER"), (Foretells(), "BN108")])
def test_causes_that_share_an_undo_are_told_apart_by_what_they_explain(cause: Cause, code: str) -> None:
    """Averages whose means are broken are not as foretold."""
    given = PATIENTS["means of one layer broken"].make(3.0)

    diagnosis = diagnose(given.model, given.batches, causes=[cause], progress=False)

    assert diagnosis.faults[0].cause.code == code
    if code == "ANOTHER":
        assert diagnosis.faults[0].evidence == "as foretold in 1 layers"


class Needs(Wide):
    needs = ("training", "trace")


def test_a_cause_that_lacks_something_says_what() -> None:
    diagnosis = diagnose(digits.make_healthy(), causes=[Needs()])

    row = diagnosis.skipped.set_index("code").loc["OWN1"]
    assert row["wanted"] == "training_batches= and trace=, a recording of the training"
    assert "OWN1" not in diagnosis.findings["code"].tolist()


class Fails(Planted):
    def propose(self, case: Case) -> Iterator[Undo]:
        def apply(model: nn.Module, stack: Any) -> None:
            write_averages(case.layers, {"1": torch.zeros(2, 16)})(model, stack)
            raise KeyError("a mistake of mine")

        yield Undo("nothing", ("1",), 0, apply)


def test_an_undo_that_fails_is_told_and_leaves_the_model_as_it_was() -> None:
    model = digits.make_healthy()

    with unchanged(model):
        diagnosis = diagnose(model, digits.make_batches(images=100), causes=[Fails()], progress=False)

    assert diagnosis.notes == ["Not tried, as it fails: nothing (KeyError: 'a mistake of mine')."]
    assert "OWN1" not in diagnosis.trials["code"].tolist()


# Severity and order


@pytest.mark.parametrize(
    ("cost", "severity"), [(-0.1, "note"), (0.005, "note"), (0.006, "warning"), (0.05, "warning"), (0.051, "error")]
)
def test_severity_follows_the_cost(cost: float, severity: Severity) -> None:
    assert grade_cost(cost, worth=0.005) == severity
    assert grade_cost(100 * cost, worth=0.5) == severity  # in any unit


def test_the_most_severe_comes_first_and_of_equals_what_was_tried() -> None:
    def make(code: str, severity: Severity, cost: float = math.nan) -> Finding:
        cause = type("Own", (Planted,), {"code": code})()
        return Finding(cause, ("1",), "", severity, cost)

    findings = [
        make("D", "note", 0.1),
        make("C", "warning"),
        make("B", "error"),
        make("A", "warning"),
        make("E", "warning", 0.02),
    ]

    assert [finding.cause.code for finding in sort_findings(findings)] == ["B", "E", "A", "C", "D"]


# Without labels


def scale_images(factor: float) -> Given:
    return Given(digits.make_healthy(), digits.make_hundreds(partial(rescale, factor=factor)))


def multiply_averages(factor: float) -> Given:
    model = digits.make_healthy()
    for layer in list_norms(model):
        for values in get_running_buffers(layer):
            values.mul_(factor)
    return Given(model)


def forget_averages(_: float) -> Given:
    model = digits.make_healthy()
    reset(model)
    return Given(model)


@pytest.mark.parametrize(
    ("make", "strength", "verdict", "code", "says"),
    [
        (multiply_averages, 4.0, "averages", "BN215", "takes most of the gap away"),
        (scale_images, 4.0, "averages or images", "BN209", "takes most of the gap away"),
        (scale_images, 1.0, "healthy", "", "exact statistics change the predicted class of 0.4% of 1,000 images"),
        (PATIENTS["means of one layer broken"].make, 4.0, "undecided", "BN108", "Only labels can show"),
        pytest.param(
            PATIENTS["another run's averages in one layer"].make,
            1,
            "undecided",
            "BN108",
            "Only labels can show",
            marks=pytest.mark.slow,
        ),
        (PATIENTS["averages part of the way"].make, 0.4, "undecided", "BN108", "Only labels can show"),
        (forget_averages, 0.0, "undecided", "BN002", "running averages are, if the network was trained in eval()"),
        pytest.param(
            PATIENTS["pruned weights"].make,
            0.7,
            "undecided",
            "BN108",
            "Only labels can show",
            marks=pytest.mark.slow,
        ),
        (PATIENTS["pruned weights"].make, 0.3, "healthy", "", "running averages cost 0.1 points"),
    ],
)
def test_without_labels_predictions_judge_and_the_gap_says_where_the_fault_is(
    make: Callable[[float], Given], strength: float, verdict: str, code: str, says: str
) -> None:
    given = make(strength)
    images = [images for images, _ in given.batches]

    with unchanged(given.model):
        diagnosis = diagnose(given.model, images, progress=False)

    assert (diagnosis.verdict, diagnosis.scores) == (verdict, {}), str(diagnosis)
    assert diagnosis.is_healthy == (verdict == "healthy")
    assert says in " ".join(str(diagnosis).split()), str(diagnosis)
    if code:
        finding = diagnosis.faults[0]
        assert (finding.cause.code, finding.severity) == (code, "warning")
        assert math.isnan(finding.cost)


# Small batches, and a training that went wrong


def overfit_a_regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two batches of 50 digits are learnt by heart in 100 epochs."""
    from sklearn.datasets import load_digits

    from benchmarks.doctor_benchmark.first_reports import Molecules

    data = load_digits()
    rows = torch.tensor(data.images[:100], dtype=torch.float32) / 8 - 1
    labels = torch.tensor(data.target[:100]).float()
    targets = (labels - labels.mean()) / labels.std()
    batches = list(zip(rows.split(50), targets.split(50), strict=True))

    torch.manual_seed(2)
    model = Molecules(width=128)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        for epoch in range(100):
            rate = 1e-4 + min(epoch / 2, 1) * 9e-4 * 0.1 ** (max(epoch - 2, 0) / 98)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for inputs, wanted in batches:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), wanted).backward()
                optimizer.step()

    digits.NETWORKS.recall("molecules", model, train)
    return model, batches


def test_two_batches_that_were_learnt_by_heart_are_named_by_their_images() -> None:
    model, batches = overfit_a_regression()

    diagnosis = diagnose(model, batches, progress=False)

    first = diagnosis.faults[0]
    assert (diagnosis.verdict, first.cause.code) == ("batches", "BN203"), str(diagnosis)
    assert "2 batches of 50 images" in first.evidence
    assert "larger" in first.cause.remedy and "more images" in first.cause.remedy


def move_weights(model: nn.Sequential, size: float) -> None:
    """Move the weights of convolutions and linear layers by noise of so many of their standard deviations."""
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data.add_(size * parameter.std() * noise)


def move_weights_and_shift_averages(model: nn.Sequential) -> None:
    move_weights(model, 0.02)
    for norm in list_norms(model):
        mean, var = get_running_buffers(norm)
        mean.add_(var.sqrt() * torch.randn(len(mean), generator=torch.Generator().manual_seed(0)))


def move_weights_far_and_add_a_layer(model: nn.Sequential) -> None:
    move_weights(model, 3.0)
    head = nn.Linear(10, 10)
    nn.init.eye_(head.weight)
    model.append(head)


@pytest.mark.parametrize("change", [move_weights_and_shift_averages, move_weights_far_and_add_a_layer])
def test_weights_of_before_are_not_tried_where_averages_do_as_well_or_layers_are_new(change: Any) -> None:
    before = digits.make_healthy()
    model = copy.deepcopy(before)
    change(model)

    diagnosis = diagnose(model.eval(), digits.make_few(), before=before, progress=False)

    assert "BN305" not in diagnosis.trials["code"].tolist()
