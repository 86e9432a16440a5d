"""Classes that forget what makes them a choice: one clear line."""

from __future__ import annotations

import pytest

from bnlab.harness.settings import Component, component


def test_a_component_that_is_no_dataclass_is_refused() -> None:
    class Forgotten(Component):
        name: str = "forgotten"

    with pytest.raises(TypeError, match=r"Forgotten: .*@dataclass"):
        component(Forgotten)
