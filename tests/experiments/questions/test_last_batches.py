"""What changes with the last batches: by closed forms, and by replays of traces with other entries."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

import pandas as pd
import pytest

from bnlab import replay
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.estimates import EXACT, frozen_statistics
from bnlab.harness.measurements.subjects import Subject, parse_subjects
from bnlab.recording.trace import LayerTrace, MomentTrace
from experiments.questions.streams.last_batches import LastBatches

STEP = 40


@pytest.fixture(scope="module")
def sources(trained: Run) -> list[Subject]:
    names = ["ema", "window(k=5)", "cumulative", "kalman", "predictive", "exact"]
    chosen = LastBatches().scope(trained, parse_subjects(names, [0.1], "train"))
    assert list(chosen.values()) == [[STEP]] * 5, "running averages, at the final step"
    return [*chosen]


@pytest.fixture(scope="module")
def found(trained: Run, sources: list[Subject]) -> pd.DataFrame:
    rows = LastBatches().measure(trained, sources, [STEP])
    return rows.set_index(["estimator", "last", "layer"]).sort_index()


def change(trained: Run, last: int, shift: bool) -> MomentTrace:
    """The trace up to the step, with other moments in its last entries."""
    layers = {}
    for name, layer in trained.trace.layers.items():
        n = bisect_right(layer.steps, STEP)
        exact = frozen_statistics(trained, STEP, EXACT)[name]
        moments = layer.moments[:n].double()
        for place in range(n - last, n):
            if shift:
                moments[place, 0] += (exact.var + layer.eps).sqrt()
            else:
                moments[place] = layer.moments[place - last]
        layers[name] = LayerTrace(layer.start, layer.updates, layer.eps)
        layers[name].set_calls(moments, layer.steps[:n], layer.counts[:n], [])
    trace = MomentTrace(layers)
    trace.last_step = STEP
    return trace


@pytest.mark.parametrize("last", [1, 4, 16])
def test_every_average_on_a_trace_with_other_entries(
    last: int, trained: Run, sources: list[Subject], found: pd.DataFrame
) -> None:
    exact = frozen_statistics(trained, STEP, EXACT)
    with_shift = change(trained, last, shift=True)
    with_earlier = change(trained, last, shift=False)
    for source in sources:
        assert source.average
        plain = replay(trained.trace, source.average, [STEP])[STEP]
        shifted = replay(with_shift, source.average, [STEP])[STEP]
        moved = replay(with_earlier, source.average, [STEP])[STEP]
        for name in exact:
            sigma = (exact[name].var + exact.eps[name]).sqrt()
            followed = (shifted[name].mean - plain[name].mean) / sigma
            distance = (moved[name].mean - plain[name].mean) / sigma

            row = found.xs((source.estimator, last, name))
            assert row["followed"] == pytest.approx(float(followed.mean()), abs=1e-9)
            assert row["moved"] == pytest.approx(float(distance.square().mean().sqrt()), abs=1e-9)


def test_only_as_many_as_have_others_before_them(trained: Run, sources: list[Subject], found: pd.DataFrame) -> None:
    measurement = LastBatches()
    one_step = Run(replace(trained.config, evaluate_at=[1]))

    early = measurement.measure(trained, sources, [20])
    of_one_step = measurement.scope(one_step, [*sources])

    assert set(found.index.unique("last")) == {1, 4, 16}, "64 of 40 have not"
    assert set(early["last"]) == {1, 4}
    assert set(early["depth"]) == {1, 2}
    assert not any(of_one_step.values()), "a single batch has none"
