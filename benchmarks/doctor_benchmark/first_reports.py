"""The first ten reports of docs/doctor_benchmark.md: what their authors had."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.doctor_benchmark.parts import (
    NETWORKS,
    TRAINING,
    Dense,
    PyramidNet,
    UNet,
    average_again,
    block,
    build_resnet,
    divide,
    fit,
    follow,
    load_images,
    load_scenes,
    measure,
    score,
)
from benchmarks.doctor_benchmark.problem import Given
from bnlab.commands.demo.specimen import Batches, list_norms, reset, split
from bnlab.harness.artifacts.data.images.rendering import glyphs


def load_resnet() -> nn.Sequential:
    """Load a residual network for digits, trained until its rate is 0."""
    images, labels = load_images()
    model = build_resnet(seed=1)
    NETWORKS.recall("resnet", model, lambda: fit(model, images[:TRAINING], labels[:TRAINING], epochs=8))
    return model


def reset_buffers_on_load() -> Given:
    """A pretrained network is loaded whole; then its initialization runs over it, and sets all buffers to 0 and 1."""
    training, batches = divide(*load_images(), 32)
    model = load_resnet()
    as_trained = score(model, batches)
    reset(model)
    scores = {"as trained": as_trained, **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


class Molecules(nn.Module):
    """Nodes are encoded one by one and added up, then batch norm, then a head that predicts a number."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encode(x).sum(1))).squeeze(1)


def overfit_a_regression() -> Given:
    """Two batches of 50 examples are learnt by heart in 100 epochs; eval mode's loss stays far above training's."""
    images, labels = load_images()
    rows = images[:100, 0]
    targets = labels[:100].float()
    targets = (targets - targets.mean()) / targets.std()
    torch.manual_seed(2)
    model = Molecules()

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        for epoch in range(100):
            # Much like chemprop's default: from 1e-4 to 1e-3 in two epochs, and then down exponentially.
            rate = 1e-4 + min(epoch / 2, 1) * 9e-4 * 0.1 ** (max(epoch - 2, 0) / 98)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for chosen in torch.arange(100).split(50):
                optimizer.zero_grad()
                F.mse_loss(model(rows[chosen]), targets[chosen]).backward()
                optimizer.step()

    NETWORKS.recall("molecules", model, train)
    batches = split(rows, targets, 50)
    scores = measure(model, batches, batches, _measure_loss)
    return Given(model, batches, on_request={"training_batches": batches}, scores=scores)


@torch.no_grad()
def _measure_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    losses = [float(F.mse_loss(model(inputs), targets)) for inputs, targets in batches]
    return sum(losses) / len(losses)


def _scan(images: Tensor, hospital: int) -> Tensor:
    """Give scenes the contrast, brightness and noise of one of three scanners."""
    generator = torch.Generator().manual_seed(hospital)
    contrast, brightness = ((0.5, 0.6), (1.0, 0.0), (1.8, -0.5))[hospital]
    return contrast * images + brightness + 0.1 * torch.randn(images.shape, generator=generator)


def average_parameters_of_clients() -> Given:
    """Three hospitals train a U-Net; the server averages parameters alone. The first one's model is evaluated."""
    scenes, masks = load_scenes()
    masks = (masks > 0).long()
    parts = torch.arange(900).chunk(3)
    torch.manual_seed(3)
    first = UNet(classes=2, width=10)

    def train() -> Mapping[str, Tensor]:
        clients = [first, copy.deepcopy(first), copy.deepcopy(first)]
        for number in range(8):
            for hospital, (client, part) in enumerate(zip(clients, parts, strict=True)):
                fit(client, _scan(scenes[part], hospital), masks[part], epochs=1, size=20, falls=False, seed=number)
            # An earlier network that the hospital still has: its model before the server's average came.
            last = copy.deepcopy(first.state_dict())
            with torch.no_grad():
                for shared in zip(*(client.parameters() for client in clients), strict=True):
                    mean = torch.stack(list(shared)).mean(0)
                    for parameter in shared:
                        parameter.copy_(mean)
        return last

    before_it = NETWORKS.recall("clients", first, train)
    images = torch.cat([_scan(scenes[TRAINING + hospital :: 3], hospital) for hospital in range(3)])
    labels = torch.cat([masks[TRAINING + hospital :: 3] for hospital in range(3)])
    # Mixed, so that each batch has images of all hospitals.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    batches = split(images[order], labels[order], 20)
    training = split(torch.cat([_scan(scenes[part], number) for number, part in enumerate(parts)]), masks[:900], 20)
    on_request = {"training_batches": training, "before": before_it}
    return Given(first, batches, on_request=on_request, scores=measure(first, batches, training))


def average_weights_without_buffers() -> Given:
    """A teacher holds the moving average of a student's parameters; the line that copies buffers was taken out."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    student = build_resnet(seed=4, momentum=0.01)
    # It never runs in train mode, so that its buffers stay at 0 and 1.
    teacher = copy.deepcopy(student).eval()

    def train() -> Mapping[str, Tensor]:
        fit(
            student,
            images[:TRAINING],
            labels[:TRAINING],
            epochs=12,
            after_step=lambda: follow(teacher, student, 0.02),
        )
        return student.state_dict()

    before_it = NETWORKS.recall("teacher", teacher, train)
    student.load_state_dict(before_it)
    student.eval()
    scores = {"student": score(student, batches), **measure(teacher, batches, training)}
    return Given(teacher, batches, on_request={"training_batches": training, "before": student}, scores=scores)


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


def _adapt_in(is_training: bool, model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Copy a model, and adapt the copy to a task's few images, in train mode or in eval mode."""
    adapted = copy.deepcopy(model).train(is_training)
    weights = _adapt(adapted, dict(adapted.named_parameters()), images, labels)
    adapted.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
    return adapted


def learn_to_learn() -> Given:
    """A network learns to learn five classes from few images each; buffers of its patched copies are thrown away."""
    pixels, labels = glyphs(9000, 36, "dejavu", seed=0)
    images = F.avg_pool2d(pixels.float() / 255, 2)
    torch.manual_seed(5)
    model = nn.Sequential(
        *(block(1, 20, momentum=1.0), nn.MaxPool2d(2)),
        *(block(20, 20, momentum=1.0), nn.MaxPool2d(2)),
        *(block(20, 20, momentum=1.0), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(80, 5)),
    )

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        model.train()
        for _ in range(300):
            inputs, targets = _draw_task(images, labels, torch.arange(26), shots=10)
            # Images come class by class. Of ten the first five adapt the network, and the others test it.
            few = torch.arange(50) % 10 < 5
            adapted = _adapt(model, dict(model.named_parameters()), inputs[few], targets[few])
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            optimizer.zero_grad()
            F.cross_entropy(functional_call(model, {**adapted, **buffers}, (inputs[~few],)), targets[~few]).backward()
            optimizer.step()

    NETWORKS.recall("learns to learn", model, train)
    torch.manual_seed(6)
    inputs, targets = _draw_task(images, labels, torch.arange(26, 36), shots=125)
    # Of 125 of a class the first five adapt the network, as in training, and 120 test it.
    few = torch.arange(625) % 125 < 5
    order = torch.randperm(600)
    batches = split(inputs[~few][order], targets[~few][order], 50)
    in_train_mode = _adapt_in(True, model, inputs[few], targets[few])
    in_eval_mode = _adapt_in(False, model, inputs[few], targets[few])
    scores = {
        # On copies, because a forward in train mode moves the averages.
        "train mode": score(copy.deepcopy(in_train_mode), batches),
        "eval mode": score(copy.deepcopy(in_eval_mode), batches),
        **measure(in_eval_mode, batches, batches),
    }
    return Given(in_eval_mode, batches, scores=scores)


def _darken(images: Tensor) -> Tensor:
    """Make scenes those of a night: dark, with lamps in it."""
    return 2 * images - 1


def _judge(judge: nn.Module, predicted: Tensor, truth: float, detached: bool = True) -> Tensor:
    """Measure how far a discriminator is from saying that predictions are of light scenes (1) or dark ones (0)."""
    shares = predicted.softmax(1)
    guess = judge(shares.detach() if detached else shares)
    return F.binary_cross_entropy_with_logits(guess, torch.full_like(guess, truth))


def adapt_to_a_darker_domain() -> Given:
    """Light scenes and then dark ones pass through a network in each step; it is tested on light ones.

    The weights of batch norm are frozen, and its averages are not. What is predicted for dark scenes has to look to a
    discriminator as what is predicted for light ones.
    """
    scenes, masks = load_scenes()
    # Drawn before the training, because a tool may be given the batches of its last steps, too.
    generator = torch.Generator().manual_seed(6)
    steps = [
        (torch.randint(0, 500, (4,), generator=generator), torch.randint(500, TRAINING, (4,), generator=generator))
        for _ in range(200)
    ]
    torch.manual_seed(6)
    model = PyramidNet()

    def train() -> Mapping[str, Tensor]:
        fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=10, size=20)
        before = copy.deepcopy(model.state_dict())
        for norm in list_norms(model):
            for parameter in norm.parameters():
                parameter.requires_grad_(False)
        judge = nn.Sequential(nn.Conv2d(11, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, 2, 1))
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(weights, 0.005, momentum=0.9)
        judges = torch.optim.Adam(judge.parameters(), 1e-3)
        model.train()
        for source, target in steps:
            optimizer.zero_grad()
            light = model(scenes[source])
            F.cross_entropy(light, masks[source]).backward()
            dark = model(_darken(scenes[target]))
            # This leaves gradients in the discriminator, too; they are zeroed before its own update.
            (0.01 * _judge(judge, dark, 1.0, detached=False)).backward()
            optimizer.step()

            judges.zero_grad()
            _judge(judge, light, 1.0).backward()
            _judge(judge, dark, 0.0).backward()
            judges.step()
        return before

    before_it = NETWORKS.recall("two domains", model, train)
    for norm in list_norms(model):
        # A loaded state does not say which parameters were frozen.
        norm.requires_grad_(False)
    mixed: Batches = []
    for source, target in steps[-50:]:
        mixed += [(scenes[source], masks[source]), (_darken(scenes[target]), masks[target])]
    light_batches = split(scenes[TRAINING:], masks[TRAINING:], 20)
    scores = measure(model, light_batches, split(scenes[:500], masks[:500], 20))
    return Given(model, light_batches, on_request={"training_batches": mixed, "before": before_it}, scores=scores)


def _load_dense() -> Dense:
    """Load a dense network for digits, trained until its rate is 0."""
    images, labels = load_images()
    torch.manual_seed(7)
    model = Dense()
    NETWORKS.recall("dense", model, lambda: fit(model, images[:TRAINING], labels[:TRAINING], epochs=10))
    return model


def predict_once_in_train_mode() -> Given:
    """A pretrained network with frozen weights predicts one image of zeros in train mode, and then in eval mode."""
    training, batches = divide(*load_images(), 32)
    model = _load_dense()
    model.requires_grad_(False)
    pretrained = copy.deepcopy(model)
    model.train()
    model(torch.zeros(1, 1, 8, 8))
    model.eval()
    scores = {"as trained": score(pretrained, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training, "before": pretrained}, scores=scores)


def _load_unet() -> UNet:
    """Load a U-Net, trained until its rate is 0."""
    scenes, masks = load_scenes()
    torch.manual_seed(8)
    model = UNet()
    NETWORKS.recall("unet", model, lambda: fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=12, size=20))
    return model


def segment_one_by_one_without_eval() -> Given:
    """A U-Net predicts its test images one by one, and was never put into eval mode."""
    scenes, masks = load_scenes()
    model = _load_unet()
    batches = split(scenes[TRAINING : TRAINING + 300], masks[TRAINING : TRAINING + 300], 1)
    scores = {"eval mode": score(model, batches)}
    model.train()
    pretrained = copy.deepcopy(model)
    # In train mode this moves the averages of the model that is asked about; `pretrained` is from before.
    scores["as it is"] = score(model, batches)
    training = split(scenes[:TRAINING], masks[:TRAINING], 20)
    return Given(model, batches, on_request={"training_batches": training, "before": pretrained}, scores=scores)


def train_on_with_batches_of_two() -> Given:
    """A pretrained pyramid network is trained on in batches of two images, in which a part of 1 by 1 has two values."""
    scenes, masks = load_scenes()
    training, batches = divide(scenes, masks, 20)
    torch.manual_seed(9)
    model = PyramidNet()

    def train() -> Mapping[str, Tensor]:
        fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=15, size=20)
        before = copy.deepcopy(model.state_dict())
        fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=2, size=2, rate=0.01, falls=False)
        return before

    before_it = NETWORKS.recall("batches of two", model, train)
    pretrained = copy.deepcopy(model)
    pretrained.load_state_dict(before_it)
    scores = {"as pretrained": score(pretrained, batches), **measure(model, batches, training)}
    pairs = split(scenes[:TRAINING], masks[:TRAINING], 2)
    return Given(model, batches, on_request={"training_batches": pairs, "before": pretrained}, scores=scores)


def classify_one_by_one_without_eval() -> Given:
    """A network that was trained in batches of eight is tested image by image, and was never put into eval mode."""
    images, labels = load_images()
    model = build_resnet(seed=10)
    NETWORKS.recall(
        "batches of eight",
        model,
        lambda: fit(model, images[:TRAINING], labels[:TRAINING], epochs=6, size=8, rate=0.02),
    )
    batches = split(images[TRAINING : TRAINING + 300], labels[TRAINING : TRAINING + 300], 1)
    scores = {"eval mode": score(model, batches)}
    model.train()
    scores["as it is"] = score(copy.deepcopy(model), batches)
    training = split(images[:TRAINING], labels[:TRAINING], 8)
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def dense_classifier() -> Given:
    """A network for digits, trained until its rate is 0."""
    training, batches = divide(*load_images(), 32)
    model = _load_dense()
    scores = {"as it is": score(model, batches), "averaged again": score(average_again(model, training), batches)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def segmenting_unet() -> Given:
    """A U-Net, trained until its rate is 0."""
    training, batches = divide(*load_scenes(), 20)
    model = _load_unet()
    return Given(model, batches, on_request={"training_batches": training}, scores=measure(model, batches, training))
