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
from torch.nn import functional as F


class Cubes(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x**3)


def read_cubes(layer, args, kwargs):
    return args[0] ** 3


def double(layer, args, kwargs):
    return 2 * args[0]


def give_channels(layer, args, kwargs):
    return args[0] ** 3, torch.arange(layer.num_features)


class Written(nn.BatchNorm2d):
    \"\"\"Averages the moments of the batch's first half, or of its first images, with a momentum of its own.\"\"\"

    def __init__(self, channels, is_unbiased: bool = False, weight: float = 0.1, first: int = 0):
        super().__init__(channels)
        self.is_unbiased, self.weight_of_batch, self.first = is_unbiased, weight, first

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            half = x[: self.first or len(x) // 2]
            mean = half.mean((0, 2, 3))
            var = half.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.weight_of_batch)
                kept = half.var((0, 2, 3), unbiased=self.is_unbiased)
                self.running_var.lerp_(kept, self.weight_of_batch)
        shape = (1, -1, 1, 1)
        scale = self.weight / (var + self.eps).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


def read_half(layer, args, kwargs):
    return args[0][: len(args[0]) // 2]


def read_all(layer, args, kwargs):
    return args[0]


class Constant(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def make_norm(channels, momentum: float = 0.1):
    return nn.BatchNorm2d(channels, momentum=momentum)


def make_cumulative(channels):
    return nn.BatchNorm2d(channels, momentum=None)


class Untracked(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, track_running_stats=False)


def make_group_norm(channels):
    return nn.GroupNorm(1, channels)


def make_net(channels, image_size, classes, momentum: float = 0.1, tracked: bool = True):
    norm = nn.BatchNorm2d(8, momentum=momentum, track_running_stats=tracked)
    layers = [nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""
SMALL = ("data.images=300", "batch_size=16", "steps=4", "evaluate_at=final", "hydra/launcher=basic")
NORM = "norm=averages"
MODEL = "model=averages"


@pytest.fixture
def averages(write: Write) -> None:
    write(MODULE, name="averages")


def shape(line: str) -> list[str]:
    """The words of a case; a norm of one's own is one of a small network."""
    size = ["model.width=8", "model.depth=2"] if line.startswith(NORM) else []
    return [*SMALL, *size, *line.split()]


UNTRACKED = "keeps no running statistics, so that .* on the images that are predicted together; .*estimator=test_batch"
NO_AVERAGE = "after an update the running statistics of layer '1' are no average of"
REFUSED = {
    "other values": (f"{NORM}.Cubes inputs=averages.double", f"^error: inputs=averages.double: {NO_AVERAGE} what it"),
    "with channels": (
        f"{NORM}.Cubes inputs=averages.give_channels",
        "averages.give_channels: .*cannot be recorded; give",
    ),
    "as for two images": (f"{NORM}.Written norm.first=2", rf"norm=averages.Written: {NO_AVERAGE} .*: inputs=module.fu"),
    "some of the images": (f"{NORM}.Written norm.first=2 inputs=averages.read_all", f"averages.read_all: {NO_AVERAGE}"),
    "constants": (f"{NORM}.Constant", "norm=averages.Constant: layer '1' leaves its running statistics as they are"),
    "no momentum": (f"{NORM}.make_norm norm.momentum=0.0", "norm=averages.make_norm: layer '1' leaves its running"),
    "untracked": (f"{NORM}.Untracked", f"norm=averages.Untracked: layer '1' {UNTRACKED}"),
    "one untracked": (f"{MODEL}.make_net model.tracked=false", f"model=averages.make_net: layer '4' {UNTRACKED}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused(case: str, averages: None, call: Call, tmp_path: Path) -> None:
    line, message = REFUSED[case]

    code, _, err = call("sweep", *shape(line), f"results={tmp_path}/r")

    assert code == 2, err
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


RIGHT = ("Cubes inputs=averages.read_cubes", "Written inputs=averages.read_half")
RIGHT_TOO = ("Written norm.is_unbiased=true inputs=averages.read_half",)


@pytest.mark.parametrize("line", [*RIGHT, *RIGHT_TOO])
def test_what_is_an_average_is_measured(
    line: str, averages: None, call: Call, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Of unbiased variances, as torch's, or of biased ones; without a word."""
    code, _, err = call("sweep", *shape(f"{NORM}.{line}"), f"results={tmp_path}")

    assert (code, err) == (0, "")
    assert not [str(each.message) for each in recwarn if "record" in str(each.message)]
    assert len(load("adhoc", tmp_path)["gaps"])


SAID = {
    "norm": (f"{NORM}.make_norm norm.momentum=0.1,0.9 -m", "norm=averages.make_norm", "with momentum 0.9", "[0.1,0.9]"),
    "of its own": (
        f"{NORM}.Written norm.weight=0.3 inputs=averages.read_half",
        "norm=averages.Written",
        "with momentum 0.3",
        "[0.1,0.3]",
    ),
    "of many values": (
        f"{NORM}.Written norm.weight=0.01 inputs=averages.read_half batch_size=32",
        "norm=averages.Written",
        "with momentum 0.01",
        "[0.1,0.01]",
    ),
    "model": (f"{MODEL}.make_net model.momentum=0.01", "model=averages.make_net", "with momentum 0.01", "[0.1,0.01]"),
}


@pytest.mark.parametrize("case", SAID)
def test_another_momentum_is_said_before_training(case: str, averages: None, call: Call, tmp_path: Path) -> None:
    """Rows of `ema` are of the momenta of the sweep; a sweep of the layer's own has nothing to say."""
    line, key, found, momenta = SAID[case]

    _, _, err = call("sweep", *shape(line), f"results={tmp_path}/a")

    assert err.startswith(f"{key}: averages {found} while it is trained"), err
    assert err.endswith(f", but rows are of momentum 0.1 alone; set momentum={momenta}\n")
    assert err.count("\n") == 1

    code, _, err = call("sweep", *shape(line), f"momentum={momenta}", f"results={tmp_path}/b")
    assert (code, err) == (0, "")


def test_another_momentum_is_said_of_networks_that_are_there(averages: None, call: Call, tmp_path: Path) -> None:
    """They may have been trained for exact statistics alone, of which all rows are."""
    words = (*shape(f"{NORM}.make_norm norm.momentum=0.9"), f"results={tmp_path}")

    code, _, err = call("sweep", *words, "estimator=exact")
    assert (code, err) == (0, "")

    _, out, err = call("sweep", *words, "estimator=[ema,exact]")
    assert "all trained already" in out
    assert err.startswith("norm=averages.make_norm: averages with momentum 0.9"), err


def test_an_average_of_all_batches_is_said_before_training(averages: None, call: Call, tmp_path: Path) -> None:
    words = shape(f"{NORM}.make_cumulative")

    _, _, err = call("sweep", *words, f"results={tmp_path}/a")
    assert re.search("make_cumulative: averages all batches alike .*; add cumulative to estimator=\n$", err), err

    code, _, err = call("sweep", *words, "estimator=[ema,cumulative]", f"results={tmp_path}/b")
    assert (code, err) == (0, "")


def test_the_reason_why_a_norm_has_no_gaps(averages: None, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("sweep", *shape(f"{NORM}.make_group_norm"), f"results={tmp_path}")

    assert code == 0
    reason = "has no batch norm of torch's whose averages could be measured, so not measured: gaps"
    assert f"norm=averages.make_group_norm {reason}" in out
