"""Contributions against the library's terms and the gap, with weights that a second training gives."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab import decompose, gap, population_statistics, replay
from bnlab.estimators import EMA
from bnlab.harness.errors import JobError
from experiments.questions.drift.past import past_weights
from tests.conftest import small_config
from tests.helpers import Config, Run, measure


def test_past_weights_are_those_of_the_training(trained: Run) -> None:
    found = past_weights(trained, [0, 1, 20, 40])

    assert list(found) == [0, 1, 20, 40]
    assert all(torch.equal(found[0][name], value) for name, value in trained.new_model().state_dict().items())

    for step in (1, 20, 40):
        kept = trained.load_checkpoint(step)
        assert found[step].keys() == kept.keys()
        assert all(torch.equal(found[step][name], kept[name]) for name in kept)


def test_weights_of_another_training_are_refused(trained: Run, tmp_path: Path) -> None:
    other = Run(small_config(tmp_path, "optimizer.weight_decay=0.1"))
    other.folder = trained.folder
    with pytest.raises(JobError, match=r"\bstep 2\b"):
        past_weights(other, [0, 4])


def test_contributions(trained: Run, copied: Config) -> None:
    """With every fourth of the past weights, as the library gives them for all that a second training gives."""
    step = 20
    settings = {"estimator": ["ema", "exact"], "momentum": [0.3, 0.5], "evaluate_at": [7, step]}
    found = measure(copied, "experiments.questions.drift.measurement.Decomposition", **settings)

    assert set(found["momentum"]) == {0.3, 0.5}
    assert set(found["step"]) == {7, step}

    found = found[(found["momentum"] == 0.3) & (found["step"] == step)]
    images = trained.dataset.train.images
    exact = population_statistics(trained.model_at(step), images.split(256))
    trace = copy.deepcopy(trained.trace)
    trace.truncate(step)
    total = found[found["statistic"] == "mean"].groupby("layer", sort=False)["contribution"].sum()
    gaps = gap(exact, replay(trace, EMA(0.3), [step])[step]).set_index("layer")["mean_gap"]
    np.testing.assert_allclose(total, gaps**2, rtol=1e-4)
    batches = images.split(32)
    past = past_weights(trained, range(step)).__getitem__
    table = decompose(trained.model_at(step), trace, past, batches, momentum=0.3, every=4)
    rows = {(row["layer"], row["statistic"], row["term"]): row for row in found.to_dict("records")}
    for name, moments in exact.items():
        var = (moments.var + exact.eps[name]).numpy()
        for statistic, unit in (("mean", var), ("var", var**2)):
            part = table[(table["layer"] == name) & (table["statistic"] == statistic)]
            for term in ("start", "noise", "lag", "data", "weighting", "upstream"):
                contribution = float((part[term] * part["gap"] / unit).mean())
                found_one = rows[name, statistic, term]["contribution"]
                assert found_one == pytest.approx(contribution, rel=1e-6, abs=1e-12)
