"""Effects for the claims of `upstream`, and its scores on numbers that can be read off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm

from bnlab.harness.reporting.frames import rows
from experiments.questions.upstream import SHARES, score_gap
from tests.experiments.planted import (
    EMA,
    Effect,
    Value,
    accuracy_lost,
    alternate,
    gap_times,
    plant,
    reference,
    score_claim,
)

PRECISE = ("precise", None)
ONE: dict[str, Any] = {"estimators": [PRECISE], "sizes": (4, 16)}


def gap(depth: float = 1, size: float = 1) -> Value:
    """A gap that grows with these powers of the depth and of 1 / batch size, by seed a little more or less."""
    return lambda row: (
        0.1
        * (1 + row["seed"] * row["depth"] / row["batch_size"] / 50)
        * (row["depth"] ** depth / row["batch_size"] ** size)
    )


def unclear(row: dict[str, Any]) -> float:
    """The same with powers that are large for half of the seeds, and as large below 0 for the rest."""
    return gap(3 * alternate(row), 1 + 3 * alternate(row))(row)


EFFECTS = {
    "grows_with_depth": Effect(ONE | {"gap": gap()}, {"gap": gap(depth=-1)}, gap=unclear),
    "shrinks_with_batch": Effect(ONE | {"gap": gap()}, {"gap": gap(size=0)}, gap=unclear),
    "nearer_than_running": gap_times("precise", 0.1, 2, estimators=[EMA, PRECISE]),
    "costs_nothing": accuracy_lost(PRECISE, -0.1, 3, sizes=(16, 256)),
}


def test_layers_and_batch_sizes_are_compared_one_by_one() -> None:
    tables = plant([PRECISE], lambda row: row["depth"] ** 2 / row["batch_size"], sizes=(4, 16, 256), shares=(0.2, 1.0))
    depth = score_claim("upstream", "grows_with_depth", tables)
    assert len(depth) == 6
    np.testing.assert_allclose(depth[["mean", "low", "high"]], (3 / 2) ** 2)
    size = score_claim("upstream", "shrinks_with_batch", tables)
    assert set(size["batch_size"]) == {16}, "64 is missing, so 256 has nothing to be compared with"
    np.testing.assert_allclose(size[["mean", "low", "high"]], 4)


def test_the_dashed_line_is_inversely_proportional() -> None:
    drawn = score_gap("mean_gap")(plant([PRECISE], lambda row: row["depth"], sizes=(4, 16), shares=(0.2, 1.0)))
    assert set(drawn["depth"]) == {2, 3}
    for row in drawn[drawn["kind"] == "dashed"].to_dict("records"):
        assert row["mean"] == pytest.approx(row["depth"] * 4 / row["batch_size"])


@pytest.mark.slow
def test_batch_norm_rounds_more_than_a_batch_of_1024_changes() -> None:
    """As the experiment's source says: in channels-last layout with one thread, as the networks have."""
    images = torch.randn(1024, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    gaps = rows(reference("upstream"), "gaps", SHARES, estimator="precise", batch_size=1024, depth=3)["mean_gap"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        last, first = (
            batch_norm(images.contiguous(memory_format=layout), None, None, training=True, eps=1e-12)
            for layout in (torch.channels_last, torch.contiguous_format)
        )
    finally:
        torch.set_num_threads(threads)
    off = [float((out.double().std((0, 2, 3), correction=0) - 1).abs().max()) for out in (last, first)]
    assert off[1] < 1e-6 < gaps.min() < gaps.max() < off[0]
