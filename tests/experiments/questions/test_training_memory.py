"""Bytes of an update, counted by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from experiments.questions.batch_of_one.measurement import count_saved_bytes
from tests.conftest import small_config
from tests.helpers import Config, Run, measure

TABLE = "experiments.questions.batch_of_one.measurement.TrainingMemory"
REAL, LONG = 4, 8  # bytes of a number


def test_what_backward_needs_is_counted_once() -> None:
    """In the order of the forward pass; weights, running averages and the memory that ReLU writes into are no more."""
    channels, pixels, classes, images = 5, 8 * 8, 3, 7
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.Flatten(),
        nn.Linear(channels * pixels, classes),
    )
    batch = torch.randn(images, 1, 8, 8)
    labels = torch.arange(images) % classes
    of_images = images * pixels * REAL
    of_maps = images * channels * pixels * REAL
    of_logits = images * classes * REAL
    expected = [
        of_images,  # of the first convolution
        of_maps,  # of batch norm
        2 * channels * REAL,  # its batch's mean and deviation
        of_maps,  # what ReLU gives, which the second convolution is given too
        of_maps,  # of the linear layer
        of_logits,  # logarithms of probabilities
        images * LONG,  # labels
        REAL,  # the number of images that the loss is divided by
    ]

    assert count_saved_bytes(model, batch, labels, "float32") == sum(expected)


def test_rows(copied: Config, tmp_path: Path) -> None:
    """A norm of each image has rows of 1 and 32 images, which grow with them; batch norm has no row of one."""
    config = small_config(tmp_path, "norm=group", "norm.groups=4", steps=2, evaluate_at=[2])
    found = measure(config, TABLE).set_index("images")

    numbers = sum(parameter.numel() for parameter in Run(config).new_model().parameters())
    weights = found["step_bytes"] - found["saved_bytes"]
    assert weights.tolist() == [3 * REAL * numbers] * 2, "weights, gradients, momentum"
    one, many = found.loc[[1, 32], "saved_bytes"]
    assert many == 32 * (one - REAL) + REAL, "all but the number of images"

    of_batch_norm = measure(copied, TABLE)
    assert of_batch_norm[["images", "step"]].to_numpy().tolist() == [[32, 40]]
