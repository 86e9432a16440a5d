"""Statistics that follow the weights: against what training recorded, and against the library's public calls."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab.harness.artifacts.dataset import augment
from bnlab.harness.reporting.frames import select
from experiments.questions.effective_rate.measurement import WeightNorms
from experiments.questions.followed import measurement
from experiments.questions.followed.measurement import average_moments, follow, list_taken_in, read_patches
from tests.conftest import small_config
from tests.helpers import Config, Run, measure, randomized, residual

STEPS = [3, 12]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twelve updates on augmented images, with averages of the weights beside."""
    folder = tmp_path_factory.mktemp("followed")
    settings = {"steps": 12, "evaluate_at": STEPS, "weight_averages": 0.9}
    return small_config(folder, "data.shift=2", "optimizer.schedule=cosine", **settings)


@pytest.fixture(scope="module")
def rows(config: Config) -> pd.DataFrame:
    return measure(config, "experiments.questions.followed.measurement.Followed")


def draw_all(convolution: nn.Conv2d, given: Tensor, _generator: torch.Generator) -> Tensor:
    """All patches in place of some."""
    kernel, padding = convolution.kernel_size, convolution.padding
    unfolded = F.unfold(given, kernel, convolution.dilation, padding, convolution.stride)  # type: ignore[arg-type]
    return unfolded.transpose(1, 2).flatten(0, 1)


def test_statistics_of_any_weights_are_those_of_what_the_weights_make_of_the_patches() -> None:
    model = residual()
    images = torch.randn(8, 3, 8, 8)
    read = read_patches(model.train(), images, torch.Generator().manual_seed(0))
    moments = {}
    for norm, (convolution, patches) in read.items():
        values = patches.double()
        moments[norm] = measurement.InputMoments(convolution, values.mean(0), values.T @ values / len(values))

    other = randomized(residual(), seed=1)
    followed = follow(other, moments)

    assert {*followed} == {*bnlab.running_statistics(model)}
    for norm, (convolution, patches) in read.items():
        outputs = patches.double() @ other.get_parameter(f"{convolution}.weight").detach().flatten(1).double().T
        torch.testing.assert_close(followed[norm].mean, outputs.mean(0))
        torch.testing.assert_close(followed[norm].var, outputs.var(0, correction=0))


def test_patches_are_of_what_the_convolution_is_given() -> None:
    convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    given = torch.randn(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)

    drawn = measurement.draw_patches(convolution, given, generator) @ convolution.weight.flatten(1).T

    known = convolution(given).permute(0, 2, 3, 1).flatten(0, 2)
    distances = torch.cdist(drawn, known, compute_mode="donot_use_mm_for_euclid_dist")
    assert len(drawn) == measurement.PATCHES
    assert distances.min(1).values.max() < 1e-5
    assert len(drawn.unique(dim=0)) > len(known) / 2


def test_convolutions_are_given_what_training_gave_them(
    config: Config, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a single batch and all its patches, on the weights that saw it, the recorded moments come out."""
    monkeypatch.setattr(measurement, "draw_patches", draw_all)
    monkeypatch.setattr(measurement, "BATCHES", 1)
    run = Run(config)

    followed = follow(run.model_at(11), average_moments(run, 12))

    for name, layer in run.trace.layers.items():
        mean, var = layer.moments[11].double()
        count = layer.counts[11]
        torch.testing.assert_close(followed[name].mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(followed[name].var, var * (count - 1) / count, rtol=1e-3, atol=1e-6)


def test_the_newer_a_batch_the_more_it_weighs(
    config: Config, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "draw_patches", draw_all)
    run = Run(config)
    taken_in = list_taken_in(12)
    name = next(iter(run.trace.layers))

    averaged = average_moments(run, 12)[name].mean

    monkeypatch.setattr(measurement, "BATCHES", 1)
    single = torch.stack([average_moments(run, step + 1)[name].mean for step in taken_in])
    weights = torch.tensor([0.9 ** (11 - step) for step in taken_in], dtype=torch.float64)
    assert taken_in == [11, 7, 3]
    torch.testing.assert_close(averaged, weights @ single / weights.sum())


def test_rows_of_trained_and_of_averaged_weights(config: Config, rows: pd.DataFrame) -> None:
    run = Run(config)
    images = run.dataset.test
    shown = augment(run.dataset.train.images, torch.Generator().manual_seed(0), shift=2, flip=False)

    assert len(rows) == len(STEPS) * (2 + 4)
    for step in STEPS:
        model = run.average_at(0.9, step)
        expected = {
            "exact": bnlab.population_statistics(model, [shown]),
            "copied": bnlab.running_statistics(run.model_at(step)),
            "averaged": bnlab.running_statistics(model),
            "followed": follow(model, average_moments(run, step)),
        }
        found = select(rows, step=step, decay=0.9).set_index("statistics")
        assert {*found.index} == {*expected}
        for name, statistics in expected.items():
            with bnlab.using(model, statistics), torch.no_grad():
                accuracy = (model(images.images).argmax(1) == images.labels).double().mean().item()
            assert abs(found.loc[name, "accuracy"] - accuracy) <= 1.5 / len(images.labels)

        trained = select(rows, step=step, decay=0.0).set_index("statistics")["mean_gap"]
        assert {*trained.index} == {"exact", "followed"}
        # Running averages are far from exact ones after three updates, these are not.
        running = bnlab.gap(measurement.measure_at(run, step, measurement._AUGMENTED), expected["copied"])
        assert trained["followed"] < 0.5 * running["mean_gap"][1:].mean()


def test_norms_of_the_weights_and_the_rate_that_moves_them(config: Config, rows: pd.DataFrame) -> None:
    found = measure(config, "experiments.questions.effective_rate.measurement.WeightNorms")
    run = Run(config)

    assert {*found} == {*WeightNorms.table.columns}
    for step in STEPS:
        weights = [weight for weight in run.model_at(step).parameters() if weight.dim() == 4]
        of_step = select(found, step=step).sort_values("depth")
        assert of_step["weight_norm"].to_list() == pytest.approx([weight.norm().item() for weight in weights])
    # The rate rises over the first 5% of twelve updates, which is none, and falls to nearly 0.
    first, last = (select(found, step=step)["rate"].unique() for step in STEPS)
    assert len(first) == len(last) == 1
    assert 0 < last[0] < 0.1 * first[0] < 0.1 * run.config.optimizer.peak_lr(32)


def test_networks_without_averages_have_no_rows(tmp_path: Path) -> None:
    run = Run(small_config(tmp_path, steps=12, evaluate_at=[12]))
    assert measurement.Followed().scope(run, []) == {}
