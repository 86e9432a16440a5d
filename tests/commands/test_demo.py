"""`bnlab doctor --demo`: what the doctor says of a healthy network and of one that is broken on purpose."""

from __future__ import annotations

import re

import pytest

from bnlab.commands.demo import CHOSEN, show_demo


def list_parts(printed: str) -> list[str]:
    """The parts that are numbered."""
    return [part for part in re.split(r"^(?=\d\. |Next$)", printed, flags=re.MULTILINE) if part[0].isdigit()]


def test_a_fault_is_told_after_the_healthy_network(capsys: pytest.CaptureFixture[str]) -> None:
    show_demo(CHOSEN[:1])

    printed = capsys.readouterr().out
    healthy, spoiled = list_parts(printed)
    assert healthy.splitlines()[0] == "0. As it was trained"
    assert healthy.splitlines()[1].startswith("   Healthy averages")
    assert not re.search(r"^   BN\d", healthy, re.MULTILINE)
    assert spoiled.startswith("1. Never updated. ")
    assert "   The averages are at fault" in spoiled
    assert "   BN002 error: " in spoiled
    assert printed.split("\n\n")[-1].startswith("Next\n  bnlab doctor ")
