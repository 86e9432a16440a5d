"""Networks of reports that name a class for each pixel, and a healthy one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.doctor_report_parts import (
    TRAINING,
    Batches,
    Patient,
    PyramidNet,
    UNet,
    cut,
    fit,
    list_norms,
    load_scenes,
    measure,
    score,
    score_by_batch,
    split,
)


def _scan(images: Tensor, hospital: int) -> Tensor:
    """Give scenes the contrast, brightness and noise of one of three scanners."""
    generator = torch.Generator().manual_seed(hospital)
    contrast, brightness = ((0.5, 0.6), (1.0, 0.0), (1.8, -0.5))[hospital]
    return contrast * images + brightness + 0.1 * torch.randn(images.shape, generator=generator)


def average_parameters_of_clients() -> Patient:
    """Three hospitals train a U-Net; the server averages parameters alone. The first one's model is evaluated."""
    scenes, masks = load_scenes()
    masks = (masks > 0).long()
    parts = torch.arange(900).chunk(3)

    torch.manual_seed(3)
    clients = [UNet(classes=2) for _ in range(3)]
    for client in clients[1:]:
        client.load_state_dict(clients[0].state_dict())

    last = copy.deepcopy(clients[0])

    for number in range(8):
        for hospital, (client, part) in enumerate(zip(clients, parts, strict=True)):
            fit(client, _scan(scenes[part], hospital), masks[part], epochs=1, size=20, falls=False, seed=number)
        last = copy.deepcopy(clients[0])
        with torch.no_grad():
            for shared in zip(*(client.parameters() for client in clients), strict=True):
                mean = torch.stack(list(shared)).mean(0)
                for parameter in shared:
                    parameter.copy_(mean)

    tests = [_scan(scenes[TRAINING + hospital :: 3], hospital) for hospital in range(3)]
    images = torch.cat(tests)
    labels = torch.cat([masks[TRAINING + hospital :: 3] for hospital in range(3)])
    order = torch.randperm(len(images))
    batches = cut(images[order], labels[order], 20)
    training = cut(torch.cat([_scan(scenes[part], number) for number, part in enumerate(parts)]), masks[:900], 20)

    whole = copy.deepcopy(clients[0])
    mean_state = {
        name: torch.stack([client.state_dict()[name].double() for client in clients]).mean(0)
        for name in whole.state_dict()
    }
    whole.load_state_dict(mean_state)

    scores = {"all averaged": score(whole, batches), **measure(clients[0], batches, training)}
    return Patient(clients[0], batches, training, before=last, scores=scores)


def _darken(images: Tensor) -> Tensor:
    """Make scenes those of a night: dark, with lamps in it."""
    return 2 * images - 1


def _judge(judge: nn.Module, predicted: Tensor, truth: float, detached: bool = True) -> Tensor:
    """Measure how far a discriminator is from saying that predictions are of light scenes (1) or dark ones (0)."""
    shares = predicted.softmax(1)
    guess = judge(shares.detach() if detached else shares)
    return F.binary_cross_entropy_with_logits(guess, torch.full_like(guess, truth))


def adapt_to_a_darker_domain() -> Patient:
    """Light scenes and then dark ones pass through a network in each step; it is tested on light ones.

    The weights of batch norm are frozen, and its averages are not. What is predicted for dark scenes has to look to a
    discriminator as what is predicted for light ones.
    """
    scenes, masks = load_scenes()

    torch.manual_seed(6)
    model = PyramidNet()
    fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=10, size=20)

    pretrained = copy.deepcopy(model)
    for norm in list_norms(model):
        for parameter in norm.parameters():
            parameter.requires_grad_(False)
    judge = nn.Sequential(nn.Conv2d(11, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, 2, 1))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    optimizer = torch.optim.SGD(weights, 0.005, momentum=0.9)
    judges = torch.optim.Adam(judge.parameters(), 1e-3)

    model.train()
    mixed: Batches = []

    for _ in range(200):
        source = torch.randint(0, 500, (4,))
        target = torch.randint(500, TRAINING, (4,))
        optimizer.zero_grad()
        light = model(scenes[source])
        F.cross_entropy(light, masks[source]).backward()
        dark = model(_darken(scenes[target]))
        (0.01 * _judge(judge, dark, 1.0, detached=False)).backward()
        optimizer.step()

        judges.zero_grad()
        _judge(judge, light, 1.0).backward()
        _judge(judge, dark, 0.0).backward()
        judges.step()
        mixed += [(scenes[source], masks[source]), (_darken(scenes[target]), masks[target])]

    model.eval()

    light_batches = cut(scenes[TRAINING:], masks[TRAINING:], 20)
    dark_batches = cut(_darken(scenes[TRAINING:]), masks[TRAINING:], 20)

    scores = measure(model, light_batches, cut(scenes[:500], masks[:500], 20))
    scores |= {f"dark, {name}": value for name, value in measure(model, dark_batches, dark_batches).items()}
    return Patient(model, light_batches, mixed[-100:], before=pretrained, scores=scores)


def segment_one_by_one_without_eval() -> Patient:
    """A U-Net predicts its test images one by one, and was never put into eval mode."""
    scenes, masks = load_scenes()

    torch.manual_seed(8)
    model = UNet()
    fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=12, size=20)
    tests, answers = scenes[TRAINING : TRAINING + 300], masks[TRAINING : TRAINING + 300]

    scores = {"eval mode": score(model, cut(tests, answers, 1))}
    training = cut(scenes[:TRAINING], masks[:TRAINING], 20)

    model.train()

    pretrained = copy.deepcopy(model)
    for size in (1, 20):
        scores[f"train mode, batches of {size}"] = score(copy.deepcopy(model), cut(tests, answers, size))
    score(model, cut(tests, answers, 1))

    return Patient(model, cut(tests, answers, 1), training, before=pretrained, scores=scores)


def train_on_with_batches_of_two() -> Patient:
    """A pretrained pyramid network is trained on in batches of two images, in which a part of 1 by 1 has two values."""
    scenes, masks = load_scenes()
    training, batches = split(scenes, masks, 20)

    torch.manual_seed(9)
    model = PyramidNet()
    fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=15, size=20)

    pretrained = copy.deepcopy(model)
    fit(model, scenes[:TRAINING], masks[:TRAINING], epochs=2, size=2, rate=0.01, falls=False)
    pairs = cut(scenes[:TRAINING], masks[:TRAINING], 2)

    scores = {"as pretrained": score(pretrained, batches), **measure(model, batches, training)}
    scores["pairs, each batch's own"] = score_by_batch(model, cut(scenes[TRAINING:-1], masks[TRAINING:-1], 2))
    return Patient(model, batches, pairs, before=pretrained, scores=scores)


def segmenting_unet() -> Patient:
    """A U-Net, trained until its rate is 0."""
    scenes, masks = load_scenes()
    training, batches = split(scenes, masks, 20)

    torch.manual_seed(12)
    model = fit(UNet(), scenes[:TRAINING], masks[:TRAINING], epochs=12, size=20)

    return Patient(model, batches, training, scores=measure(model, batches, training))
