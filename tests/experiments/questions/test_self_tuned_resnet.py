"""Effects for the claims of `self_tuned_resnet`: those of `self_tuned`."""

from __future__ import annotations

from tests.experiments.questions.test_self_tuned import accurate, near

EFFECTS = {
    "never_worse": accurate(0.5, -5),
    "better_early": accurate(8, 1),
    "near_the_best": near(1.02, 2),
    "late_where_the_rate_ends": near(2, 1.02),
}
