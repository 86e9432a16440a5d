"""One table says how much what speaks for a cause counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import pytest

from bnlab import diagnose
from bnlab.doctor.cause import Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.verdict.attribution import GROUNDS, name_gap, weigh
from tests.doctor.causes import Planted
from tests.doctor.digits import NORMS, make_healthy


class Stands(Planted):
    """Stands on given grounds."""

    undone_by = ("exact statistics",)

    def __init__(self, support: Mapping[Ground, float]) -> None:
        self._support = support

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        return self._support


@pytest.fixture(scope="module")
def case() -> Case:
    return diagnose(make_healthy()).case


def test_each_ground_has_a_row_the_strongest_first() -> None:
    weights = [rank.weight for rank in GROUNDS.values()]

    assert tuple(GROUNDS) == get_args(Ground)
    assert weights == sorted(weights, reverse=True) and weights[0] == 1
    assert all(rank.reason.endswith(".") for rank in GROUNDS.values())


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        ({}, 0.0),
        ({"noise": 0.8, "averages": 0.6}, 0.72),
        ({"noise": 0.8, "averages": 0.8}, 0.8),
        ({"collapse": 1.0}, 0.6),
    ],
)
def test_a_cause_is_weighed_by_the_ground_on_which_it_stands_best(
    case: Case, support: Mapping[Ground, float], expected: float
) -> None:
    assert weigh(Stands(support), case, NORMS) == pytest.approx(expected)


def test_the_cause_that_weighs_most_is_named_and_of_equals_the_first(case: Case) -> None:
    noise = Stands({"noise": 1.0})
    averages = Stands({"averages": 0.95})
    others = Stands({"remainder": 1.0})

    assert name_gap([others, noise, averages], case, NORMS) is averages
    assert name_gap([others, Stands({"batches": 1.0})], case, NORMS) is others
    assert name_gap([Planted()], case, NORMS) is None
