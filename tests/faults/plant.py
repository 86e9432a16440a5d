"""python -m tests.faults.plant [NAME ...]: plant faults in a copy of the checkout, one by one, and run tests.

`library.yaml`, `doctor.yaml`, `harness.yaml` and `experiments.yaml` list the faults; NAME is a list or a fault. A fault
is caught if one of its test files, or checks, fails. Exit code 1: a fault was missed that is not marked so, or it could
not be planted.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LISTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
_SECONDS = 600  # of the processor, that a process of a test file may take
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)  # as pytest and checks say it


@dataclass(frozen=True)
class Fault:
    """A mistake that a programmer could make.

    Attributes:
        name: of the fault.
        says: what is wrong, in a sentence.
        file: that it is in, as seen from the root of the checkout.
        before: right text, which the file has exactly once.
        after: wrong text that takes its place.
        tests: the test files, and files of `tests.checks`, that are likely to catch it.
        missed: whether it is known that no test catches it.
    """

    name: str
    says: str
    file: str
    before: str
    after: str
    tests: Sequence[str]
    missed: bool = False

    def plant(self, text: str) -> str:
        """Plant the fault in the text of its file; ValueError unless that has the right text once."""
        count = text.count(self.before)
        if count != 1:
            raise ValueError(f"{self.file} has its text {count} times, not once; write the fault again")
        return text.replace(self.before, self.after)


def read_faults(names: Sequence[str] = tuple(LISTS)) -> list[Fault]:
    """Read the faults of some lists."""
    faults: list[Fault] = []
    for name in names:
        entries = yaml.safe_load(LISTS[name].read_text(encoding="utf-8"))
        faults += [Fault(**entry) for entry in entries]
    return faults


def main() -> int:
    """Plant the faults that the command line names, or all; the exit code."""
    by_name = {fault.name: [fault] for fault in read_faults()}
    by_name |= {name: read_faults([name]) for name in LISTS}
    parser = argparse.ArgumentParser(prog="python -m tests.faults.plant", description="Plant faults, and run tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"faults, or {' and '.join(LISTS)}; default: all")
    given = parser.parse_args()
    chosen: list[Fault] = []
    for name in given.names or LISTS:
        if name not in by_name:
            parser.error(f"{name}: there is no such fault")
        chosen += by_name[name]

    with tempfile.TemporaryDirectory(prefix="bnlab-faults-") as folder:
        copy = Path(folder)
        copy_checkout(copy)
        return plant_all(chosen, copy)


def copy_checkout(copy: Path) -> None:
    """Copy the tracked files of the checkout, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    for name in listed.stdout.split("\0"):
        source = ROOT / name
        if source.is_file():  # not one that was removed
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def plant_all(faults: Sequence[Fault], copy: Path) -> int:
    """Plant faults one after the other, and print what becomes of each; the exit code."""
    counts: Counter[str] = Counter()
    for fault in faults:
        state, words = try_fault(fault, copy)
        print(f"{state}  {fault.name}{words}", flush=True)
        if state == "missed" and fault.missed:
            state = "missed as known"
        counts[state] += 1

    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["missed"] or counts["refused"] else 0


def try_fault(fault: Fault, copy: Path) -> tuple[str, str]:
    """Plant a fault for each test file, until one fails: caught, missed or refused, with further words on it."""
    path = copy / fault.file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        planted = fault.plant(text)
    except ValueError as error:
        return "refused", f": {error}"

    for test in fault.tests:
        broken = find_broken(test, copy)
        if broken:
            return "refused", f": {broken} fails without any fault"
        path.write_text(planted, encoding="utf-8")
        failed = find_failure(test, copy)
        path.write_text(text, encoding="utf-8")
        if failed:
            return "caught", f"  by {failed}"
    return "missed", ""


@cache
def find_broken(test: str, copy: Path) -> str:
    """Run a test file where nothing is planted, once; the name of a test that fails, or an empty word."""
    return find_failure(test, copy)


def find_failure(test: str, copy: Path) -> str:
    """Run a test file in the copy until a test fails, or a check; its name, or an empty word if none does."""
    if test.startswith("tests/checks/"):
        words = ["tests.checks", Path(test).stem]
    else:
        # No chance, no deadlines.
        words = ["pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci", test]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        encoding="utf-8",
        preexec_fn=limit_time,
    )
    if done.returncode == 0:
        return ""
    if done.returncode == -signal.SIGXCPU:
        return f"{test}, which does not end"
    failed = _FAILED.search(done.stdout)
    if failed is None:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return failed[1]


def limit_time() -> None:
    """End this process, and those that it starts, after some minutes of the processor's time."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 10))  # SIGXCPU, then SIGKILL


if __name__ == "__main__":
    sys.exit(main())
