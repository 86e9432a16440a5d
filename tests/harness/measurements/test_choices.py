"""What forecasts have chosen, against the momenta whose averages are given out."""

from __future__ import annotations

import pytest
import torch

from bnlab.estimators import DebiasedEMA, Predictive, fold
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements import find_measurement, find_scope


def test_the_average_of_the_chosen_momentum_is_what_is_given_out(trained: Run) -> None:
    ((subject, steps),) = find_scope("choices")(trained, []).items()
    assert subject is None and steps == list(range(1, 41))
    found = find_measurement("choices")(trained, [None], steps).set_index(["layer", "statistic", "step"])
    ((names, stream),) = trained.trace.streams()
    assert len(found) == len(names) * 2 * 40
    for step in (3, 8, 40):
        given = fold([Predictive()], stream, [step])[0, 0].split(stream.layers, dim=1)
        for number, name in enumerate(names):
            for place, statistic in enumerate(("mean", "var")):
                momentum = found.loc[(name, statistic, step), "chosen"]
                averages = fold([DebiasedEMA(momentum)], stream, [step])[0, 0].split(stream.layers, dim=1)
                torch.testing.assert_close(given[number][place], averages[number][place], rtol=1e-9, atol=1e-9)
    assert found["epoch"].max() == pytest.approx(40 / trained.batches.per_epoch)
