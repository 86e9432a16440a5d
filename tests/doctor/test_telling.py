"""What a diagnosis prints: the verdict first, what to pass to learn more, and no more than is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnlab import diagnose, recalibrate
from bnlab.commands.demo.specimen import list_norms
from bnlab.common.scores import Difference
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.report.diagnosis import Diagnosis
from bnlab.doctor.verdict.findings import Finding
from bnlab.doctor.verdict.verdict import Verdict
from bnlab.model.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.causes import Planted
from tests.doctor.digits import build, draw_batches, get_norm, make_healthy

GAIN = Difference(0.0, -0.004, 0.004, 1000)
BEFORE = "Averaged (EMA, SWA, federated), pruned or fine-tuned? Pass that network as before=."
TRAINING = "Could the preprocessing differ from training? Pass training_batches= to compare."


@pytest.fixture(scope="module")
def case() -> Case:
    return diagnose(make_healthy(), draw_batches(4), progress=False).case


def tell(case: Case, notes: int) -> str:
    """Print a healthy diagnosis with so many notes."""
    findings = [Finding(Planted(), ("1",), "planted", "note")] * notes
    return " ".join(str(Diagnosis(case, Verdict("healthy", "So it is.", GAIN), None, findings, ())).split())


@pytest.mark.parametrize(
    ("count", "notes"),
    [(0, ""), (1, " Notes: OWN1 (planted)."), (2, " Notes: OWN1 (planted), OWN1 (planted)."), (3, " Notes: 3.")],
)
def test_any_number_of_notes_takes_one_line(count: int, notes: str, case: Case) -> None:
    doubt = "Too low? Check labels, their order, preprocessing, weights; or pass expected=."

    assert tell(case, count).startswith("Healthy averages (3 batch norms). So it is. ")
    assert tell(case, count).endswith(f"{doubt}{notes}")
    assert tell(replace(case, expected=0.5), 1).endswith(
        "own statistics. Notes: OWN1 (planted) (see .findings, or --html)."
    )


@pytest.mark.parametrize("given", ["nothing", "training_batches", "before", "labels"])
def test_what_would_tell_most_is_asked_for_and_what_was_given_is_not(given: str) -> None:
    model = make_healthy()
    mean, _ = get_running_buffers(get_norm(model, "4"))
    mean.add_(1)
    batches = draw_batches(8)
    arguments: dict[str, Any] = {"training_batches": draw_batches(8, seed=-1), "before": make_healthy(1)}
    chosen = {given: arguments[given]} if given in arguments else {}

    text = " ".join(str(diagnose(model, None if given == "labels" else batches, progress=False, **chosen)).split())

    assert (BEFORE in text) == (given in ("nothing", "training_batches")), text
    assert (TRAINING in text) == (given in ("nothing", "before")), text
    assert text.endswith("Pass batches with labels: they show what it costs.") == (given == "labels")


# As constructed


@pytest.mark.parametrize(
    ("tensor", "training"),
    [
        (None, False),
        (None, True),
        *((name, False) for name in ("weight", "bias", "running_mean", "num_batches_tracked")),
    ],
)
def test_a_bad_model_whose_batch_norms_are_as_constructed_was_perhaps_not_loaded(
    tensor: str | None, training: bool
) -> None:
    """A weight of 0 ends residual branches; a layer that has learnt anything is not as constructed."""
    model = build()
    with torch.no_grad():
        get_norm(model, "7").weight.zero_()
        if tensor is not None:
            getattr(get_norm(model, "4"), tensor).add_(2)

    text = " ".join(str(diagnose(model.train(training), draw_batches(2), expected=1.0, progress=False)).split())

    advice = "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
    assert (advice in text) == (tensor is None), text
    if tensor is None:
        assert text.startswith("The network is at fault")
        assert "BN002 " not in text.partition("Notes:")[0]


# The training batches


@pytest.mark.parametrize(("more", "is_told"), [(0.09, False), (0.11, True)])
def test_a_tenth_more_in_training_is_told(case: Case, more: float, is_told: bool) -> None:
    assert case.scores is not None
    best = max(case.scores.mean(kind) for kind in case.scores.values)
    verdict = Verdict("healthy", "Nothing is gained.", GAIN)

    printed = " ".join(str(Diagnosis(replace(case, training_score=best + more), verdict, None, [], [])).split())

    reported = f"On the training batches {best + more:.1%}, as the model is. The network does not generalize to these"
    assert (reported in printed) == is_told


def test_a_metric_of_the_callers_is_not_asked_for_the_training_batches() -> None:
    batches = draw_batches(4)

    def evaluate(network: nn.Module) -> torch.Tensor:
        return torch.cat([network(images).argmax(1) == labels for images, labels in batches])

    diagnosis = diagnose(make_healthy(), batches, evaluate=evaluate, training_batches=batches, progress=False)

    assert json.loads(diagnosis.to_json())["training_score"] is None


# What training batches rule out, networks at chance, averages that are off and harmless


def test_images_are_ruled_out_where_the_training_batches_fail_as_well() -> None:
    mixed = []
    for images, labels in digits.make_training_batches():
        mixed += [(images, labels), (0.3 * images, labels)]
    model = digits.build()

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(5):
            for images, labels in mixed:  # each kind by its own statistics, which no single set of averages replaces
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()

    digits.NETWORKS.recall("two kinds of batches", model, train)
    batches = digits.make_hundreds()

    without = diagnose(model.eval(), batches, progress=False)
    diagnosis = diagnose(model, batches, training_batches=mixed, progress=False)

    assert without.verdict in ("images", "averages or images")
    assert diagnosis.verdict not in ("images", "averages or images")
    assert "The images are not at fault: the training batches fail as well." in " ".join(str(diagnosis).split())
    recalibration = recalibrate(model, batches, training_batches=mixed, progress=False)
    assert "BN209" not in str(recalibration.reason), recalibration.reason


def test_at_chance_a_cause_without_data_is_printed_and_nothing_is_called_healthy() -> None:
    model = digits.build().eval()
    train = partial(digits.fit, model, rate=0.02, keep_mode=True)  # averages stay 0 and 1
    digits.NETWORKS.recall("trained in eval mode", model, train)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for images, labels in digits.make_few(500):
        drawn = torch.randint(digits.CLASSES, labels.shape, generator=generator)
        is_kept = torch.rand(labels.shape, generator=generator) < 0.07
        batches.append((images, torch.where(is_kept, labels, drawn)))

    diagnosis = diagnose(model, batches, progress=False)

    assert diagnosis.verdict == "undecided"
    assert diagnosis.findings["code"].iloc[0] == "BN002"
    assert diagnosis.findings["severity"].iloc[0] == "warning"
    assert "near chance under any statistics" in str(diagnosis)
    assert not diagnosis.is_healthy


def test_averages_that_are_off_and_harmless_ask_for_what_would_tell_why() -> None:
    model = digits.make_healthy()
    mean, var = get_running_buffers(list_norms(model)[2])
    mean[0] += 0.3 * var[0].sqrt()

    diagnosis = diagnose(model, digits.make_few(500), progress=False)

    assert diagnosis.verdict == "healthy"
    assert "Pass that network as before=." in str(diagnosis)
    assert "before=" not in str(diagnose(digits.make_healthy(), digits.make_few(500), progress=False))
