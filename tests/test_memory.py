"""How much memory there is, and which batches may wait in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnlab import population_statistics
from bnlab.memory import Budget, LiveBytes, Profile
from tests.helpers import images, plain


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(5, "5"), ("7", "7"), ("2 kB", "2,000"), ("1.5KiB", "1,536"), ("0.00001GiB", "10,737"), (" 0.01 mib ", "10,485")],
)
def test_limits(memory: int | str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"memory= allows {expected};"):
        population_statistics(plain(), images(32), memory=memory)


@pytest.mark.parametrize("memory", ["", "4 GiBs", "-1", "1e3", "nan", "9" * 400, 0, -1, 1.5, True, "0.1B", []])
def test_limits_that_are_refused(memory: Any) -> None:
    with pytest.raises(ValueError, match=r"memory=.*; (pass bytes or a text|must be above 0)"):
        population_statistics(plain(), images(8), memory=memory)


def test_live_bytes_counts_what_is_alive_once() -> None:
    weight = torch.ones(1000)
    with LiveBytes([weight]) as live:
        x = weight * 2
        view = x.view(10, 100)[3:]
        assert live.now() == 4000
        y = x.exp()
        assert live.now() == live.peak == 8000
        del x
        assert live.now() == 8000  # the view holds it
        del view, y
        assert live.now() == 0
        assert live.peak == 8000
        weight.view(10, 100)
        assert live.now() == 0


def test_a_profile_has_the_most_that_is_held_from_a_layer_on() -> None:
    profile = Profile.of([("a", 30), ("b", 10), ("c", 20), ("b", 5)], peak=40, size=10)
    assert profile == ({"a": 3.0, "b": 2.0, "c": 2.0}, 4.0)


def test_a_budget_admits_as_many_batches_as_fit_beside_one_that_runs() -> None:
    budget = Budget([10, 10, 20], Profile({"a": 3.0, "b": 1.0}, 4.0), limit=160)  # one that runs: 4·20

    assert budget.peak == 80
    assert budget.admit(0, "a")
    assert budget.admit(1, "a")
    assert not budget.admit(2, "a")  # 30 + 30 + 60 > 80

    budget.release(0)
    assert budget.admit(2, "b")
    assert budget.peak == 140  # 80 + 30 + 30 before, 80 + 30 + 20 now
    assert not Budget([10], None, limit=1).admit(0, "a")

    with pytest.raises(ValueError, match="one batch's forward needs 80 bytes, memory= allows 79; pass smaller batches"):
        Budget([20], Profile({}, 4.0), limit=79)
