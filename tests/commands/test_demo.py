"""`bnlab doctor --demo`: what the doctor says of a healthy network and of five that are broken on purpose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnlab.commands.demo import CHOSEN, show_demo
from bnlab.doctor.gallery import FAULTS
from tests.commands.running import call_bnlab


def list_parts(printed: str) -> list[str]:
    """The parts that are numbered."""
    return [part for part in re.split(r"^(?=\d\. |Next$)", printed, flags=re.MULTILINE) if part[0].isdigit()]


def test_a_fault_is_told_after_the_healthy_network(capsys: pytest.CaptureFixture[str]) -> None:
    show_demo(CHOSEN[:1])

    healthy, spoiled = list_parts(capsys.readouterr().out)
    assert healthy.splitlines()[0] == "0. As it was trained"
    assert healthy.splitlines()[1].startswith("   Healthy averages")
    assert not re.search(r"^   BN\d", healthy, re.MULTILINE)
    assert spoiled.startswith("1. Never updated. ")
    assert "   The averages are at fault" in spoiled
    assert "   BN002 error: " in spoiled


@pytest.mark.slow
def test_the_demo_finds_each_of_its_five_faults(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "doctor", "--demo")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    parts = list_parts(done.stdout)[1:]
    assert len(parts) == len(CHOSEN) == 5
    for name, part in zip(CHOSEN, parts, strict=True):
        codes = re.findall(r"^   (BN\d+) ", part, re.MULTILINE)
        assert FAULTS[name].code in codes
    assert done.stdout.split("\n\n")[-1].startswith("Next\n  bnlab doctor ")
