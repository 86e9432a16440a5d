"""Effects for the claims of `final_gap`."""

from __future__ import annotations

from tests.experiments.planted import EMA, accuracy_lost

EFFECTS = {
    "nothing_at_adequate_batch": accuracy_lost(EMA, -0.1, 3, sizes=(16, 64, 256)),
    "population_wins_when_tiny": accuracy_lost(EMA, 3, -3, sizes=(4,)),
    "lag_costs_when_huge": accuracy_lost(EMA, 3, -3, sizes=(1024,)),
    "predictive_costs_nothing": accuracy_lost(("predictive", None), -0.1, 3),
}
