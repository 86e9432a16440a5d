"""Classes that forget what makes them a choice: one clear line."""

from __future__ import annotations

import pytest

from bnlab.harness.components import Component, component
from bnlab.harness.errors import suggest


def test_a_component_that_is_no_dataclass_is_refused() -> None:
    class Forgotten(Component):
        name: str = "forgotten"

    with pytest.raises(TypeError, match="Forgotten: is no dataclass; write @dataclass"):
        component(Forgotten)


@pytest.mark.parametrize(
    ("name", "said"),
    [("emma", "did you mean ema?"), ("EMA", "did you mean ema?"), ("zzz", "must be one of cumulative, ema")],
)
def test_what_was_meant(name: str, said: str) -> None:
    assert suggest(name, ["cumulative", "ema"]) == said
