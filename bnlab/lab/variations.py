"""`variation=`: settings of the training that questions change one at a time."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore

VARIATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "adamw": {"defaults": [{"override /optimizer": "adamw"}]},
    "low_lr": {"optimizer": {"lr": 0.025}},
    "high_lr": {"optimizer": {"lr": 0.4}},
    "step": {"optimizer": {"schedule": "step"}},
    "constant": {"optimizer": {"schedule": "constant"}},
    "no_decay": {"optimizer": {"weight_decay": 0.0}},
    "shifted": {"data": {"shift": 2}},
    "frozen_ema": {"freeze_at": 0.8, "freeze_with": "ema"},
    "frozen_exact": {"freeze_at": 0.8, "freeze_with": "exact"},
}


def register_variations() -> None:
    """Make them known to Hydra."""
    for name, settings in VARIATIONS.items():
        ConfigStore.instance().store(group="variation", name=name, node=settings, package="_global_")
