"""Effects for the claims of `unbiasing`."""

from __future__ import annotations

from tests.experiments.planted import EMA, Effect, accuracy_lost, gap_times

Name = tuple[str, float | None]
BIASED: Name = ("ema_biased", 0.1)
POOLED, PRECISE, UPDATE, SWA = (("ema_pooled", 0.1), ("precise", None), ("update_bn", None), ("swa", None))
UNEVEN = (16, 64)


def changed(estimator: Name, holds: float, fails: float, against: Name, sizes: tuple[int, ...] = (2, 4)) -> Effect:
    """A value that is so many times another estimator's, where the claim holds and where it fails."""
    return gap_times(estimator[0], holds, fails, estimators=[estimator, against], sizes=sizes)


EFFECTS = {
    "running_variance_is_low": changed(EMA, 0.7, 1.3, BIASED),
    "correction_is_small": changed(EMA, 1.005, 1.1, BIASED, (2, 4, 16, 64)),
    "correction_costs_nothing": accuracy_lost(EMA, -0.15, 3, against=BIASED, sizes=(2, 4, 16, 64)),
    "pooled_is_nearer": changed(POOLED, 0.5, 2, EMA),
    "pooled_is_nearer_when_frozen": changed(PRECISE, 0.5, 2, UPDATE),
    "pooling_gains": accuracy_lost(PRECISE, -3, 3, against=UPDATE, sizes=(2, 4)),
    "weights_change_nothing": changed(SWA, 1.001, 1.1, UPDATE, UNEVEN),
    "weights_cost_nothing": accuracy_lost(SWA, -0.15, 3, against=UPDATE, sizes=UNEVEN),
}
