"""What a user's own batch norms average is found out before training; what cannot be measured is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnlab.harness import load
from tests.experiments.commands import Call, Write

MODULE = """
import torch
from torch import nn


class Cubes(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x**3)


class Written(nn.BatchNorm2d):
    \"\"\"Averages the moments of the batch's first half, or of its first images, with a momentum of its own.\"\"\"

    def __init__(self, channels, weight: float = 0.1, first: int = 0):
        super().__init__(channels)
        self.weight_of_batch, self.first = weight, first

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            half = x[: self.first or len(x) // 2]
            mean = half.mean((0, 2, 3))
            var = half.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.weight_of_batch)
                self.running_var.lerp_(var, self.weight_of_batch)
        shape = (1, -1, 1, 1)
        scale = self.weight / (var + self.eps).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


def make_norm(channels, momentum: float = 0.1):
    return nn.BatchNorm2d(channels, momentum=momentum)


def make_cumulative(channels):
    return nn.BatchNorm2d(channels, momentum=None)


class OfAnotherClass(nn.Module):
    \"\"\"Not of torch's batch norms.\"\"\"

    def __init__(self, channels):
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.1
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        buffers = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, *buffers, None, None, self.training, self.momentum, self.eps)


def make_group_norm(channels):
    return nn.GroupNorm(1, channels)
"""
SMALL = ("data.images=300", "batch_size=16", "steps=4", "evaluate_at=final", "hydra/launcher=basic")
NORM = "norm=averages"


@pytest.fixture
def averages(write: Write) -> None:
    write(MODULE, name="averages")


def shape(line: str) -> list[str]:
    """The words of a case; a norm of one's own is one of a small network."""
    size = ["model.width=8", "model.depth=2"] if line.startswith(NORM) else []
    return [*SMALL, *size, *line.split()]


OTHER = r": the running buffers of '1', '5' are not the average of .* what they give to torch's batch norm$"
CASES = {  # what is trained, the exit code, and all that the command says on standard error
    "some of the images": (f"{NORM}.Written norm.first=2", 2, OTHER),
    "another momentum than its own": (f"{NORM}.Written norm.weight=0.3", 2, OTHER),
    "of another class than torch's": (f"{NORM}.OfAnotherClass estimator=[ema,exact]", 0, ""),
    "of cubes": (f"{NORM}.Cubes", 0, ""),
    "of cubes, and recorded as such": (f"{NORM}.Cubes estimator=[ema,update_bn,precise]", 0, ""),
    "another momentum": (
        f"{NORM}.make_norm norm.momentum=0.1,0.9 -m",
        0,
        "layers have momentum 0.9, which is not read",
    ),
    "all batches alike, and swept": (f"{NORM}.make_cumulative estimator=[ema,cumulative]", 0, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_own_batch_norms_average(
    case: str, averages: None, call: Call, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    line, expected, said = CASES[case]

    code, _, err = call("sweep", *shape(line), f"results={tmp_path}/r")

    assert code == expected, err
    assert re.search(said, err), err
    assert err.count("\n") == bool(said)
    assert not [str(each.message) for each in recwarn if "record" in str(each.message)]
    assert (tmp_path / "r").exists() == (code == 0)
    assert code or len(load("adhoc", tmp_path / "r")["gaps"])


def test_the_reason_why_a_norm_has_no_gaps(averages: None, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("sweep", *shape(f"{NORM}.make_group_norm"), f"results={tmp_path}")

    assert code == 0
    reason = "has no batch norm whose averages could be measured, so not measured: gaps"
    assert f"norm=averages.make_group_norm {reason}" in out
