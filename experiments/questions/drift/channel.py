"""python -m experiments.questions.drift.channel: follow one channel of one network through its training.

A small network learns handwritten digits. After each update a row keeps the batch's mean of one channel, the running
average, the exact mean, and the test accuracy under either. The rows are committed beside this file, and figures are
drawn from them: a training is another on another processor.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab.common.digits import load_digits

ROWS = Path(__file__).with_name("channel.csv")
UPDATES = 150
BATCH_SIZE = 32
RATE = 0.05  # constant for 90 updates, then falling to 0
LAYER = "8"
CHANNEL = 18  # of 32 channels one in which start, lag and noise can all be seen
DIGITS = 9  # enough for a float32, so that the running average can be checked


def main() -> None:
    """Train, and write the rows."""
    record_channel(UPDATES).to_csv(ROWS, index=False, float_format=f"%.{DIGITS}g")
    print(ROWS)


def record_channel(updates: int) -> pd.DataFrame:
    """Train for a number of updates of the same schedule; a row after each: step, batch, running, exact, and the
    accuracies eval_accuracy and exact_accuracy, shares of 797 test images."""
    images, labels = load_digits()
    # Stored pixels are from 0 to 16, and these are from -1 to 1.
    images = images / 8 - 1
    train, test = images[:1000], images[1000:]

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    waiting = torch.empty(0, dtype=torch.long)
    rows = []
    # Measuring in this block is not recorded: neither forwards in eval mode nor those of bnlab's functions.
    with bnlab.record(model) as trace:
        for step in range(1, updates + 1):
            # The last images of an epoch, too few for a batch, are left out.
            if len(waiting) < BATCH_SIZE:
                waiting = torch.randperm(len(train), generator=generator)
            batch, waiting = waiting[:BATCH_SIZE], waiting[BATCH_SIZE:]

            # 2.5 times the remaining share of the training falls below 1 after 60% of it, which are 90
            # updates.
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2.5 * (1 - (step - 1) / UPDATES))
            # Measuring has left the model in eval mode.
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(train[batch]), labels[batch]).backward()
            optimizer.step()

            running = bnlab.running_statistics(model)
            exact = bnlab.population_statistics(model, [train])
            with bnlab.using(model, exact):
                exact_accuracy = measure_accuracy(model, test, labels[1000:])
            rows.append(
                {
                    "step": step,
                    "running": running[LAYER].mean[CHANNEL].item(),
                    "exact": exact[LAYER].mean[CHANNEL].item(),
                    "eval_accuracy": measure_accuracy(model, test, labels[1000:]),
                    "exact_accuracy": exact_accuracy,
                }
            )

    # The newest batch alone is an average of momentum 1.
    batches = bnlab.replay(trace, bnlab.estimators.EMA(momentum=1.0))
    frame = pd.DataFrame(rows)
    frame.insert(1, "batch", [batches[step][LAYER].mean[CHANNEL].item() for step in frame["step"]])
    return frame


def make_model() -> nn.Sequential:
    """Make a network with three batch norms, of which the last one, "8", is followed."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@torch.no_grad()
def measure_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Measure the share of images that are recognized in eval mode."""
    guesses = model.eval()(images).argmax(1)
    return (guesses == labels).double().mean().item()


if __name__ == "__main__":
    main()
