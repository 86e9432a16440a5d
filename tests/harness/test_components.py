"""Classes that forget what makes them a choice: one clear line."""

from __future__ import annotations

import pytest

from bnlab.harness.components import COMPONENTS, Component, component
from bnlab.harness.errors import UserError, suggest
from bnlab.harness.measurements import find_measurement


def test_a_component_that_is_no_dataclass_is_refused() -> None:
    class Forgotten(Component):
        name: str = "forgotten"

    with pytest.raises(TypeError, match="Forgotten: is no dataclass; write @dataclass"):
        component(Forgotten)


def test_a_table_whose_class_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    find_measurement("gaps")  # so that all are
    monkeypatch.delitem(COMPONENTS["measurements"], "gaps")

    with pytest.raises(UserError, match=r"no class of bnlab.harness.measurements.tables.gaps has @component"):
        find_measurement("gaps")


@pytest.mark.parametrize(
    ("name", "said"),
    [("emma", "did you mean ema?"), ("EMA", "did you mean ema?"), ("zzz", "must be one of cumulative, ema")],
)
def test_what_was_meant(name: str, said: str) -> None:
    assert suggest(name, ["cumulative", "ema"]) == said
