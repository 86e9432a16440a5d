"""What forecasts have chosen, against the momenta whose averages are given out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnlab.estimators import DebiasedEMA, Predictive, fold
from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.measurements import find_measurement, find_scope


def test_the_average_of_the_chosen_momentum_is_what_is_given_out(tmp_path: Path) -> None:
    data = DataConfig(images=100)
    config = Config(batch_size=16, steps=40, results=str(tmp_path), evaluate_at=[8, 1.0], threads=1, data=data)
    ensure_trained(Run(config))
    run = Run(config)
    ((subject, steps),) = find_scope("choices")(run, []).items()
    assert subject is None and steps == list(range(1, 41))
    found = find_measurement("choices")(run, [None], steps).set_index(["layer", "statistic", "step"])
    assert len(found) == 3 * 2 * 40
    ((names, stream),) = run.trace.streams()  # type: ignore[union-attr]
    for step in (3, 8, 40):
        given = fold([Predictive()], stream, [step])[0, 0].split(stream.layers, dim=1)
        for name, own in zip(names, given, strict=True):
            for place, statistic in enumerate(("mean", "var")):
                momentum = found.loc[(name, statistic, step), "chosen"]
                averages = fold([DebiasedEMA(momentum)], stream, [step])[0, 0].split(stream.layers, dim=1)
                torch.testing.assert_close(own[place], averages[names.index(name)][place], rtol=1e-9, atol=1e-9)
    assert found["epoch"].max() == pytest.approx(40 / run.batches.per_epoch)
