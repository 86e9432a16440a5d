"""The third ten reports of docs/doctor_benchmark.md: what their authors had."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.doctor_benchmark.first_reports import load_resnet
from benchmarks.doctor_benchmark.parts import (
    TRAINING,
    build_resnet,
    divide,
    fit,
    load_images,
    measure,
    score,
)
from benchmarks.doctor_benchmark.problem import Given
from bnlab.commands.demo.specimen import Batches, list_norms, split


def _round_to_half(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Round what a convolution returns to half precision, in which all above 65,504 is infinite."""
    return output.half().float()


def _train_on_in_half_precision(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train for one more epoch, in which a single image is so bright that half precision overflows."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(_round_to_half) for conv in convs]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(30))

    model.train()
    for step, chosen in enumerate(order.split(32)):
        inputs = images[chosen]
        if step == 5:
            inputs[0] *= 1e6
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels[chosen]).backward()
        # A scaler of gradients skips such a step as well, so that no weight is harmed.
        if all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None):
            optimizer.step()
    for hook in hooks:
        hook.remove()
    model.eval()


def validate_after_an_overflow() -> Given:
    """A step of a training in mixed precision overflows and is skipped; averages are not finite from then on."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    before = load_resnet()
    model = copy.deepcopy(before)
    _train_on_in_half_precision(model, images[:TRAINING], labels[:TRAINING])
    scores = {"before": score(before, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training, "before": before}, scores=scores)


def validate_with_slow_averages() -> Given:
    """A network is trained for 248 updates, each of which moves its averages by a thousandth."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)

    def train(momentum: float) -> nn.Module:
        model = build_resnet(seed=31, momentum=momentum)
        fit(model, images[:TRAINING], labels[:TRAINING], epochs=8)
        return model

    model = train(momentum=0.001)
    scores = {"momentum 0.1": score(train(momentum=0.1), batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def fine_tune_with_a_momentum_of_0() -> Given:
    """A pretrained network is trained on other images, and its batch norms have a momentum of 0."""
    images, labels = load_images()
    # Light digits on a dark ground were learnt; the other data set has dark ones on a light ground, of less contrast.
    others = 0.3 - 0.6 * images
    training, batches = divide(others, labels, 32)
    before = load_resnet()

    def fine_tune(momentum: float) -> nn.Module:
        model = copy.deepcopy(before)
        for norm in list_norms(model):
            norm.momentum = momentum
        fit(model, others[:TRAINING], labels[:TRAINING], epochs=3, rate=0.02)
        return model

    model = fine_tune(momentum=0.0)
    scores = {"momentum 0.1": score(fine_tune(momentum=0.1), batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training, "before": before}, scores=scores)


def build_separable() -> nn.Sequential:
    """Build a network of separable convolutions; those for each channel have a bias, though batch norm follows."""
    torch.manual_seed(33)
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in ((16, 24, 1), (24, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()]
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@torch.no_grad()
def fold(model: nn.Sequential, *, scales_bias: bool) -> nn.Sequential:
    """Fold each batch norm into the convolution before it; leave the convolution's own bias unscaled if told so."""
    layers: list[nn.Module] = []
    for layer in model:
        if not isinstance(layer, nn.BatchNorm2d):
            layers.append(copy.deepcopy(layer))
            continue
        conv = layers[-1]
        assert isinstance(conv, nn.Conv2d)
        scale = layer.weight / (layer.get_buffer("running_var") + layer.eps).sqrt()
        shift = layer.bias - layer.get_buffer("running_mean") * scale
        bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
        conv.weight *= scale[:, None, None, None]
        conv.bias = nn.Parameter((bias * scale if scales_bias else bias) + shift)
    return nn.Sequential(*layers).eval()


def classify_with_biases_folded_unscaled() -> Given:
    """Batch norms are folded into convolutions, and the biases that these had already are not scaled."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    trained = build_separable()
    fit(trained, images[:TRAINING], labels[:TRAINING], epochs=10)
    model = fold(trained, scales_bias=False)
    scores = {
        "before": score(trained, batches),
        "rightly folded": score(fold(trained, scales_bias=True), batches),
        "as it is": score(model, batches),
    }
    return Given(model, batches, on_request={"training_batches": training, "before": trained}, scores=scores)


@torch.no_grad()
def classify_images_in_batches_and_alone() -> Given:
    """A trained network returns much the same for an image in a batch and alone, but not to the last digit."""
    images, labels = load_images()
    model = load_resnet()
    tests, answers = images[TRAINING:], labels[TRAINING:]
    batches = split(tests, answers, 4)
    together = torch.cat([model(inputs) for inputs, _ in batches])
    alone = torch.cat([model(image) for image in tests.split(1)])
    scores = {
        "in batches": score(model, batches),
        "alone": score(model, split(tests, answers, 1)),
        "largest difference of a logit": float((together - alone).abs().max()),
    }
    training = split(images[:TRAINING], labels[:TRAINING], 32)
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def build_plain(seed: int, classes: int = 10) -> nn.Sequential:
    """Build a convolutional network without any normalization."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU()),
        nn.Linear(64, classes),
    )


class Wrapped(nn.Module):
    """A network inside of the module that trains it, whose file puts "model." before each name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def classify_from_a_file_of_other_names() -> Given:
    """A file is loaded with `strict=False`, and no name in it is one of the network's."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    trained = Wrapped(build_plain(seed=35))
    fit(trained, images[:TRAINING], labels[:TRAINING], epochs=8)
    model = build_plain(seed=135).eval()
    model.load_state_dict(trained.state_dict(), strict=False)
    scores = {"as trained": score(trained, batches), "as it is": score(model, batches)}
    on_request = {"training_batches": training, "before": trained.model, "expected": scores["as trained"]}
    return Given(model, batches, on_request=on_request, scores=scores)


class Complexity(nn.Module):
    """Scores a molecule [N, 64 bits] from 1 to 5; `F.dropout` is called as if there were training alone."""

    def __init__(self, follows_mode: bool = False) -> None:
        super().__init__()
        self.follows_mode = follows_mode
        self.hidden = nn.ModuleList([nn.Linear(64, 100), nn.Linear(100, 100), nn.Linear(100, 100)])
        self.head = nn.Linear(100, 1)

    def forward(self, bits: Tensor) -> Tensor:
        x = bits
        for layer in self.hidden:
            x = F.relu(layer(x))
            # Without the last argument it is True.
            x = F.dropout(x, 0.2, self.training) if self.follows_mode else F.dropout(x, 0.2)
        return 1 + 4 * torch.sigmoid(self.head(x)).squeeze(1)


def draw_molecules(count: int) -> tuple[Tensor, Tensor]:
    """Draw molecules as bits of the parts that they have, and how complex they are."""
    generator = torch.Generator().manual_seed(36)
    bits = (torch.rand(count, 64, generator=generator) < 0.3).float()
    weights = torch.randn(64, generator=generator)
    rings = bits[:, :32] * bits[:, 32:]
    return bits, 1 + 4 * torch.sigmoid(0.5 * (bits - 0.3) @ weights + 0.2 * rings.sum(1) - 0.6)


def _compare_scores(output: Tensor, batch: Any) -> Tensor:
    return -(output - batch[1]).square()


@torch.no_grad()
def _measure_error(model: nn.Module, batches: Sequence[Any]) -> float:
    errors = [_compare_scores(model(batch[0]), batch) for batch in batches]
    return -float(torch.cat(errors).mean())


def score_molecules_with_dropout() -> Given:
    """A network of linear layers drops out in eval mode too, and scores a molecule otherwise each time."""
    bits, targets = draw_molecules(3000)
    training, batches = split(bits[:2000], targets[:2000], 50), split(bits[2000:], targets[2000:], 50)
    torch.manual_seed(36)
    model = Complexity()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(30):
        for inputs, values in training:
            optimizer.zero_grad()
            F.mse_loss(model(inputs), values).backward()
            optimizer.step()
    model.eval()

    mended = Complexity(follows_mode=True).eval()
    mended.load_state_dict(model.state_dict())
    scores = {
        "without dropout": _measure_error(mended, batches),
        "as it is": _measure_error(model, batches),
        "once more": _measure_error(model, batches),
    }
    return Given(model, batches, {"metric": _compare_scores}, {"training_batches": training}, scores)


def classify_folders_in_order_of_their_names() -> Given:
    """A network of twenty classes is tested with labels that count folders, whose names are sorted as words."""
    images, digits = load_images()
    # The classes from 10 on are the digits' negatives.
    everything = torch.cat([images[:TRAINING], -images[:TRAINING]])
    classes = torch.cat([digits[:TRAINING], digits[:TRAINING] + 10])
    tests = torch.cat([images[TRAINING:], -images[TRAINING:]])
    right = torch.cat([digits[TRAINING:], digits[TRAINING:] + 10])
    mixed = torch.randperm(len(tests), generator=torch.Generator().manual_seed(37))
    tests, right = tests[mixed], right[mixed]

    model = build_plain(seed=37, classes=20)
    fit(model, everything, classes, epochs=8)
    folders = sorted(str(name) for name in range(20))
    labels = torch.tensor([folders.index(str(name)) for name in right.tolist()])
    batches = split(tests, labels, 32)
    scores = {"by the network's order": score(model, split(tests, right, 32)), "as it is": score(model, batches)}
    # Whoever tests a published network knows what it should reach, and has no images that it was trained with.
    return Given(model, batches, on_request={"expected": scores["by the network's order"]}, scores=scores)


class Reader(nn.Module):
    """Reads a prompt [N, T] of words by attention, and names the word that comes next; no word is masked."""

    def __init__(self, words: int = 12, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        layers = [nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, words)

    def forward(self, prompts: Tensor) -> Tensor:
        # The last word has seen all the others.
        return self.head(self.layers(self.words(prompts))[:, -1])


Prompt = tuple[Tensor, int]

_FILLING = 0  # the word that fills up shorter prompts, from the left


def draw_prompts(count: int, seed: int) -> list[Prompt]:
    """Draw prompts of 3 to 40 words; the word that comes next is the one that a prompt has most of."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for _ in range(count):
        label = int(torch.randint(1, 12, (), generator=generator))
        length = int(torch.randint(3, 41, (), generator=generator))
        words = torch.randint(1, 12, (length,), generator=generator)
        is_label = torch.rand(length, generator=generator) < 0.35
        # At least one of a short prompt's words has to tell.
        is_label[0] = True
        prompts.append((torch.where(is_label, label, words), label))
    return prompts


def batch_prompts(prompts: Sequence[Prompt], size: int) -> Batches:
    """Make batches of prompts, filled up from the left to the length of the longest."""
    batches = []
    for start in range(0, len(prompts), size):
        chosen = prompts[start : start + size]
        longest = max(len(words) for words, _ in chosen)
        filled = torch.stack([F.pad(words, (longest - len(words), 0), value=_FILLING) for words, _ in chosen])
        batches.append((filled, torch.tensor([label for _, label in chosen])))
    return batches


def read_prompts_in_batches() -> Given:
    """A network learnt from prompts that nothing was added to, and attends to what fills them up in a batch."""
    prompts = draw_prompts(4000, seed=38)
    tests = prompts[3000:]
    by_length: dict[int, list[Prompt]] = {}
    for prompt in prompts[:3000]:
        by_length.setdefault(len(prompt[0]), []).append(prompt)
    training = [batch for same in by_length.values() for batch in batch_prompts(same, 32)]

    torch.manual_seed(38)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    order = torch.Generator().manual_seed(38)
    for _ in range(6):
        for number in torch.randperm(len(training), generator=order).tolist():
            inputs, labels = training[number]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    model.eval()

    batches = batch_prompts(tests, 16)
    scores = {"one by one": score(model, batch_prompts(tests, 1)), "as it is": score(model, batches)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def classify_images_scaled_twice() -> Given:
    """A network learnt images from 0 to 1, and is shown such images divided by 255."""
    images, labels = load_images()
    scaled = (images + 1) / 2
    training, right = divide(scaled, labels, 32)
    model = build_plain(seed=39)
    fit(model, scaled[:TRAINING], labels[:TRAINING], epochs=15)
    batches: Batches = [(inputs / 255, answers) for inputs, answers in right]
    with torch.no_grad():
        named = torch.cat([model(inputs).argmax(1) for inputs, _ in batches])
    scores = {
        "scaled once": score(model, right),
        "as it is": score(model, batches),
        "share of one class": float(named.bincount().max()) / len(named),
    }
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)
