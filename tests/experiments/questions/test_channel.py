"""The channel that is followed through a training: its committed rows are a record, and record what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bnlab.common.digits import load_digits
from experiments.questions.drift import channel, read_accuracies, read_channel

ROUNDING = 2.0**-24  # of a float32, relative


def test_the_committed_running_average_is_that_of_the_committed_batches() -> None:
    """Nobody has drawn it: each value follows from the one before and the batch's mean, up to the buffer's rounding."""
    rows = pd.read_csv(channel.ROWS)
    assert list(rows["step"]) == list(range(1, channel.UPDATES + 1))

    running = 0.0
    for row in rows.to_dict("records"):
        expected = 0.9 * running + 0.1 * row["batch"]
        largest = max(abs(running), abs(row["batch"]))
        # Four operations in float32, among them 1 - 0.1 as it is rounded there, and nine digits in the file.
        assert row["running"] == pytest.approx(expected, rel=0, abs=6 * ROUNDING * largest)
        running = row["running"]


def test_a_row_has_what_a_plain_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two updates: the batches' means by a hook on the layer, the exact mean by one forward with exact layers."""
    made = []
    make_model = channel.make_model

    def make_and_hook() -> nn.Sequential:
        model = make_model()
        model.get_submodule(channel.LAYER).register_forward_pre_hook(keep)
        made.append(model)
        return model

    seen: list[torch.Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if layer.training and len(inputs[0]) == channel.BATCH_SIZE:
            seen.append(inputs[0].detach().double()[:, channel.CHANNEL].mean())

    monkeypatch.setattr(channel, "make_model", make_and_hook)
    rows = channel.record_channel(2)

    # float32 activations of order 1, read in another order: the mean of n values is off by less than n roundings.
    values = 32 * 2 * 2
    assert rows["batch"].to_numpy() == pytest.approx([mean.item() for mean in seen], rel=0, abs=values * ROUNDING * 4)
    assert rows["running"].iloc[0] == pytest.approx(0.1 * rows["batch"].iloc[0], rel=1e-6)

    (model,) = made
    images, _ = load_digits()
    x = images[:1000].double() / 8 - 1
    with torch.no_grad():
        for name, layer in model.double().named_children():
            if name == channel.LAYER:
                break
            if isinstance(layer, nn.BatchNorm2d):  # in train mode, and of all images: exact
                layer.train()
            x = layer(x)
    exact = x[:, channel.CHANNEL].mean().item()
    # Two layers before it, each of which normalizes activations that float32 has rounded.
    assert rows["exact"].iloc[-1] == pytest.approx(exact, abs=1e-5)


def test_figures_draw_all_rows() -> None:
    rows = pd.read_csv(channel.ROWS)

    means = read_channel({}).pivot(index="updates", columns="line", values="mean")
    accuracies = read_accuracies({}).pivot(index="updates", columns="estimator", values="mean")

    assert np.array_equal(means["running average"], rows["running"])
    assert np.array_equal(means["exact statistics"], rows["exact"])
    assert np.array_equal(means["single batch"], rows["batch"])
    assert np.array_equal(accuracies["ema"], 100 * rows["eval_accuracy"])
    assert np.array_equal(accuracies["exact"], 100 * rows["exact_accuracy"])
