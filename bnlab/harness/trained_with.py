"""The settings of a job that its network is trained with: they tell it from others, and describe it in lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINED_WITH = (
    "batch_size",
    "epochs",
    "steps",
    "order",
    "last_batch",
    "freeze_at",
    "freeze_with",
    "precision",
    "averaging",
    "weight_averages",
)
"""The settings without a group that change what is trained, other than the seed; each is a column of `runs`."""

METRIC_NAME, METRIC_UNIT, LARGER_IS_BETTER = "task.metric", "task.unit", "task.larger_is_better"
"""Columns of `runs` on the metric of a task of the user's own, by which reports name it."""


def flatten_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what a network is trained with, seed apart, from a configuration, under the names of columns of `runs`.

    Settings that the network does not read are left out.
    """
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                settings[key if name == "name" else f"{key}.{name}"] = inner
        elif key in TRAINED_WITH:
            settings[key] = value

    if settings.get("task") == "classification":
        settings.pop("task")
    # `steps` takes the place of `epochs`, and `freeze_with` is read with `freeze_at` alone.
    if settings.get("steps"):
        settings.pop("epochs", None)
    if settings.get("freeze_at") is None:
        settings.pop("freeze_with", None)
    if "." in settings.get("model", ""):  # a user's own model has normalization of its own
        settings = {key: value for key, value in settings.items() if key.split(".")[0] != "norm"}
    return settings
