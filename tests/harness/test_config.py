"""Estimators and momenta make each source once; bounds that depend on other settings."""

from __future__ import annotations

from typing import Any

import pytest

from bnlab.harness.artifacts.norms.batch import Batch
from bnlab.harness.artifacts.norms.ghost import Ghost
from bnlab.harness.artifacts.norms.group import Group
from bnlab.harness.artifacts.norms.renorm import Renorm
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.config import check
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.subjects import Subject, find_subjects
from bnlab.harness.statistic_kinds import Precise


def test_each_setting_once() -> None:
    names = ["ema", "cumulative", "exact", "ema", "precise(images=10)", "ema(momentum=0.3)"]
    found = find_subjects(Config(estimator=names, momentum=[0.1, 0.2, 0.1]))
    described = [f"{s.estimator} {s.momentum}" for s in found]
    assert described[:4] == ["ema 0.1", "ema 0.2", "cumulative None", "exact None"]
    assert described[4:] == ["precise(images=10) None", "ema 0.3"]
    assert found[4] == Subject(Precise(images=10))


def test_each_population() -> None:
    """Of statistics that have one: a running average's are of what the network was trained on."""
    found = find_subjects(Config(estimator=["exact", "ema", "test_batch"], population=["train", "val"]))
    described = [(s.estimator, s.split) for s in found]
    assert described == [("exact", "train"), ("exact", "val"), ("ema", "train"), ("test_batch(n=64)", "test")]


def test_a_batch_is_no_larger_than_the_data_and_a_ghost_batch_than_the_batch() -> None:
    check(Config(batch_size=1295))
    check(Config(norm=Group(), batch_size=1, estimator="exact", measurements="evaluations"))
    check(Config(norm=Ghost(batch_size=32), batch_size=32))
    for config, found in (
        (Config(batch_size=1296), "batch_size=1296: must be 2 to 1,295"),
        (Config(norm=Ghost(batch_size=32), batch_size=31), r"norm\.batch_size=32: must be 2 to 31"),
        (Config(batch_size=32, epochs=1, evaluate_at=[10, 100]), r"evaluate_at=100: must be log, .* \(1 to 41\)"),
    ):
        with pytest.raises(UserError, match=f"^{found}"):
            check(config)


@pytest.mark.parametrize("key", ["norm=renorm", "freeze_at"])
def test_who_reads_its_running_averages_in_training_has_no_others(key: str) -> None:
    own: dict[str, Any] = {"norm": Renorm(momentum=0.1)} if key == "norm=renorm" else {"freeze_at": 0.5}
    check(Config(**own, estimator=["ema", "ema(momentum=0.1)", "exact", "precise", "swa", "test_batch"]))
    for changes, found in (
        ({"momentum": [0.05, 0.1]}, "estimator=ema, momentum=0.05"),
        ({"estimator": ["ema(momentum=0.5)"]}, "estimator=ema, momentum=0.5"),
        ({"estimator": ["exact", "cumulative"]}, "estimator=cumulative, momentum=None"),
    ):
        with pytest.raises(UserError, match=f"^{found}: a network with {key} reads its running averages"):
            check(Config(**own, **changes))
        check(Config(norm=Batch(), **changes))
