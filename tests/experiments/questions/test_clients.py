"""Clients that average their weights, against plain loops in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import running_statistics
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.clients import federated
from experiments.questions.clients.federated import divide, take_part, train_clients
from tests.helpers import measure, rise_and_fall
from tests.references import Descent, accuracy_under, batch_norms, float64_copy, full_batch_population

TABLE = "experiments.questions.clients.federated.Clients"


def count_classes(part: Split) -> list[int]:
    return sorted({*part.labels.tolist()})


def divide_all(classes_each: int) -> list[Split]:
    """Divide six images of each of 36 classes; the value of an image's pixel is its number."""
    labels = torch.arange(36).repeat(6)
    images = torch.arange(216.0).view(216, 1, 1, 1)
    split = Split(images, labels)
    parts = divide(split, 36, classes_each, torch.Generator().manual_seed(0))
    return [take_part(split, part) for part in parts]


@pytest.mark.parametrize("classes_each", [36, 12, 6])
def test_every_image_has_one_client(classes_each: int) -> None:
    parts = divide_all(classes_each)

    numbers = torch.cat([part.images.flatten() for part in parts])
    assert sorted(numbers.tolist()) == list(range(216))
    for part in parts:
        assert torch.equal(part.labels, part.images.flatten().long() % 36)


def test_clients_have_their_classes() -> None:
    assert [count_classes(part) for part in divide_all(6)] == [list(range(6 * k, 6 * k + 6)) for k in range(6)]

    expected = [sorted(label % 36 for label in range(6 * k, 6 * k + 12)) for k in range(6)]
    assert [count_classes(part) for part in divide_all(12)] == expected
    assert [len(part.labels) for part in divide_all(6)] == [36] * 6


def train_slowly(run: Run, numbers: list[Tensor], local_steps: int, until: int, fixed: bool) -> nn.Module:
    """Federated averaging in float64, one weight after the other; 40 updates is the length of the schedule."""
    parts = [take_part(run.dataset.train, part) for part in numbers]
    models = [float64_copy(run.new_model()).train() for _ in parts]
    descents = [Descent(model) for model in models]
    for step in range(until):
        rate = run.config.optimizer.peak_lr(32) * rise_and_fall(step, 40)
        for k, (model, part) in enumerate(zip(models, parts, strict=True)):
            per_epoch = -(-len(part.labels) // 32)
            epoch, place = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(run.batches.seeds.order + 1000 * (k + 1) + epoch)
            chosen = torch.randperm(len(part.labels), generator=generator)[32 * place : 32 * place + 32]
            loss = F.cross_entropy(model(part.images[chosen].double()), part.labels[chosen])
            descents[k].step(loss, rate)

        if (step + 1) % local_steps == 0 or step + 1 == until:
            for tensors in zip(*(model.state_dict().values() for model in models), strict=True):
                if tensors[0].is_floating_point():
                    mean = sum(tensors) / len(tensors)
                    for tensor in tensors:
                        tensor.copy_(mean)
            if fixed and step + 1 >= 20:
                for model in models:
                    for layer in batch_norms(model).values():
                        layer.eval()
    return models[0].eval()


@pytest.mark.parametrize("fixed", [False, True])
def test_weights_are_trained(fixed: bool, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 sums leave after 24 updates, relative to weights and buffers of about 0.1 to 1."""
    monkeypatch.setattr(federated, "CLIENTS", 2)
    parts = divide(trained.dataset.train, 10, 6, seed_by("parts"))

    model, local = train_clients(trained, parts, 4, until=24, fixed=fixed)

    expected = train_slowly(trained, parts, 4, 24, fixed)
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(values.double(), expected.state_dict()[name], rtol=1e-2, atol=1e-3)
    for name, layer in batch_norms(model).items():
        means = torch.stack([statistics[name].mean for statistics in local])
        torch.testing.assert_close(means.mean(0), layer.get_buffer("running_mean").double(), rtol=1e-5, atol=1e-6)
        assert (means.std(0).max() == 0) == fixed


def test_random_transforms_are_drawn_for_the_clients_own_images(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform that changes nothing leaves each image with its label."""
    monkeypatch.setattr(federated, "CLIENTS", 2)
    parts = divide(trained.dataset.train, 10, 6, seed_by("parts"))
    plain, _ = train_clients(trained, parts, 4, until=8, fixed=False)
    images = trained.dataset.train.images
    transformed = Run(trained.config)
    transformed.dataset = replace(trained.dataset, augmented=lambda numbers, seed: images[numbers])

    found, _ = train_clients(transformed, parts, 4, until=8, fixed=False)

    for name, values in found.state_dict().items():
        assert torch.equal(values, plain.state_dict()[name])


def test_rows(copied: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federated, "CLIENTS", 2)
    monkeypatch.setattr(federated, "TRAININGS", ((6, "batch"),))
    monkeypatch.setattr(federated, "LOCAL_STEPS", (8,))
    run = Run(copied)
    parts = divide(run.dataset.train, 10, 6, seed_by(f"{run.id} clients"))
    model, local = train_clients(run, parts, 8, until=40, fixed=False)
    test = run.dataset.test
    image = 1.5 / len(test.labels)  # one image may lie on the border

    frame = measure(copied, TABLE)

    candidates: dict[str, list[Any]] = {
        "exact": [full_batch_population(model, run.dataset.train.images)],
        "averaged": [running_statistics(model)],
        "local": local,
    }
    for kind, statistics in candidates.items():
        found = [accuracy_under(model, each, test.images, test.labels) for each in statistics]
        row = select(frame, statistics=kind).iloc[0]
        assert row["accuracy"] == pytest.approx(sum(found) / len(found), abs=image)
