"""The second ten reports of docs/doctor_benchmark.md: what their authors had."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.doctor_benchmark.first_reports import load_resnet
from benchmarks.doctor_benchmark.parts import (
    NETWORKS,
    TRAINING,
    average_again,
    block,
    divide,
    fit,
    follow,
    load_images,
    load_scenes,
    measure,
    score,
)
from benchmarks.doctor_benchmark.problem import Given
from benchmarks.gallery.planters import list_averages, zero_both
from bnlab.commands.demo.specimen import Batches, list_norms, reset, split
from tests.doctor import digits


class FullResolution(nn.Module):
    """A stream that keeps the resolution of images, and parts that see it pooled and add to it."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = block(1, width)
        self.pooled = nn.ModuleList([nn.Sequential(block(width, width), block(width, width)) for _ in range(3)])
        self.head = nn.Sequential(block(width, width), nn.Conv2d(width, 11, 1))

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        for factor, part in zip((2, 4, 4), self.pooled, strict=True):
            stream = stream + F.interpolate(part(F.max_pool2d(stream, factor)), scale_factor=factor)
        return self.head(stream)


def segment_with_averages_never_updated() -> Given:
    """A residual network that keeps the resolution names each pixel; nothing ever updated its averages."""
    scenes, masks = load_scenes()
    training, batches = divide(scenes, masks, 20)
    torch.manual_seed(20)
    model = FullResolution()
    NETWORKS.recall(
        "full resolution", model, lambda: fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=10, size=20)
    )
    trained = copy.deepcopy(model)
    reset(model)
    scores = {"with its averages": score(trained, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def classify_with_weights_that_training_took_as_1() -> Given:
    """Training takes the weights of batch norm as 1, and weight decay has made a tenth of what is stored."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    torch.manual_seed(21)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 12, 1), (12, 16, 2), (16, 20, 1), (20, 24, 2)):
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    for norm in list_norms(model):
        # Weights stay at 1 in training, which takes them as 1.
        norm.weight.requires_grad_(False)
    NETWORKS.recall("weights of 1", model, lambda: fit(model, images[:TRAINING], labels[:TRAINING], epochs=10))
    trained = copy.deepcopy(model)
    for norm in list_norms(model):
        norm.weight.fill_(0.1).requires_grad_(True)
    scores = {"with weights of 1": score(trained, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


def classify_from_a_file_of_parameters() -> Given:
    """The parameters of a trained classifier are loaded into a new one."""
    trained = digits.make_healthy(0)
    model = digits.build(9)
    model.load_state_dict(dict(trained.named_parameters()), strict=False)
    model.eval()
    # The last, smaller batch is left out, as in training.
    training = digits.make_training_batches()[:-1]
    batches = digits.make_batches()
    scores = {"as trained": score(trained, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training, "before": trained}, scores=scores)


def classify_in_train_mode() -> Given:
    """A loaded residual network is asked image by image, in train mode."""
    images, labels = load_images()
    model = load_resnet()
    batches = split(images[TRAINING:], labels[TRAINING:], 1)
    scores = {"eval mode": score(model, batches)}
    model.train()
    scores["as it is"] = score(copy.deepcopy(model), batches)
    training = split(images[:TRAINING], labels[:TRAINING], 32)
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


class Recurrent(nn.Module):
    """A network of two directions, with batch norm on what the rows of an image [B, 1, T, C] add to each state."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.inputs = nn.ModuleList([nn.Linear(8, width, bias=False) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(2)])
        self.states = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1)
        ends = [self.run(number, part) for number, part in enumerate((rows, rows.flip(1)))]
        return self.head(torch.cat(ends, 1))

    def run(self, number: int, rows: Tensor) -> Tensor:
        """Run in one direction; return the last state [B, width]."""
        inputs = self.inputs[number](rows)
        normalized = self.norms[number](inputs.flatten(0, 1)).view_as(inputs)
        state = torch.zeros_like(inputs[:, 0])
        for each in normalized.unbind(1):
            state = torch.tanh(each + self.states[number](state))
        return state


def classify_sequences_with_averages_of_0() -> Given:
    """A recurrent network is loaded from a file without its averages, which the loader has as 0 and 0."""
    images, labels = load_images()
    training, batches = divide(images, labels, 32)
    torch.manual_seed(23)
    model = Recurrent()
    NETWORKS.recall("recurrent", model, lambda: fit(model, images[:TRAINING], labels[:TRAINING], epochs=12))
    trained = copy.deepcopy(model)
    for mean, var in list_averages(model):
        zero_both(mean, var)
    scores = {"as trained": score(trained, batches), **measure(model, batches, training)}
    return Given(model, batches, on_request={"training_batches": training, "before": trained}, scores=scores)


def build_generator() -> nn.Sequential:
    """Build a generator of images [B, 1, 8, 8] from codes [B, 16]."""
    torch.manual_seed(24)
    return nn.Sequential(
        *(nn.Linear(16, 96, bias=False), nn.Unflatten(1, (24, 2, 2)), nn.BatchNorm2d(24), nn.ReLU()),
        *(block(24, 16), block(16, 16), nn.Upsample(scale_factor=2)),
        *(block(16, 16), block(16, 12), nn.Upsample(scale_factor=2)),
        *(block(12, 12), block(12, 12)),
        *(nn.Conv2d(12, 1, 3, padding=1), nn.Tanh()),
    )


def encode(images: Tensor) -> Tensor:
    """Give each image a code of 16 numbers: random projections, of variance 1."""
    projection = torch.randn(64, 16, generator=torch.Generator().manual_seed(24))
    # 0.39 makes the mean of all pixels 0, and 4.5 the variance of the codes 1.
    return (images.flatten(1) + 0.39) @ projection / 4.5


def load_generators() -> tuple[nn.Sequential, nn.Sequential]:
    """Load a generator whose weights are an average over a training, with that network's buffers, and that network."""
    images, _ = load_images()
    codes = encode(images[:TRAINING])
    generator, averaged = build_generator(), build_generator()

    def train() -> Mapping[str, Tensor]:
        optimizer = torch.optim.AdamW(generator.parameters(), 3e-2, weight_decay=1.0)
        generator.train()
        order = torch.Generator().manual_seed(24)
        for _ in range(6):
            for chosen in torch.randperm(TRAINING, generator=order).split(25):
                optimizer.zero_grad()
                F.mse_loss(generator(codes[chosen]), images[chosen]).backward()
                optimizer.step()
                follow(averaged, generator, 0.01)
        # The mistake: averaged weights beside the buffers of weights that were not averaged.
        averaged.load_state_dict(dict(generator.named_buffers()), strict=False)
        return generator.state_dict()

    before_it = NETWORKS.recall("averaged generator", averaged, train)
    generator.load_state_dict(before_it)
    return averaged, generator.eval()


@torch.no_grad()
def _measure_distance(model: nn.Module, batches: Sequence[Any]) -> float:
    """Measure the mean squared distance between what is generated, and the images that codes were made from."""
    images, _ = load_images()
    made = torch.cat([model(codes) for codes in batches])
    return float(F.mse_loss(made, images[TRAINING : TRAINING + len(made)]))


def generate_with_averaged_weights() -> Given:
    """Weights are averaged over a training, and the buffers beside them are those of the network that was trained."""
    images, _ = load_images()
    averaged, generator = load_generators()
    training = list(encode(images[:TRAINING]).split(25))
    batches = list(encode(images[TRAINING:]).split(25))
    scores = {
        "not averaged": _measure_distance(generator, batches),
        **measure(averaged, batches, training, _measure_distance),
    }
    return Given(averaged, batches, on_request={"training_batches": training, "before": generator}, scores=scores)


def generate_in_train_mode() -> Given:
    """A pretrained generator makes images in train mode."""
    images, _ = load_images()
    _, generator = load_generators()
    batches = list(encode(images[TRAINING:]).split(5))
    scores = {"eval mode": _measure_distance(generator, batches)}
    generator.train()
    scores["as it is"] = _measure_distance(copy.deepcopy(generator), batches)
    return Given(generator, batches, scores=scores)


_GOAL = torch.tensor([4.5, 2.5])
_MOVES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
_DISCOUNT = 0.9


def value_actions(states: Tensor) -> Tensor:
    """Value four moves in a plane, each of which costs 1, until the goal is reached: [N, 4]."""
    after = states[:, None] + _MOVES
    distance = (after - _GOAL).abs().sum(2)
    # This move costs 1, and so does each move of the way that is left, discounted: a geometric series.
    return -1 - _DISCOUNT * (1 - _DISCOUNT**distance) / (1 - _DISCOUNT)


def value_with_a_target_network() -> Given:
    """A target network follows the parameters of the network that is trained; its buffers stay at 0 and 1."""
    states = 7 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(26))
    values = value_actions(states)
    torch.manual_seed(26)
    online = nn.Sequential(
        *(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Linear(32, 4),
    )
    target = copy.deepcopy(online).eval()

    def train() -> Mapping[str, Tensor]:
        optimizer = torch.optim.Adam(online.parameters(), 3e-3)
        online.train()
        order = torch.Generator().manual_seed(26)
        for _ in range(20):
            for chosen in torch.randperm(1000, generator=order).split(50):
                optimizer.zero_grad()
                F.mse_loss(online(states[chosen]), values[chosen]).backward()
                optimizer.step()
                follow(target, online, 0.05)
        return online.state_dict()

    before_it = NETWORKS.recall("target", target, train)
    online.load_state_dict(before_it)
    online.eval()
    tests = list(states[1000:].split(50))

    def evaluate(model: nn.Module) -> Tensor:
        made = torch.cat([model(batch) for batch in tests])
        return -(made - values[1000:]).square().mean(1)

    @torch.no_grad()
    def score_values(model: nn.Module, batches: Sequence[Any]) -> float:
        return float(evaluate(model).mean())

    scores = {"online": score_values(online, tests), **measure(target, tests, tests, score_values)}
    training = list(states[:1000].split(50))
    on_request = {"training_batches": training, "before": online}
    return Given(target, tests, {"evaluate": evaluate}, on_request, scores)


class Encoder(nn.Module):
    """Three convolutions over sequences [B, 2, T], padded with 0 in both channels; the mean over what is no padding."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (2, width, width):
            layers += [nn.Conv1d(inputs, width, 5, padding=2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 6)

    def forward(self, sequences: Tensor) -> Tensor:
        # Noise is added to all sequences, so that only padding is 0 in both channels.
        inside = (sequences != 0).any(1, keepdim=True)
        features = self.layers(sequences) * inside
        return self.head(features.sum(2) / inside.sum(2))


def draw_sequences(count: int, seed: int) -> list[tuple[Tensor, int]]:
    """Draw waves [2, T] of one of six frequencies in noise, most of them short, from 8 to 256 steps long."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for _ in range(count):
        label = int(torch.randint(6, (), generator=generator))
        length = int(8 * 2 ** (5 * float(torch.rand((), generator=generator)) ** 4))
        phase = 6.28 * torch.rand(2, 1, generator=generator)
        wave = torch.sin((0.4 + 0.3 * label) * torch.arange(length) + phase)
        sequences.append((1 + wave + 0.7 * torch.randn(2, length, generator=generator), label))
    return sequences


def pad(sequences: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Make a batch of sequences as long as the longest, and their labels."""
    longest = max(sequence.shape[1] for sequence, _ in sequences)
    padded = torch.stack([F.pad(sequence, (0, longest - sequence.shape[1])) for sequence, _ in sequences])
    return padded, torch.tensor([label for _, label in sequences])


def encode_padded_sequences() -> Given:
    """Averages are of batches with their padding; sequences are classified one by one, without any."""
    sequences = draw_sequences(1600, seed=27)
    training = [pad(sequences[start : start + 8]) for start in range(0, 1000, 8)]
    batches: Batches = [pad([each]) for each in sequences[1000:]]
    torch.manual_seed(27)
    model = Encoder()

    def train() -> None:
        epochs = 4
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * len(training)))
        model.train()
        for _ in range(epochs):
            for inputs, labels in training:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                schedule.step()

    NETWORKS.recall("padded", model, train)
    scores = {
        "as it is": score(model, batches),
        "training, by each batch": score(copy.deepcopy(model).train(), training),
        "training, as it is": score(model, training),
        "averaged again, without padding": score(average_again(model, batches), batches),
    }
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)


class AlwaysTraining(nn.BatchNorm2d):
    """Batch norm whose forward is always told that it is training."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)


def classify_with_layers_that_always_train() -> Given:
    """The layers of a residual network normalize by the batch in eval mode too."""
    images, labels = load_images()
    model = load_resnet()
    batches = split(images[TRAINING:], labels[TRAINING:], 4)
    training = split(images[:TRAINING], labels[:TRAINING], 32)
    scores = {"with torch's own": score(model, batches)}
    for norm in list_norms(model):
        # Weights and buffers stay; only the forward is another one.
        norm.__class__ = AlwaysTraining
    scores["as it is"] = score(copy.deepcopy(model), batches)
    return Given(model, batches, on_request={"training_batches": training}, scores=scores)
