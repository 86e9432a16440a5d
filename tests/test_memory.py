"""How much memory there is, and which batches may wait in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bnlab.memory import LiveBytes, Room, divide_memory, read_free_bytes, read_free_of_groups


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


MIB = 1 << 20
OF_OBJECTS = 35 << 10  # of a forward that waits


def count(room: Room, layer: str, held: int, size: int) -> None:
    """Let the forward that is counted hold so many bytes at a layer."""
    with room.counting_bytes():
        tensor = torch.ones(held, dtype=torch.uint8)
        room.note_bytes(layer, size)
    del tensor


def test_as_many_batches_wait_as_fit_into_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.memory.read_free_bytes", lambda device: 200 * MIB)
    room = Room(torch.device("cpu"), [])
    count(room, "a", 30 * MIB, 10 * MIB)

    assert room.let_wait(0, "a", 10 * MIB)
    assert room.let_wait(1, "a", 20 * MIB)
    assert not room.let_wait(2, "a", 10 * MIB)  # 30 + 60 + 30 > 100

    room.stop_waiting(0)
    assert room.let_wait(2, "a", 10 * MIB)  # 60 + 30
    room.stop_waiting(2)
    count(room, "b", 10 * MIB, 10 * MIB)
    assert room.let_wait(0, "b", 10 * MIB)
    assert room.let_wait(2, "b", 10 * MIB)
    assert room.most_waiting == 90 * MIB + 2 * OF_OBJECTS
    assert not room.let_wait(3, "not reached by the one that is counted", 10 * MIB)  # as much as at "a"


def test_several_processes_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.memory.read_free_bytes", lambda device: 200 * MIB)
    divide_memory(4)
    try:
        room = Room(torch.device("cpu"), [])
    finally:
        divide_memory(1)
    count(room, "a", 20 * MIB, MIB)

    assert room.let_wait(0, "a", MIB)
    assert not room.let_wait(1, "a", MIB)  # 40 > 200 / 2 / 4


def test_small_batches_count_what_objects_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.memory.read_free_bytes", lambda device: 20 * OF_OBJECTS)
    room = Room(torch.device("cpu"), [])
    count(room, "a", 1, 1)

    assert sum(room.let_wait(index, "a", 1) for index in range(100)) == 9  # not quite ten, with their tensors


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
