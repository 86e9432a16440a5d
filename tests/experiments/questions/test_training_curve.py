"""Effects for the claims of `training_curve`, and its scores against plain pandas."""

from __future__ import annotations

import numpy as np

from bnlab.harness.reporting.experiment import declared
from bnlab.harness.reporting.frames import rows
from experiments.questions.training_curve import EARLY, EXPERIMENT, HUGE
from tests.experiments.planted import EMA, accuracy_lost, reference

LAST, PREDICTIVE, PRECISE = ("last_batch", None), ("predictive", None), ("precise(images=2048)", None)

EFFECTS = {
    "ema_is_pessimistic_early": accuracy_lost(EMA, 3, -3, sizes=(1024,)),
    "exact_gains_nothing_late": accuracy_lost(EMA, -0.1, 3, sizes=(64,)),
    "last_batch_beats_ema_early": accuracy_lost(LAST, -3, 3, against=EMA, sizes=(1024,)),
    "predictive_beats_ema_early": accuracy_lost(PREDICTIVE, -3, 3, against=EMA, sizes=(1024,)),
    "cumulative_costs": accuracy_lost(("cumulative", None), 3, -3, sizes=(64,)),
    "last_batch_costs": accuracy_lost(LAST, 3, -3, sizes=(64,)),
    "precise_is_exact": accuracy_lost(PRECISE, 0.1, 3, sizes=(64,)),
    "precise_is_exact_when_huge": accuracy_lost(PRECISE, 0.1, 3, sizes=(1024,)),
}


def test_against_plain_pandas_on_the_reference_tables() -> None:
    tables = reference("training_curve")
    drawn = EXPERIMENT.figures[1].score(declared(EXPERIMENT, tables))
    pivot = tables["evaluations"].pivot(index=["run", "epoch"], columns="estimator", values="accuracy")
    plain = 100 * (pivot["ema"] - pivot["exact"]).groupby("epoch").mean()
    assert not set(drawn["estimator"]) & {"exact"} and (drawn["n"] == 5).all()
    ema = drawn[drawn["estimator"] == "ema"].set_index("epoch")["mean"]
    shared = ema.index.intersection(plain.index)
    weights = tables["runs"].groupby("batch_size").size()
    single = [epoch for epoch in shared if (pivot.index.get_level_values("epoch") == epoch).sum() == weights.min()]
    assert len(single) > 5
    np.testing.assert_allclose(ema[single], plain[single])


def test_networks_with_huge_batches_are_near_chance_early() -> None:
    """As the experiment's source says: none is right on twice as many images as one in 36."""
    early = rows(reference("training_curve"), "evaluations", (EARLY,), batch_size=HUGE)
    assert len(early) and early.groupby("estimator")["accuracy"].mean().max() < 2 / 36
