"""The claims of `passes` on tables with their effect, and its figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bnlab.harness.reporting.experiment import answers
from experiments.questions.passes import EXPERIMENT

CASES = [(depth, 256, 1.0) for depth in (8, 20)] + [(20, 1024, 1.0), (20, 1024, 1 / 8), (20, 1024, 1 / 12)]
EFFECTS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "one_pass_is_enough": ({"seconds": 1.5}, {"seconds": 2.5}),
    "images_cost_no_more": ({"seconds": 1.5}, {"seconds": 2.5}),
    "layer_by_layer_takes_many": ({"passes": 1.0}, {"passes": 0.5}),
    "memory_is_the_price": ({"growth": 1.0}, {"growth": 0.1}),
    "layer_by_layer_is_small": ({"growth": 0.0}, {"growth": 1.0}),
    "less_memory_is_enough": ({"passes": 0.8}, {"passes": 1.2}),
    "both_agree": ({"difference": 1e-6}, {"difference": 1e-2}),
}


def plant(
    seconds: float = 1.5, passes: float = 0.5, growth: float = 1.0, difference: float = 1e-6, seeds: int = 3
) -> dict[str, pd.DataFrame]:
    """Tables in which time is so many forwards, passes this share of the layers, memory this power of the images."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        noise = 1 + seed / 1000
        for depth, images, memory in CASES:
            for strategy in ("breadth", "layerwise"):
                layers = depth - 1
                count = (layers + 1) * passes if strategy == "layerwise" else layers * passes
                row = {"run": f"{depth}/{seed}", "strategy": strategy, "images": images, "memory": memory}
                row |= {"layers": layers, "seconds": seconds * noise, "forward_seconds": 1.0, "passes": count * noise}
                row |= {"peak_bytes": images**growth * noise, "forward_bytes": 10.0, "difference": difference * noise}
                rows.append(row)
    runs = pd.DataFrame({"run": f"{depth}/{seed}", "seed": seed, "model.depth": depth, "data": "random numbers",
                         "batch_size": 32} for depth in (8, 20) for seed in range(seeds))  # fmt: skip
    return {"passes": pd.DataFrame(rows), "runs": runs}


@pytest.mark.parametrize("claim", [claim.id for claim in EXPERIMENT.claims])
def test_every_claim_decides_what_is_planted(claim: str) -> None:
    for effect, verdict in zip(EFFECTS[claim], ("holds", "fails"), strict=True):
        found = answers(EXPERIMENT, plant(**effect))
        assert set(found[found["claim"] == claim]["verdict"]) == {verdict}
    alone = answers(EXPERIMENT, plant(**EFFECTS[claim][0], seeds=1))
    assert set(alone[alone["claim"] == claim]["verdict"]) == {"one seed"}


def test_figures_have_a_row_for_each_point() -> None:
    tables = plant(seconds=1.5)
    rows = {figure.name: figure.score(tables) for figure in EXPERIMENT.figures}
    assert {name: len(frame) for name, frame in rows.items()} == {"depth": 4, "memory": 4, "limit": 3}
    assert rows["depth"]["mean"].round(2).tolist() == [1.5] * 4
    assert rows["memory"].query("measured == 'breadth first'")["mean"].round(1).tolist() == [25.6, 102.5]
