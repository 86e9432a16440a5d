"""Losses on CIFAR-10, pooled over experiments: of numbers and tables with planted losses."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy

from bnlab.harness.reporting.question import Tables
from experiments.pool_cifar10 import (
    EXPERIMENTS,
    compare_networks,
    load_experiments,
    main,
    pool_experiments,
    pool_means,
    pool_networks,
    say_losses,
)

STEPS = 100
PLANTED: dict[str, Any] = {
    "batch_size": 128,
    "optimizer.lr": 0.1,
    "optimizer.schedule": "cosine",
    "averaging": "none",
    "steps": STEPS,
}


def pool_slowly(means: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Pool as the definitions read: halve where the variance between experiments can be, and multiply by the factor."""
    freedom = len(means) - 1

    def weigh(between: float) -> tuple[list[float], float, float]:
        weights = [1 / (error**2 + between) for error in errors]
        mean = math.fsum(weight * value for weight, value in zip(weights, means, strict=True)) / math.fsum(weights)
        scatter = math.fsum(weight * (value - mean) ** 2 for weight, value in zip(weights, means, strict=True))
        return weights, mean, scatter

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        _, _, scatter = weigh(middle)
        if scatter > freedom:
            low = middle
        else:
            high = middle

    weights, mean, scatter = weigh(low)
    factor = max(1.0, scatter / freedom)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(factor / math.fsum(weights))
    return {"mean": mean, "low": mean - half, "high": mean + half, "tau": math.sqrt(low)}


@pytest.mark.parametrize("experiments", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_pooled_means_are_those_of_a_slow_twin(experiments: int, spread: float) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        errors = generator.uniform(0.2, 3.0, experiments)
        means = 5 + generator.normal(0, errors) + spread * generator.normal(size=experiments)

        assert pool_means(means, errors) == pytest.approx(pool_slowly(list(means), list(errors)), abs=1e-6)


def test_with_equal_errors_the_mean_is_plain_and_the_interval_is_that_of_the_means() -> None:
    means = np.array([10.0, 12.0, 17.0])

    pooled = pool_means(means, np.ones(3))

    # The variance of the means, 13, is that between experiments and that of an error, 1.
    half = scipy.stats.t.ppf(0.975, 2) * math.sqrt(13 / 3)
    assert pooled == pytest.approx({"mean": 13.0, "low": 13 - half, "high": 13 + half, "tau": math.sqrt(12)})


def test_means_that_agree_are_weighted_by_their_errors() -> None:
    errors = np.array([1.0, 2.0])

    pooled = pool_means(np.array([4.0, 5.0]), errors)

    # Weights are 1 and 1/4. Means that are nearer to each other than their errors make the interval no shorter.
    half = scipy.stats.t.ppf(0.975, 1) / math.sqrt(1.25)
    assert pooled == pytest.approx({"mean": 4.2, "low": 4.2 - half, "high": 4.2 + half, "tau": 0.0})


def make_tables(early: Sequence[float], late: Sequence[float], run: str = "a", **settings: Any) -> Tables:
    """Make the tables of networks that lose so many points each, after a tenth of the training and half-way."""
    runs = []
    evaluations = []
    for seed, points in enumerate(zip(early, late, strict=True)):
        network = {**PLANTED, "run": f"{run}/seed_{seed}", "seed": seed, "epochs": 2, **settings}
        runs.append(network)
        for step, lost in zip((STEPS // 10, STEPS // 2), points, strict=True):
            place = {"run": network["run"], "step": step, "split": "test", "shift": "none", "statistics_split": "train"}
            exact = {"estimator": "exact", "momentum": None, "accuracy": 0.9, "stat_images": 5000}
            running = {"estimator": "ema", "momentum": 0.1, "accuracy": 0.9 - lost / 100, "stat_images": 1280}
            evaluations += [{**place, **exact}, {**place, **running}]
    return {"runs": pd.DataFrame(runs), "evaluations": pd.DataFrame(evaluations)}


def make_experiments() -> dict[str, Tables]:
    """Make three experiments: with errors of 1, and means of 10, 12, 17 after a tenth, and of 4 half-way."""
    return {
        "one": make_tables([9, 11], [3, 5], run="a"),
        "two": make_tables([11, 13], [3, 5], run="b"),
        "three": make_tables([16, 18], [3, 5], run="c"),
    }


def test_planted_losses_are_pooled_with_what_lies_between_experiments() -> None:
    early, late = pool_experiments(compare_networks(make_experiments())).to_dict("records")

    assert [early["mean"], early["tau"], early["n"]] == pytest.approx([13.0, math.sqrt(12), 6])
    assert [late["mean"], late["tau"], late["n"]] == pytest.approx([4.0, 0.0, 6], abs=1e-6)
    assert late["high"] == pytest.approx(4 + scipy.stats.t.ppf(0.975, 2) / math.sqrt(3))


def test_all_networks_together_are_as_of_one_experiment() -> None:
    early, _ = pool_networks(compare_networks(make_experiments())).to_dict("records")

    losses = [9, 11, 11, 13, 16, 18]
    error = np.std(losses, ddof=1) / math.sqrt(6)
    assert [early["mean"], early["n"]] == pytest.approx([13.0, 6])
    assert early["high"] == pytest.approx(13 + scipy.stats.t.ppf(0.975, 5) * error)


def test_losses_are_said_with_both_intervals() -> None:
    said = say_losses(pool_networks(compare_networks(make_experiments())))

    # 13 ± 3.6 and 4 ± 1.1
    assert said == (
        "13 points [9.4, 17]† after a tenth of the training and 4.0 [2.9, 5.1]† half-way (three experiments, 6 seeds)"
    )


def test_where_training_augments_exact_statistics_are_of_augmented_images() -> None:
    tables = make_tables([1, 1], [1, 1])
    evaluations = tables["evaluations"]
    is_exact = evaluations["estimator"] == "exact"
    augmented = evaluations[is_exact].assign(statistics_split="train_augmented", accuracy=0.95)
    augmenting = {**tables, "evaluations": pd.concat([evaluations, augmented])}

    lost = compare_networks({"plain": tables, "augmented": augmenting})

    means = lost.groupby(["experiment", "exact statistics of"])["accuracy"].mean()
    assert means.to_dict() == pytest.approx(
        {("augmented", "5000 augmented images"): -0.06, ("plain", "5000 plain images"): -0.01}
    )


@pytest.mark.parametrize(
    "other",
    [{"batch_size": 32}, {"optimizer.lr": 0.4}, {"optimizer.schedule": "constant"}, {"averaging": "swa"}],
    ids=str,
)
def test_other_networks_are_left_out(other: dict[str, Any]) -> None:
    wanted = make_tables([1, 2], [1, 2])
    left_out = make_tables([50, 50], [50, 50], run="b", **other)
    tables = {name: pd.concat([wanted[name], left_out[name]]) for name in wanted}

    lost = compare_networks({"one": tables})

    assert set(lost["run"]) == {"a/seed_0", "a/seed_1"}


def test_the_command_prints_each_experiment_and_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pool_cifar10"])

    assert main() == 0

    printed = capsys.readouterr().out
    first_words = [line.split()[0] for line in printed.splitlines() if line]
    assert set(EXPERIMENTS) <= set(first_words)
    assert say_losses(pool_experiments(compare_networks(load_experiments()))) in printed
