"""Small networks, comparisons, and the fingerprint by which a borrowed model is found to have come back as it was."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import math
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bnlab import MomentTrace, Statistics
from bnlab.common.vision import torchvision
from bnlab.harness import load
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.jobs import execute
from bnlab.harness.lab.compose import plan_jobs
from bnlab.harness.measurements import find_measurement

Model = TypeVar("Model", bound=nn.Module)
EMPTY: Mapping[str, float] = {}

_RANKS = """
import os, sys
import torch, torch.distributed as dist
import bnlab, tests.helpers  # once for both ranks, of which each would wait for it
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
{script}
dist.destroy_process_group()
print("fine\\n", end="", flush=True)  # in one piece, as two processes write
if rank == 0:
    os.wait()
"""


def run_two_ranks(script: str, folder: Path) -> None:
    """Run `script` in two processes of one group, each with its `rank`; AssertionError unless both end well."""
    command = [sys.executable, "-c", _RANKS.replace("{script}", script), str(folder / "rendezvous")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, encoding="utf-8", timeout=180)
    # Gloo may still tell, after the end, that the other side was first to close.
    assert done.stdout.splitlines().count("fine") == 2, (done.stdout, done.stderr)


def write_copies(root: Path, train: int, test: int) -> None:
    """Image files of ten classes in folders, each with its class as colour and one pixel of its own."""
    write_images(root / "train", train, first_pixel=0, classes=10)
    write_images(root / "test", test, first_pixel=100, classes=10)


def write_images(root: Path, count: int, first_pixel: int, classes: int = 4) -> None:
    for index in range(count):
        label = index % classes
        image = np.full((32, 32, 3), label, np.uint8)
        image[0, 0] = first_pixel + index
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")


def write_fashion(root: Path, train: int, test: int) -> None:
    """The four files of Fashion-MNIST, with images of noise that begin with their number, of ten classes in turn."""
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count) % 256
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            content = bytes(header) + values.tobytes()
            (root / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))


def randomized(model: Model, seed: int = 0) -> Model:
    """`model` with weights, affine parameters and running buffers away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 2.0),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.weight.data.normal_(0, 1.5 / module.weight[0].numel() ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(generator=generator)
    return model


def plain(channels: int = 3, width: int = 6) -> nn.Sequential:
    """Two convolutions with batch norm and a classifier; takes any image size."""
    return randomized(
        nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.BatchNorm2d(2 * width, eps=1e-3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(2 * width, 4),
        )
    )


class Block(nn.Module):
    """A residual block whose shortcut has a norm of its own."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride=2), nn.BatchNorm2d(outside))
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def residual(width: int = 6) -> nn.Sequential:
    return randomized(
        nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Block(width, 2 * width),
            Block(2 * width, 3 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3 * width, 4),
        )
    )


def images(*sizes: int, channels: int = 3, side: int = 8, seed: int = 1) -> list[Tensor]:
    """Batches of the given sizes, each with a contrast and brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, channels, side, side, generator=generator) * (1 + i / 4) + i / 2 for i, n in enumerate(sizes)
    ]


def measure_difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], eps: Mapping[str, float] = EMPTY
) -> float:
    """The largest difference of layers' moments: of a mean in σ, of a variance relative, with σ² = var + eps."""
    assert set(found) == set(expected)
    worst = 0.0
    for name, moments in expected.items():
        counts = {found[name].count, moments.count}
        assert len(counts) == 1 or any(map(math.isnan, counts))
        scale = moments.var + eps.get(name, 0.0)
        for difference, unit in (
            (found[name].mean - moments.mean, scale.sqrt()),
            (found[name].var - moments.var, scale),
        ):
            off = (difference.abs() / unit).where(difference != 0, 0.0)
            worst = max(worst, float(off.nan_to_num(math.inf).max()))
    return worst


def assert_moments(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Count, mean (in standard deviations) and variance (relative) agree with a reference (count, mean, var)."""
    assert found.mean.dtype == found.var.dtype == torch.float64
    assert measure_difference({"": found}, {"": expected}) <= tolerance


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that a borrower promises to leave as it was, by a name for each."""
    state: dict[str, Any] = {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": repr(np.random.get_state()),
        "python's random state": random.getstate(),
        "gradients are on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        values = tensor.detach().flatten().contiguous().view(torch.uint8)
        state[f"identity of {name}"] = id(tensor)
        state[f"values of {name}"] = values.numpy().tobytes()
        state[f"gradient of {name}"] = (tensor.requires_grad, tensor.grad is None)

    for name, module in model.named_modules():
        hooks = [value for key, value in vars(module).items() if "hooks" in key]
        state[f"mode of {name}"] = module.training
        state[f"hooks of {name}"] = [list(value) for value in hooks if isinstance(value, dict)]
        state[f"own forward of {name}"] = "forward" in vars(module)
    return state


@contextlib.contextmanager
def unchanged(*models: object) -> Iterator[None]:
    """The block leaves `models` bit for bit as they were (what is no module is passed over)."""
    modules = [model for model in models if isinstance(model, nn.Module)]
    before = [fingerprint(model) for model in modules]
    yield
    for model, old in zip(modules, before, strict=True):
        new = fingerprint(model)
        assert old.keys() == new.keys()
        changed = [key for key, value in old.items() if new[key] != value]
        assert not changed


def train(model: nn.Module, batches: Iterable[Tensor], lr: float = 0.05) -> list[Tensor]:
    """A step of SGD on each batch; the outputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    outputs = []
    for batch in batches:
        optimizer.zero_grad()
        output = model(batch)
        output.square().mean().backward()
        optimizer.step()
        outputs.append(output.detach().clone())
    return outputs


def with_momentum(model: Model, momentum: float | None) -> Model:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    return model


def without_dropout(model: Model) -> Model:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def assert_equal_statistics(found: Statistics, expected: Statistics, tolerance: float = 5e-6) -> None:
    assert list(found) == list(expected)
    assert found.eps == expected.eps
    assert measure_difference(found, expected) <= tolerance


def same_traces(a: MomentTrace, b: MomentTrace) -> bool:
    return (a.first_step, a.last_step, a.layout) == (b.first_step, b.last_step, b.layout) and all(
        x.steps == y.steps
        and x.counts == y.counts
        and x.updates == y.updates
        and torch.equal(x.start, y.start)
        and torch.equal(x.moments, y.moments)
        for x, y in zip(a.layers.values(), b.layers.values(), strict=True)
    )


class AddsItsCalls(nn.Module):
    """Adds the number of its calls so far to its input, in eval mode too, as observers of quantization move on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        calls = self.get_buffer("calls").add_(1)
        return x + calls


def measure(config: Config, name: str, **settings: Any) -> pd.DataFrame:
    """Run a job that measures one table, and load that.

    Args:
        config: a network, which is trained unless it is there.
        name: of the measurement, as `measurements=` takes it.
        settings: others that the job has, such as `estimator`.
    """
    run_job(config, measurements=name, **settings)
    return load(config.name, config.results)[find_measurement(name).name]


SMALL = {
    "data.images": "400",
    "model.depth": "2",
    "model.width": "8",
    "batch_size": "32",
    "steps": "40",
    "evaluate_at": "[1,7,20,40]",
    "threads": "1",
    "device": "cpu",
    "hydra/launcher": "basic",
}
"""A small convolutional network on 360 digits, 40 updates in batches of 32."""


def sweep_small(results: Path, *words: str, expect: int = 0) -> None:
    """`bnlab sweep` of that network in this process, with further words or other values."""
    given = {word.partition("=")[0] for word in words}
    small = [f"{key}={value}" for key, value in SMALL.items() if not given & {key, key.partition(".")[0]}]
    by_key = {word.partition("=")[0]: word for word in words}  # of two words on a key the latter
    code = importlib.import_module("bnlab.harness.lab.sweep").main([*small, *by_key.values(), f"results={results}"])
    assert code == expect


def find_network(results: Path) -> Path:
    """The folder of the only network in a folder of results."""
    (folder,) = results.glob("runs/*/seed_0")
    return folder


def plan_network(*words: str) -> Run:
    """The network that the words of a command line stand for, which is not trained; of two on a key the latter."""
    by_key = {word.partition("=")[0]: word for word in words}
    (config,) = plan_jobs([*by_key.values()]).configs
    return Run(config)


def train_network(run: Run) -> Run:
    """Train a network unless it is there."""
    ensure_trained(run)
    return run


def run_job(config: Config, **settings: Any) -> None:
    """Run a job, with other settings where they are given."""
    execute(replace(config, **settings))


def rise_and_fall(step: int, steps: int) -> float:
    """The share of the peak learning rate for update `step + 1` of a one-cycle schedule, by hand."""
    if step < 0.2 * steps:
        return 0.05 + 0.95 * step / (0.2 * steps)
    return (steps - step) / (0.8 * steps)


def require(package: str) -> None:
    """Skip the test where an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; make test-all installs it")
    if package == "transformers" and importlib.util.find_spec("torchaudio") is not None:
        try:
            importlib.import_module("torchaudio")
        except OSError:
            pytest.skip("transformers imports torchaudio, which is installed and made for another build of torch")
    torchvision()  # the packages import it
