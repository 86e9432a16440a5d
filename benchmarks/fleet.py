"""Several small networks of one recipe on one device: one after the other, in workers, stacked, and as CUDA graphs.

A fleet in sweeps would be worth its code where one of the last two takes a third of the time of eight workers. All
train each network by the same updates (SGD with Nesterov momentum, a learning rate of its own) on batches of its own.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from benchmarks.networks import build_resnet
from benchmarks.timing import Result, Sides, alternate
from benchmarks.training import build_cnn

ROUNDS = 5
_NETWORKS = 8
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """A network by its seed, and how it is trained."""

    name: str
    build: Callable[[int], nn.Module]
    shape: tuple[int, int, int]
    batch: int
    steps: int

    def draw(self, seed: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
        """Draw a network's weights, its images [steps, batch, C, H, W] and its labels [steps, batch]."""
        torch.manual_seed(seed)
        model = self.build(seed).train().to(device)
        images = torch.randn(self.steps, self.batch, *self.shape, device=device)
        labels = torch.randint(10, (self.steps, self.batch), device=device)
        return model, images, labels


def _build_resnet(seed: int) -> nn.Module:
    return build_resnet(20, seed=seed)


RECIPES = {
    "cpu": (Recipe("cnn, 16×16", partial(build_cnn, 16), (1, 16, 16), 64, 20),),
    "cuda": (
        Recipe("cnn, 16×16", partial(build_cnn, 16), (1, 16, 16), 64, 200),
        Recipe("resnet-20, 32×32", _build_resnet, (3, 32, 32), 128, 50),
    ),
}


def choose_rate(seed: int) -> float:
    """Choose a network's learning rate: networks of a fleet may differ in it."""
    return 0.02 * (1 + seed)


def update(parameters: Tensors, gradients: Tensors, velocities: Tensors, rates: Tensor) -> None:
    """Update parameters in place: of one network with a rate [], or stacked, [networks, ...], with rates [networks]."""
    for name, weights in parameters.items():
        change = gradients[name] + _WEIGHT_DECAY * weights
        velocity = velocities[name].mul_(_MOMENTUM).add_(change)
        rate = rates.reshape(rates.shape + (1,) * (weights.dim() - rates.dim()))
        weights.sub_(rate * (change + _MOMENTUM * velocity))


class Trainer:
    """One network in training."""

    def __init__(self, recipe: Recipe, device: str, seed: int) -> None:
        self.model, self.images, self.labels = recipe.draw(seed, device)
        self.parameters = dict(self.model.named_parameters())
        self.velocities = {name: torch.zeros_like(weights) for name, weights in self.parameters.items()}
        self.rate = torch.tensor(choose_rate(seed), device=device)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Make the update of a batch."""
        loss = F.cross_entropy(self.model(images), labels)
        gradients = torch.autograd.grad(loss, [*self.parameters.values()])
        by_name = dict(zip(self.parameters, gradients, strict=True))
        with torch.no_grad():
            update(self.parameters, by_name, self.velocities, self.rate)

    def capture(self, stream: torch.cuda.Stream) -> Callable[[int], None]:
        """Capture an update as a CUDA graph; returns the function that makes the update of a step by it."""
        # A graph reads fixed addresses: each batch is copied into these two tensors before a replay.
        images = self.images[0].clone()
        labels = self.labels[0].clone()
        before = copy.deepcopy(self.model.state_dict())
        # A graph is captured on a stream of its own, which has to wait until the tensors above are there.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their algorithms before a graph is captured
                self.update(images, labels)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.update(images, labels)

        # Warming up has trained the network. It is put back in place, because the graph knows its addresses.
        self.model.load_state_dict(before)
        for velocity in self.velocities.values():
            velocity.zero_()
        torch.cuda.synchronize()

        def replay(step: int) -> None:
            with torch.cuda.stream(stream):
                images.copy_(self.images[step])
                labels.copy_(self.labels[step])
                graph.replay()

        return replay


def train_alone(recipe: Recipe, device: str, seed: int) -> nn.Module:
    """Train one network."""
    trainer = Trainer(recipe, device, seed)
    for step in range(recipe.steps):
        trainer.update(trainer.images[step], trainer.labels[step])
    return trainer.model


def train_one_by_one(recipe: Recipe, device: str) -> None:
    """Train all networks, one after the other."""
    for seed in range(_NETWORKS):
        train_alone(recipe, device, seed)


def train_stacked(recipe: Recipe, device: str, networks: int = _NETWORKS) -> tuple[Tensors, Tensors]:
    """Train all networks at once by `vmap`; returns their parameters and buffers, [networks, ...] each."""
    drawn = [recipe.draw(seed, device) for seed in range(networks)]
    models = [model for model, _, _ in drawn]
    # Networks come second, so that each step has them first, where `vmap` maps over them.
    images = torch.stack([each for _, each, _ in drawn], dim=1)
    labels = torch.stack([each for _, _, each in drawn], dim=1)
    rates = torch.tensor([choose_rate(seed) for seed in range(networks)], device=device)

    parameters, buffers = stack_module_state(models)
    # They are updated in place, which autograd refuses of leaves that require a gradient.
    parameters = {name: weights.detach() for name, weights in parameters.items()}
    velocities = {name: torch.zeros_like(weights) for name, weights in parameters.items()}
    # Only its structure is used: parameters and buffers come from the stacks.
    skeleton = copy.deepcopy(models[0]).to("meta")

    def compute_loss(parameters: Tensors, buffers: Tensors, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(skeleton, (dict(parameters), dict(buffers)), (images,))
        return F.cross_entropy(logits, labels)

    compute_gradients = vmap(grad(compute_loss))
    for step in range(recipe.steps):
        gradients = compute_gradients(parameters, buffers, images[step], labels[step])
        update(parameters, gradients, velocities, rates)
    return parameters, buffers


def train_captured(recipe: Recipe, device: str, networks: int = _NETWORKS) -> list[nn.Module]:
    """Train each network by a CUDA graph of its update, all on streams of their own."""
    trainers = [Trainer(recipe, device, seed) for seed in range(networks)]
    replays = [trainer.capture(torch.cuda.Stream()) for trainer in trainers]
    for step in range(recipe.steps):
        for replay in replays:
            replay(step)
    torch.cuda.synchronize()
    return [trainer.model for trainer in trainers]


def time_workers(recipe: Recipe, device: str, networks: int = _NETWORKS) -> float:
    """Measure the seconds that as many processes take, a network each, from the moment when all are ready."""
    # CUDA cannot be used in a process that is forked from one that uses it.
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(networks)
    seconds = context.Queue()
    workers = [
        context.Process(target=_work, args=(recipe, device, seed, ready, seconds), daemon=True)
        for seed in range(networks)
    ]
    for worker in workers:
        worker.start()
    # A worker that has failed never answers, hence the limit in seconds.
    taken = [seconds.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return max(taken)


def _work(recipe: Recipe, device: str, seed: int, ready: Any, seconds: Any) -> None:
    torch.set_num_threads(1)
    train_alone(recipe, device, seed)  # libraries are loaded, and have chosen their algorithms
    ready.wait()
    started = time.perf_counter()
    train_alone(recipe, device, seed)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds.put(time.perf_counter() - started)


def measure_fleet(device: str) -> Iterator[Result]:
    """Compare eight networks stacked, or captured as graphs, with eight workers, and with one after the other."""
    for recipe in RECIPES[device]:
        sides: Sides = {
            "one by one": partial(train_one_by_one, recipe, device),
            "stacked": partial(train_stacked, recipe, device),
        }
        if device == "cuda":
            sides = {**sides, "graphs": partial(train_captured, recipe, device)}
        timed = alternate(f"{_NETWORKS} × {recipe.name}, {recipe.steps} steps of {recipe.batch}", ROUNDS, sides)
        workers = time_workers(recipe, device)
        for side in sides:
            limit = None if side == "one by one" else 1 / 3
            yield Result(timed.what, side, timed.seconds[side], f"{_NETWORKS} workers", workers, limit)
        yield timed.compare("stacked", "one by one")
