"""What changes with the last batches: by closed forms, and by replays of traces with other entries."""

from __future__ import annotations

from bisect import bisect_right

import pytest

from bnlab import Statistics, population_statistics, replay
from bnlab.estimators import parse
from bnlab.harness import load
from bnlab.recording.trace import LayerTrace, MomentTrace
from tests.helpers import Config, Run, measure, run_job

STEP = 40


NAMES = ["ema", "window(k=5,pooled=False)", "cumulative", "kalman(per=layer)", "predictive"]
TABLE = "experiments.questions.streams.last_batches.LastBatches"


def select_exact(run: Run) -> Statistics:
    """Measure exact statistics at the final step."""
    return population_statistics(run.model_at(STEP), run.dataset.train.images.split(256))


def repeat_before(trained: Run, last: int) -> MomentTrace:
    """The trace up to the step, with the moments before its last entries in place of these."""
    layers = {}
    for name, layer in trained.trace.layers.items():
        n = bisect_right(layer.steps, STEP)
        moments = layer.moments[:n].double()
        for place in range(n - last, n):
            moments[place] = layer.moments[place - last]
        layers[name] = LayerTrace(layer.start, layer.updates, layer.eps)
        layers[name].set_calls(moments, layer.steps[:n], layer.counts[:n], [])
    trace = MomentTrace(layers)
    trace.last_step = STEP
    return trace


def test_every_average_on_a_trace_with_other_entries(trained: Run, copied: Config) -> None:
    found = measure(copied, TABLE, estimator=[*NAMES, "exact"])
    assert set(found["step"]) == {STEP}
    assert set(found["last"]) == {1, 4, 16}, "64 of 40 have not as many others before them"
    found = found.set_index(["estimator", "last", "layer"]).sort_index()
    assert set(found.index.unique("estimator")) == {*NAMES}, "running averages alone"

    exact = select_exact(trained)
    for last in (1, 4, 16):
        with_earlier = repeat_before(trained, last)
        for estimator in NAMES:
            cls, parameters = parse(estimator)
            average = cls(**parameters)
            plain = replay(trained.trace, average, [STEP])[STEP]
            moved = replay(with_earlier, average, [STEP])[STEP]
            for name in exact:
                sigma = (exact[name].var + exact.eps[name]).sqrt()
                distance = (moved[name].mean - plain[name].mean) / sigma

                row = found.xs((estimator, last, name))
                assert row["moved"] == pytest.approx(float(distance.square().mean().sqrt()), abs=1e-6)


def test_only_as_many_as_have_others_before_them(copied: Config) -> None:
    early = measure(copied, TABLE, evaluate_at=[20])
    run_job(copied, measurements=["log", TABLE], evaluate_at=[1], name="of_one")

    assert set(early["last"]) == {1, 4}
    assert set(early["depth"]) == {1, 2}
    assert {*load("of_one", copied.results)} == {"runs", "log"}, "a single batch has none"
