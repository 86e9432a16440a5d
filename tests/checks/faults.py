"""The planted faults of `tests.faults` can be planted in today's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.faults.plant import ROOT, read_faults


def find_faults_that_cannot_be_planted() -> Iterator[str]:
    """Find faults whose right text is not in its file once, that do not compile, or whose tests there are not."""
    for fault in read_faults():
        try:
            planted = fault.plant((ROOT / fault.file).read_text(encoding="utf-8"))
            compile(planted, fault.file, "exec")
        except (OSError, ValueError, SyntaxError) as error:
            yield f"{fault.name}: {error}"
        missing = [test for test in fault.tests if not (ROOT / test).is_file()]
        if missing:
            yield f"{fault.name}: there is no {', '.join(missing)}"


def find_names_of_two_faults() -> Iterator[str]:
    """Find names that several faults have."""
    for name, count in Counter(fault.name for fault in read_faults()).items():
        if count > 1:
            yield f"{count} faults are called {name}"
