"""How much memory there is, and which batches may wait in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab import population_statistics
from bnlab.memory import Budget, Growth, LiveBytes, Profile, read_free_bytes, read_free_of_groups
from tests.helpers import images, plain


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(5, "5"), ("7", "7"), ("2 kB", "2,000"), ("1.5KiB", "1,536"), ("0.00001GiB", "10,737"), (" 0.01 mib ", "10,485")],
)
def test_limits(memory: int | str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"memory= allows {expected};"):
        population_statistics(plain(), images(32), memory=memory)


@pytest.mark.parametrize("memory", ["", "4 GiBs", "-1", "1e3", "nan", "9" * 400, 0, -1, 1.5, True, "0.1B", []])
def test_limits_that_are_refused(memory: Any) -> None:
    with pytest.raises(ValueError, match=r"memory=.*; (pass bytes or a text|must be above 0)"):
        population_statistics(plain(), images(8), memory=memory)


def test_live_bytes_counts_what_is_alive_once() -> None:
    weight = torch.ones(1000)
    with LiveBytes([weight]) as live:
        x = weight * 2
        view = x.view(10, 100)[3:]
        assert live.now() == 4000
        y = x.exp()
        assert live.now() == live.peak == 8000
        del x
        assert live.now() == 8000  # the view holds it
        del view, y
        assert live.now() == 0
        assert live.peak == 8000
        weight.view(10, 100)
        assert live.now() == 0


def test_a_profile_has_the_most_that_is_held_from_a_layer_on() -> None:
    profile = Profile.of([("a", 30), ("b", 10), ("c", 20), ("b", 5)], peak=40, size=10)
    assert profile == ({"a": 3.0, "b": 2.0, "c": 2.0}, 4.0)


MIB = 1 << 20
OF_OBJECTS = 35 << 10  # of a forward that waits


def test_a_budget_admits_as_many_batches_as_fit_beside_one_that_runs() -> None:
    profile = Profile({"a": 3.0, "b": 1.0}, 4.0)
    budget = Budget([10 * MIB, 10 * MIB, 20 * MIB], profile, limit=160 * MIB)  # one that runs: 4·20

    assert budget.peak == 80 * MIB
    assert budget.admit(0, "a")
    assert budget.admit(1, "a")
    assert not budget.admit(2, "a")  # 30 + 30 + 60 > 80

    budget.release(0)
    assert budget.admit(2, "b")
    assert budget.peak == 140 * MIB + 2 * OF_OBJECTS  # 80 + 30 + 30 before, 80 + 30 + 20 now

    with pytest.raises(ValueError, match="one batch's forward needs 80 bytes, memory= allows 79; pass smaller batches"):
        Budget([20], Profile({}, 4.0), limit=79)


def test_small_batches_count_what_objects_take() -> None:
    budget = Budget([1] * 100, Profile({"a": 1.0}, 1.0), limit=10 * OF_OBJECTS)

    assert sum(budget.admit(index, "a") for index in range(100)) == 9  # not quite ten, with their tensors


class Grown(Growth):
    """The growth of a process that gives some memory back where it has grown beyond a limit."""

    def __init__(self, now: int, trimmed: int) -> None:
        super().__init__()
        self.now = now
        self.trimmed = trimmed

    def measure(self, limit: int) -> int:
        return self.now if self.now <= limit else self.trimmed


@pytest.mark.parametrize(
    ("now", "trimmed", "is_admitted"), [(50, 50, True), (200, 50, True), (200, 99, False), (98, 98, True)]
)
def test_a_budget_counts_what_the_process_has_grown_by(now: int, trimmed: int, is_admitted: bool) -> None:
    """Of 100 MiB two are for the forward that runs."""
    budget = Budget([2 * MIB, 48 * MIB], Profile({"a": 1.0}, 1 / 24), 100 * MIB, Grown(now * MIB, trimmed * MIB))

    assert budget.admit(1, "a") == is_admitted


def test_the_growth_of_a_process_is_that_of_its_memory_in_use() -> None:
    growth = Growth()
    tensor = torch.ones(64 * MIB // 4)
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory in use cannot be read here")

    held = growth.measure(limit=1 << 40)
    del tensor
    left = growth.measure(limit=0)

    assert held >= 0.9 * 64 * MIB
    assert left <= held - 0.9 * 64 * MIB


RESIDENT = """
import sys
import torch
from torch import nn
from bnlab import population_statistics

def read_peak():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

class Block(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride=1 if inside in (3, outside) else 2, padding=1)
        self.bn = nn.BatchNorm2d(outside)

    def forward(self, x):
        y = self.bn(self.conv(x)).relu()
        return y + x if x.shape == y.shape else y

widths = [3, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32]
model = nn.Sequential(*map(Block, widths, widths[1:])).eval()
batches = list(torch.randn(24 * 64, 3, 32, 32).split(64))
with torch.no_grad():
    model(batches[0])
before = read_peak()
population_statistics(model, batches, memory=int(sys.argv[1]))
print(read_peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use cannot be read here")
@pytest.mark.parametrize("limit", [64 * MIB, 96 * MIB])
def test_a_process_grows_by_no_more_than_its_limit_and_a_fifth(limit: int) -> None:
    """Above the batches and one ordinary forward. malloc alone had made it half as much again."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "encoding": "utf-8", "check": True}
    done = subprocess.run([sys.executable, "-c", RESIDENT, str(limit)], **options)

    assert int(done.stdout) <= 1.2 * limit


def write_group(folder: Path, limit: str, usage: int, unused: int, version: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n", encoding="ascii")
    (folder / names[1]).write_text(f"{usage}\n", encoding="ascii")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {unused}\n", encoding="ascii")


@pytest.mark.parametrize(("version", "line"), [(2, "0::/a/b"), (1, "4:cpu,memory:/a/b")])
def test_limits_of_containers_are_read(version: int, line: str, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text(f"1:cpu:/x\n{line}\n", encoding="utf-8")
    root = tmp_path / "fs"
    mount = root if version == 2 else root / "memory"
    write_group(mount / "a" / "b", "max" if version == 2 else str(1 << 62), 10, 0, version)
    assert min(read_free_of_groups(groups, root), default=1 << 40) >= 1 << 40

    write_group(mount / "a" / "b" / "c", "900", 100, 0, version)  # of another process
    write_group(mount / "a", "3000", 1000, 200, version)

    assert min(read_free_of_groups(groups, root)) == 2200  # 3000 − (1000 − 200), of the group above


def test_where_there_are_no_groups_none_limits(tmp_path: Path) -> None:
    assert read_free_of_groups(tmp_path / "none") == []


def test_where_the_system_does_not_say_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has neither of both."""

    def fail(*arguments: object, **others: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.delattr(os, "sysconf")

    assert read_free_bytes(torch.device("cpu")) == 4 << 30


def test_free_memory_is_the_least_of_the_machine_and_its_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.memory.read_free_of_groups", lambda: [5000, 7000])

    assert read_free_bytes(torch.device("cpu")) == 5000
