"""Effects for the claims of `dose_response`, and its correlations on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.questions.dose_response import METRICS, correlate
from tests.experiments.planted import Effect, Value, plant, sign

SHARES = (0.2, 1.0)
BANK: list[tuple[str, float | None]] = [*(("ema", m) for m in (0.005, 0.02, 0.1, 0.5)), ("exact", None)]


def lost(all_: float, **more: float) -> dict[str, Value]:
    """Accuracy that is lost, and so much more of it where a key is the moment or the layer."""
    return {"accuracy_lost": lambda row: all_ + row["seed"] / 1e4 + sum(
        share for key, share in more.items() if key in (row["moment"], row["layer"]))}  # fmt: skip


def effect(holds: dict[str, Value], fails: dict[str, Value], *keys: str) -> Effect:
    """Noise of either sign, where given in rows of a moment or layer only."""
    noise: Value = lambda row: 0.05 + 0.4 * sign(row) * (not keys or row["moment"] in keys or row["layer"] in keys)  # noqa: E731
    return Effect({"estimators": BANK, "values": holds, "shares": SHARES}, {"values": fails},
                  values={"accuracy_lost": noise})  # fmt: skip


def worse(row: dict[str, Any]) -> float:
    """Accuracy that falls with the momentum."""
    return 0.9 - (row["momentum"] or 0) / 10


def ranked(better: str, other: str, direction: Value = lambda row: 1) -> dict[str, Value]:
    """Two gaps, one that grows with the accuracy that is lost and one that falls; the reverse where -1."""
    return {better: lambda row: direction(row) * (row["momentum"] or 0),
            other: lambda row: -direction(row) * (row["momentum"] or 0)}  # fmt: skip


def ranking(better: str, other: str) -> Effect:
    tables = {"estimators": BANK, "accuracy": worse, "shares": SHARES, "values": ranked(better, other)}
    return Effect(tables, {"values": ranked(other, better)}, accuracy=worse, values=ranked(better, other, sign))


EFFECTS = {
    "small_errors_are_harmless": effect(lost(0.001), lost(0.05)),
    "large_errors_cost": effect(lost(0.3), lost(0.05)),
    "means_cost_more": effect(lost(0.1, mean=0.1), lost(0.1, var=0.1), "mean"),
    "first_layer_costs_more": effect(lost(0.1, x=0.1), lost(0.1, z=0.1), "x"),
    "exact_ranks_better": ranking("mean_gap", "tid_mean"),
    "both_moments_rank_better": ranking("kl", "mean_gap"),
}


def test_correlations_of_ranks() -> None:
    """What has the order of the losses has 1; what is the same everywhere, 0."""
    constant: dict[str, Value] = {"var_gap": lambda row: 0.1, "tid_std": lambda row: -((row["momentum"] or 0) ** 3)}
    tables = plant(BANK, lambda row: (row["momentum"] or 0) ** 2, worse, values=constant, shares=(1.0,))
    tables["evaluations"]["logit_gap"] = 0.1
    found = correlate(tables)
    assert set(found["metric"]) == {"logit_gap", *METRICS}
    by_metric = found.groupby("metric")["correlation"].unique().explode().to_dict()
    expected = {"mean_gap": 1, "kl": 1, "tid_mean": 1, "var_gap": 0, "logit_gap": 0, "tid_std": -1}
    assert by_metric == pytest.approx(expected)


def test_exact_statistics_of_two_splits_are_two_points() -> None:
    """Of the validation split they cost most and have the largest gap; of the training split least."""
    bank = [*BANK, ("exact", None, "val")]
    cost: Value = lambda row: 1.0 if row["statistics_split"] == "val" else row["momentum"] or 0.0  # noqa: E731
    tables = plant(bank, cost, lambda row: 0.9 - cost(row) / 10, values={"mean_gap": cost}, shares=(1.0,))
    found = correlate(tables)
    assert found.loc[found["metric"] == "mean_gap", "correlation"].tolist() == pytest.approx(
        [1.0] * found["run"].nunique()
    )


def test_two_points_have_no_correlation_that_tells_anything() -> None:
    assert correlate(plant([*BANK[:2], ("exact", None)], accuracy=worse, shares=(1.0,))).empty
