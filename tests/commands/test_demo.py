"""`bnlab doctor --demo`: what the doctor says of a healthy network and of one that is broken on purpose."""

from __future__ import annotations

import re

import pytest

from bnlab.commands.demo import show_demo
from bnlab.commands.demo.faults import FAULTS


def list_parts(printed: str) -> list[str]:
    """The parts that are numbered."""
    return [part for part in re.split(r"^(?=\d\. |Next$)", printed, flags=re.MULTILINE) if part[0].isdigit()]


def test_a_fault_is_told_after_the_healthy_network(capsys: pytest.CaptureFixture[str]) -> None:
    show_demo(FAULTS[:1])

    printed = capsys.readouterr().out
    healthy, spoiled = list_parts(printed)
    assert healthy.startswith("0. ")
    assert "Healthy" in healthy
    assert not re.search(r"BN\d", healthy)
    assert spoiled.startswith("1. ")
    assert "   The averages are at fault: never updated (BN002)." in spoiled
    assert "bnlab doctor " in printed.split("\n\n")[-1]
