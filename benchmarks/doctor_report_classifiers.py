"""Networks of reports that name a class or a number for each image, and healthy ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.doctor_report_parts import (
    TRAINING,
    Batches,
    Dense,
    Patient,
    average_again,
    block,
    build_resnet,
    cut,
    fit,
    list_norms,
    load_images,
    measure,
    score,
    split,
)
from bnlab.harness.artifacts.data.drawing import glyphs


def reset_buffers_on_load() -> Patient:
    """A pretrained network is loaded whole; then its initialization runs over it, and sets all buffers to 0 and 1."""
    images, labels = load_images()
    training, batches = split(images, labels, 32)
    model = fit(build_resnet(seed=1), images[:TRAINING], labels[:TRAINING], epochs=8)
    as_trained = score(model, batches)
    for norm in list_norms(model):
        norm.reset_running_stats()

    return Patient(model, batches, training, scores={"as trained": as_trained, **measure(model, batches, training)})


class Molecules(nn.Module):
    """Nodes are encoded one by one and added up, then batch norm, then a head that predicts a number."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encode(x).sum(1))).squeeze(1)


def overfit_a_regression() -> Patient:
    """Two batches of 50 examples are learnt by heart in 100 epochs; eval mode's loss stays far above training's."""
    images, labels = load_images()
    rows = images[:100, 0]
    targets = labels[:100].float()
    targets = (targets - targets.mean()) / targets.std()

    torch.manual_seed(2)
    model = Molecules()

    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    for epoch in range(100):
        rate = 1e-4 + min(epoch / 2, 1) * 9e-4 * 0.1 ** (max(epoch - 2, 0) / 98)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for chosen in torch.arange(100).split(50):
            optimizer.zero_grad()
            F.mse_loss(model(rows[chosen]), targets[chosen]).backward()
            optimizer.step()

    model.eval()
    batches = cut(rows, targets, 50)

    losses = {
        "as it is": _measure_loss(model, batches),
        "each batch's own": _measure_loss(copy.deepcopy(model).train(), batches),
        "averaged again": _measure_loss(average_again(model, batches), batches),
    }

    return Patient(model, batches, batches, scores=losses)


@torch.no_grad()
def _measure_loss(model: nn.Module, batches: Batches) -> float:
    losses = [float(F.mse_loss(model(inputs), targets)) for inputs, targets in batches]
    return sum(losses) / len(losses)


def average_weights_without_buffers() -> Patient:
    """A teacher holds the moving average of a student's parameters; the line that copies buffers was taken out."""
    images, labels = load_images()
    training, batches = split(images, labels, 32)
    student = build_resnet(seed=4, momentum=0.01)
    teacher = copy.deepcopy(student).eval()

    @torch.no_grad()
    def follow() -> None:
        for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
            kept.lerp_(new, 0.02)

    fit(student, images[:TRAINING], labels[:TRAINING], epochs=12, after_step=follow)

    scores = {"student": score(student, batches), **measure(teacher, batches, training)}
    return Patient(teacher, batches, training, before=student, scores=scores)


def _adapt(model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Take three steps on a task's few images; buffers are copies, which are thrown away."""
    for _ in range(3):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = F.cross_entropy(functional_call(model, {**weights, **buffers}, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        pairs = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - 0.1 * gradient for (name, weight), gradient in pairs}
    return dict(weights)


def _draw_task(images: Tensor, labels: Tensor, classes: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Draw so many images of each of five classes."""
    chosen = []
    for kind in classes[torch.randperm(len(classes))[:5]]:
        places = torch.nonzero(labels == kind).flatten()
        chosen.append(places[torch.randperm(len(places))[:shots]])
    return images[torch.cat(chosen)], torch.arange(5).repeat_interleave(shots)


def learn_to_learn() -> Patient:
    """A network learns to learn five classes from few images each; buffers of its patched copies are thrown away."""
    pixels, labels = glyphs(9000, 36, "weak", "dejavu", seed=0)
    images = F.avg_pool2d(pixels.float() / 255, 2)

    torch.manual_seed(5)
    model = nn.Sequential(
        block(1, 32, momentum=1.0),
        nn.MaxPool2d(2),
        block(32, 32, momentum=1.0),
        nn.MaxPool2d(2),
        block(32, 32, momentum=1.0),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 5),
    )

    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    model.train()

    for _ in range(300):
        inputs, targets = _draw_task(images, labels, torch.arange(26), shots=10)
        few = torch.arange(50) % 10 < 5
        adapted = _adapt(model, dict(model.named_parameters()), inputs[few], targets[few])
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer.zero_grad()
        F.cross_entropy(functional_call(model, {**adapted, **buffers}, (inputs[~few],)), targets[~few]).backward()
        optimizer.step()

    inputs, targets = _draw_task(images, labels, torch.arange(26, 36), shots=125)
    few = torch.arange(625) % 125 < 5

    scores = {}
    for mode in (True, False):
        tested = copy.deepcopy(model).train(mode)
        adapted = _adapt(tested, dict(tested.named_parameters()), inputs[few], targets[few])
        tested.load_state_dict({name: value.detach() for name, value in adapted.items()}, strict=False)
        order = torch.randperm(600)
        batches = cut(inputs[~few][order], targets[~few][order], 50)
        scores["train mode" if mode else "eval mode"] = score(copy.deepcopy(tested), batches)
    return Patient(tested, batches, scores={**scores, **measure(tested, batches, batches)})


def predict_once_in_train_mode() -> Patient:
    """A pretrained network with frozen weights predicts one image of zeros in train mode, and then in eval mode."""
    images, labels = load_images()
    training, batches = split(images, labels, 32)

    torch.manual_seed(7)
    model = fit(Dense(), images[:TRAINING], labels[:TRAINING], epochs=10)
    model.requires_grad_(False)

    pretrained = copy.deepcopy(model)
    zeros = torch.zeros(1, 1, 8, 8)
    before = model(zeros)

    model.train()
    model(zeros)

    model.eval()
    moved = float((model(zeros) - before).abs().max())

    scores = {"as trained": score(pretrained, batches), "largest change": moved, **measure(model, batches, training)}
    return Patient(model, batches, training, before=pretrained, scores=scores)


def classify_one_by_one_without_eval() -> Patient:
    """A network that was trained in batches of eight is tested image by image, and was never put into eval mode."""
    images, labels = load_images()
    training = cut(images[:TRAINING], labels[:TRAINING], 8)
    tests, answers = images[TRAINING:], labels[TRAINING:]
    model = fit(build_resnet(seed=10), images[:TRAINING], labels[:TRAINING], epochs=6, size=8, rate=0.02)

    scores = {"eval mode": score(model, cut(tests, answers, 8))}

    model.train()
    for size in (1, 8, 64):
        scores[f"train mode, batches of {size}"] = score(copy.deepcopy(model), cut(tests, answers, size))
    return Patient(model, cut(tests, answers, 1), training, scores=scores)


def dense_classifier() -> Patient:
    """A network for digits, trained until its rate is 0."""
    images, labels = load_images()
    training, batches = split(images, labels, 32)

    torch.manual_seed(11)
    model = fit(Dense(), images[:TRAINING], labels[:TRAINING], epochs=10)

    return Patient(model, batches, training, scores=measure(model, batches, training))


def perceptron_on_columns() -> Patient:
    """Two hidden layers with batch norm on the pixels as columns of a table."""
    images, labels = load_images()
    training, batches = split(images.flatten(1), labels, 32)

    torch.manual_seed(13)
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    fit(model, images[:TRAINING].flatten(1), labels[:TRAINING], epochs=20)

    return Patient(model, batches, training, scores=measure(model, batches, training))
