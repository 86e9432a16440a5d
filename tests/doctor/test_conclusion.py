"""What is concluded besides the ranking: what training batches rule out, networks at chance, what is asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab import diagnose
from bnlab.layers import get_running_buffers
from tests.doctor.digits import CLASSES, build, fit, list_norms, make_batches, make_healthy, make_training_batches


def darken(images: Tensor) -> Tensor:
    return 0.3 * images


def test_images_are_ruled_out_where_the_training_batches_fail_as_well() -> None:
    mixed = []
    for images, labels in make_training_batches():
        mixed += [(images, labels), (darken(images), labels)]
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        for images, labels in mixed:  # each kind by its own statistics, which no single set of averages replaces
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    batches = make_batches()

    without = diagnose(model.eval(), batches, progress=False)
    diagnosis = diagnose(model, batches, training_batches=mixed, progress=False)

    assert without.verdict in ("images", "averages or images")
    assert diagnosis.verdict not in ("images", "averages or images")
    assert "The images are not at fault: the training batches fail as well." in " ".join(str(diagnosis).split())


def test_images_stay_at_fault_where_the_training_batches_do_well() -> None:
    diagnosis = diagnose(make_healthy(), make_batches(darken), training_batches=make_training_batches(), progress=False)

    assert diagnosis.verdict == "images"
    assert diagnosis.faults[0].cause.code == "BN209"


def test_at_chance_a_cause_without_data_is_printed_and_nothing_is_called_healthy() -> None:
    model = build().eval()
    fit(model, rate=0.02, keep_mode=True)  # averages stay 0 and 1
    generator = torch.Generator().manual_seed(0)
    batches = []
    for images, labels in make_batches():
        drawn = torch.randint(CLASSES, labels.shape, generator=generator)
        is_kept = torch.rand(labels.shape, generator=generator) < 0.07
        batches.append((images, torch.where(is_kept, labels, drawn)))

    diagnosis = diagnose(model, batches, progress=False)

    assert diagnosis.verdict == "undecided"
    assert diagnosis.findings["code"].iloc[0] == "BN002"
    assert diagnosis.findings["severity"].iloc[0] == "warning"
    assert "Near chance under any statistics" in str(diagnosis)
    assert not diagnosis.is_healthy


def test_averages_that_are_off_and_harmless_ask_for_what_would_tell_why() -> None:
    model = make_healthy()
    mean, var = get_running_buffers(list_norms(model)[2])
    mean[0] += 0.3 * var[0].sqrt()

    diagnosis = diagnose(model, make_batches(), progress=False)

    assert diagnosis.verdict == "healthy"
    assert "Pass that network as before=." in str(diagnosis)
    assert "before=" not in str(diagnose(make_healthy(), make_batches(), progress=False))
