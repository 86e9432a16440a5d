"""Effects for the claims of `self_tuned_resnet`: those of `self_tuned`."""

from __future__ import annotations

from tests.experiments.planted import accuracy_lost, gap_times
from tests.experiments.questions.test_self_tuned import COMMON, FORECAST

EFFECTS = {
    "never_worse": accuracy_lost(FORECAST, -0.5, 5, **COMMON),
    "better_early": accuracy_lost(FORECAST, -8, -1, **COMMON),
    "near_the_best": gap_times("predictive", 1.02, 2, **COMMON),
    "late_where_the_rate_ends": gap_times("predictive", 2, 1.02, **COMMON),
}
