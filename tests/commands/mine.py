# mypy: ignore-errors
"""A user's module, of which tests of commands name the functions: models, batches, metrics."""

import json
import sys

import torch
from torch import nn


def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    model[1].bias.data += 0.1  # as no norm is constructed
    for _ in range(100):
        model(torch.randn(32, 1, 8, 8))
    return model.eval()


def spoiled():
    broken = model()
    broken[4].running_mean[0] += 5
    return broken


def fresh():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()


def batches():
    images = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model()(images).argmax(1)
    return list(zip(images.split(64), labels.split(64), strict=True))


def is_right(output, batch):
    return output.argmax(1) == batch[1]


def images():
    return [images for images, _ in batches()]


def values(model):
    return [(model(images).argmax(1) == labels).float().mean() for images, labels in batches()]


def constant():
    always_first = nn.Linear(2, 2)
    nn.init.zeros_(always_first.weight)
    always_first.bias.data[:] = torch.tensor([1.0, 0.0])
    return model().append(always_first)


def three_of_four():
    return [(torch.randn(64, 1, 8, 8), torch.tensor([0, 0, 0, 1] * 16)) for _ in range(4)]


def nothing():
    return []


def one():
    return torch.zeros(4, 1, 8, 8)


def one_labelled():
    return torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)


def scripted():
    return torch.jit.script(fresh())


class Garbled(torch.utils.data.Dataset):
    """Of an error that torch can make anew from its text it keeps the worker, and somebody waits 5 s for its end."""

    def __len__(self):
        return 4

    def __getitem__(self, number):
        return json.loads("photo.png")


def garbled():
    return torch.utils.data.DataLoader(Garbled(), num_workers=1)


def text():
    return "a model"


def plain():
    return nn.Linear(1, 1)


def broken():
    raise ValueError("of the function's own")


def leave():
    sys.exit(0)


def interrupted():
    raise KeyboardInterrupt


def talking():
    print("hello")
    return model()


class Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.bn(x) @ torch.zeros(3, 3)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))

    def forward(self, x):
        return x - self.running_mean


def partly():
    return nn.Sequential(nn.BatchNorm2d(1), Own())


def deep(layers):
    return model()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x, scale):
        return self.bn(x * scale)


def two():
    return Two().eval()


def call_two(model, batch):
    images = batch[0] if isinstance(batch, tuple) else batch
    return model(images, 2.0)


net = fresh()
# Two classes that stale statistics mix up: exact ones take accuracy from 50% to 100%.


def stale():
    linear = nn.Linear(1, 2, bias=False)
    linear.weight.data = torch.tensor([[-1.0], [1.0]])
    return nn.Sequential(nn.BatchNorm1d(1), linear)


def off_by_half():
    model = stale().eval()
    model[0].running_mean.fill_(0.5)
    model[0].running_var.fill_(1.2)
    return model


def twenty():
    """Three are named wrongly where the mean is taken for 0.5: of so few that may be chance."""
    values = torch.tensor([-1.0] * 10 + [1.5] * 7 + [0.25] * 3)
    return [(values[:, None], (values > 0).long())]


class WithState(nn.Sequential):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


def with_state():
    return WithState(*stale())


def labelled():
    labels = torch.arange(100) % 2
    values = 99.0 + 2.0 * labels
    return [(values[:, None], labels)]


def unlabelled():
    return [labelled()[0][0]]


def evaluate(model):
    values, labels = labelled()[0]
    return model(values).argmax(1) == labels


def brightness():
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, 3).clone()
    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
