"""The planted faults of `tests.faults`: each can be planted in today's code."""

import pytest

from tests.faults.plant import ROOT, Fault, read_faults

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_can_be_planted(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")

    planted = fault.plant(text)

    assert planted != text
    compile(planted, fault.file, "exec")
    assert all((ROOT / test).is_file() for test in fault.tests)


def test_each_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
