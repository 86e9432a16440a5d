"""Mistakes of people who use their own code in a sweep, and the table of what `bnlab sweep` answers to them.

`python -m tests.experiments.own_mistakes` writes the table, own_mistakes.md beside this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.experiments.commands import ROOT

PAGE = Path(__file__).with_suffix(".md")
MODULE = """\
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from bnlab.estimators import Estimator
from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real


class Net(nn.Module):
    def __init__(self, channels, classes, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return self.head(features)


def make_model(channels, image_size, classes, width: int = 4):
    return Net(channels, classes, width)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images, labels, flips=False):
        self.images, self.labels, self.flips = images, labels, flips

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index])
        if self.flips and torch.rand(()) < 0.5:
            image = image.flip(2)
        return image, self.labels[index]


def make_data(root="data", count: int = 60):
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 3
    return Pictures(images, labels), Pictures(images[:30], labels[:30])


class Grouped(nn.GroupNorm):
    def __init__(self, channels, groups: int = 2):
        super().__init__(groups, channels)


def make_optimizer(params, lr=0.1, decay: float = 0.0):
    return torch.optim.SGD(params, lr, weight_decay=decay)


@dataclass(frozen=True)
class Half(Estimator):
    name = "half"

    def gains(self, stream):
        return torch.full((len(stream),), 0.5, dtype=torch.float64)


class Largest(Measurement):
    name = "largest"
    table = Table("The largest weight.", common("run step"), {"magnitude": real("of the largest weight")})

    def measure(self, run, subjects, steps):
        largest = [max(each.abs().max().item() for each in run.model_at(step).parameters()) for step in steps]
        return pd.DataFrame({"step": steps, "magnitude": largest})
"""
TINY = ("steps=2", "batch_size=16", "evaluate_at=final", "hydra/launcher=basic", "threads=1", "device=cpu")
"""Words of all commands, which keep what is trained small."""

_OWN = "model=mine.make_model data=mine.make_data"
_SIGNATURE = "def make_model(channels, image_size, classes, width: int = 4):\n"
_MADE = "    return Net(channels, classes, width)\n"
MISTAKES = {
    "The module is misspelt": ("model=mien.make_model data=mine.make_data", "", ""),
    "The function is misspelt": ("model=mine.make_modle data=mine.make_data", "", ""),
    "The module has a syntax error": (_OWN, _SIGNATURE, _SIGNATURE.replace(":\n", "\n")),
    "An argument is misspelt": (f"{_OWN} model.widht=8", "", ""),
    "A value has the wrong type": (f"{_OWN} model.width=wide", "", ""),
    "An argument has neither a default nor a value": (_OWN, "width: int = 4", "width: int"),
    "The function of the model raises": (_OWN, "nn.Conv2d(channels, width, 3)", "nn.Conv2d(width, 3)"),
    "The function of the model gives a tuple of modules": (_OWN, _MADE, f"{_MADE.rstrip()}, nn.Softmax(1)\n"),
    "The network has outputs for another number of classes": (_OWN, "(width, classes)", "(width, 10)"),
    "The forward gives a tuple": (_OWN, "return self.head(features)", "return self.head(features), features"),
    "The network has no batch norm": (_OWN, " nn.BatchNorm2d(width),", ""),
    "The network is made once, so that each seed has the same weights": (
        _OWN,
        _SIGNATURE + _MADE,
        f"NET = Net(1, 3, 4)\n\n\n{_SIGNATURE}    return NET\n",
    ),
    "The folder of the data is not there": (
        _OWN,
        "images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)",
        'images = np.load(f"{root}/images.npy")',
    ),
    "Labels are one-hot": (
        _OWN,
        "labels = np.arange(count) % 3",
        "labels = np.eye(3, dtype=np.float32)[np.arange(count) % 3]",
    ),
    "The data have only one part": (
        _OWN,
        "return Pictures(images, labels), Pictures(images[:30], labels[:30])",
        "return Pictures(images, labels)",
    ),
    "The training part has random transforms": (
        _OWN,
        "return Pictures(images, labels),",
        "return Pictures(images, labels, flips=True),",
    ),
    "The norm cannot take the number of channels": ("norm=mine.Grouped data=mine.make_data", "int = 2", "int = 7"),
    "The optimizer has no argument lr": (
        "optimizer=mine.make_optimizer data=mine.make_data",
        "(params, lr=0.1, decay: float = 0.0):\n    return torch.optim.SGD(params, lr,",
        "(params, rate=0.1, decay: float = 0.0):\n    return torch.optim.SGD(params, rate,",
    ),
    "The estimator is misspelt": (f"{_OWN} estimator=mine.Hafl", "", ""),
    "Rows of the measurement lack a column": (
        f"{_OWN} measurements=mine.Largest",
        '{"step": steps, "magnitude": largest}',
        '{"step": steps}',
    ),
    "The measurement reads a step of which no checkpoint is kept": (
        f"{_OWN} measurements=mine.Largest",
        "run.model_at(step)",
        "run.model_at(1)",
    ),
}
"""The mistake → what the command says beside `TINY`, the text of the module that is replaced, and its replacement."""


class Answer(NamedTuple):
    """What a command with a mistake returned, and what it wrote to stderr."""

    code: int
    text: str


def spoil(mistake: str) -> tuple[list[str], str]:
    """Return the words of the command, and the module with the mistake."""
    line, old, new = MISTAKES[mistake]
    if old not in MODULE:
        raise ValueError(f"{mistake}: the module has no text {old!r}")
    return [*line.split(), *TINY], MODULE.replace(old, new, 1)


def collect_answers(mistakes: Iterable[str] = MISTAKES) -> dict[str, Answer]:
    """Run the command of each mistake, in a new process and an empty folder, as a user does."""
    mistakes = [*mistakes]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(mistakes, threads.map(_answer, mistakes), strict=True))


def _answer(mistake: str) -> Answer:
    words, text = spoil(mistake)
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()  # as a message names it
        (folder / "mine.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "bnlab", "sweep", *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        return Answer(done.returncode, done.stderr.replace(f"{folder}{os.sep}", "").replace(str(folder), ""))


def format_page(answers: dict[str, Answer]) -> str:
    """Format the table: each mistake, its command, and the answer."""
    parts = [
        "# What a sweep answers to mistakes in one's own code\n",
        "`python -m tests.experiments.own_mistakes` writes this page: each mistake is made in a small module, `mine`,\n"
        f"and each command has these words too: `{' '.join(TINY)}`.\n",
    ]
    for mistake, (code, text) in answers.items():
        line = MISTAKES[mistake][0]
        parts.append(f"## {mistake}\n\n`bnlab sweep {line}` (exit code {code})\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the table."""
    PAGE.write_text(format_page(collect_answers()), encoding="utf-8")


if __name__ == "__main__":
    main()
